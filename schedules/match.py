"""Groups the bindings of a module into layers: an anchor and what is computed in its epilogue.

Integer:   conv2d | linear | sum_pool2d -> requantize
           conv2d | linear -> add              (the accumulator becomes branch a)
           linear -> rescale_rows              (GPUs)
           matmul | bilinear2d -> requantize
           … -> requantize | add -> table
           permute_dims -> quantize
Float:     conv2d | matmul -> add(bias) -> add(other) -> relu | clip   (each step optional)

A binding joins a layer only if the layer is its single reader's single source and nobody else sees
the value between. Where two anchors could take the same add, the later one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph, ops
from nybble.schedules import match_float, match_rows, match_weight_only
from nybble.schedules.cpu import concat, entries, singles, winograd_range
from nybble.schedules.cpu.epilogue import is_narrow
from nybble.schedules.cpu.headroom import flush_of, is_safe
from nybble.schedules.cpu.scaling import ratios_are_small
from nybble.schedules.cuda import levels
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.group import Group, Matcher, constant_of, fused, permutation, spec_of, vector
from nybble.schedules.kernel import Epilogue, Problem, TensorSpec
from nybble.schedules.target import CpuTarget, Target

Arrays = dict[str, NDArray[Any]]


def groups(mod: tvm.IRModule, target: Target) -> list[Group]:
    """The layers of a module, in an order in which they can run; dead bindings are left out.

    Raises:
        ScheduleError: an operand that must be a constant is none, or has no per-channel shape.
    """
    matcher = Matcher(mod, target)
    bindings = graph.bindings(mod)
    found = []
    for rules in (_ANCHORS, _OTHERS):
        for binding in reversed(bindings):  # so that the later anchor claims a shared add
            rule = rules.get(graph.op_name(binding.value))
            is_free = binding.var in matcher.live and binding.var not in matcher.claimed
            group = rule(matcher, binding) if rule and is_free else None
            if group is not None:
                matcher.claimed.update(b.var for b in group.bindings)
                found.append(group)
    rest = [b for b in bindings if b.var in matcher.live and b.var not in matcher.claimed]
    found += [match_float.leftover(matcher, binding) for binding in rest]
    position = {b.var: i for i, b in enumerate(bindings)}
    return sorted(found, key=lambda group: position[group.output])


def _attrs(call: relax.Call) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(graph.attributes(call).items()))


# ---------------------------------------------------------------- integer anchors


def _integer_anchor(matcher: Matcher, binding: relax.VarBinding) -> Group | None:
    call, name = binding.value, str(binding.var.name)
    channels = graph.shape_of(binding.var)[-1]
    w = constant_of(call.args[1], name, "w")
    bias = vector(constant_of(call.args[2], name, "bias"), channels, name, "bias")
    dtype = graph.dtype_of(call.args[1])
    problem = Problem(
        op=_short(call),
        inputs=(spec_of(call.args[0]),),
        output=spec_of(binding.var),
        attrs=_attrs(call),
        weights=TensorSpec(w.shape, dtype),
    )
    if isinstance(matcher.target, CpuTarget):
        problem = _with_proofs(problem, w)
    elif problem.op == "linear":
        problem = _with_levels(problem, w)
    group = Group((binding,), problem, (call.args[0],), {"w": w, "bias": bias})
    if problem.op == "linear" and isinstance(matcher.target, CudaTarget):
        in_floats = match_rows.with_row_scales(matcher, group)
        if in_floats is not None:
            return in_floats
    rescaled = _with_requantize(matcher, group) or _with_add(matcher, group)
    if rescaled is not None and isinstance(matcher.target, CpuTarget):
        rescaled = _in_singles(rescaled)
    return _with_table(matcher, rescaled) if rescaled else group


def _with_proofs(problem: Problem, w: NDArray[Any]) -> Problem:
    """The problem with what its weights prove of sums in 16 bits, which only CPUs' kernels use."""
    tile_flush = winograd_range.flush_of(problem, w)
    problem = replace(problem, flush=flush_of(problem, w), tile_flush=tile_flush)
    return replace(problem, safe=is_safe(problem, w))


def _with_levels(problem: Problem, w: NDArray[Any]) -> Problem:
    """The problem with what its weights prove of two levels, which only GPUs' kernels use."""
    assert problem.weights is not None
    length = levels.length_of(w) if problem.weights.dtype == "int8" else 0
    found = ((levels.ATTR, length),) if length else ()
    return replace(problem, attrs=(*problem.attrs, *found))


def _in_singles(group: Group) -> Group:
    """The group, with what is proven of its epilogue's ratios."""
    assert group.problem is not None
    exact = singles.is_exact(group.problem, group.constants)
    epilogue = replace(group.problem.epilogue, singles=exact)
    return replace(group, problem=replace(group.problem, epilogue=epilogue))


def _short(call: relax.Call) -> str:
    definition = ops.definition_of(graph.op_name(call))
    assert definition is not None
    return definition.name


def _sums(matcher: Matcher, binding: relax.VarBinding) -> Group:
    group = _plain(matcher, binding)
    rescaled = _with_requantize(matcher, group)
    return _with_table(matcher, rescaled) if rescaled else group


def _matmul(matcher: Matcher, binding: relax.VarBinding) -> Group:
    group = match_rows.matmul(matcher, binding)
    return match_rows.as_they_lie(matcher, _with_requantize(matcher, group) or group)


def _with_requantize(matcher: Matcher, group: Group) -> Group | None:
    """The group with the requantize behind it as its epilogue."""
    reader = matcher.follower(group.bindings[-1], "nybble.requantize")
    if reader is None or graph.attributes(reader.value)["zero_point_in"] != 0:
        return None
    attrs = graph.attributes(reader.value)
    scales = _scales(reader, {"multiplier": 1, "shift": 2})
    epilogue = Epilogue(
        "requantize", attrs["lo"], attrs["hi"],
        zero_point=attrs["zero_point"], rounding=attrs["rounding"],
        small_ratios=ratios_are_small(scales["multiplier"], scales["shift"]),
    )  # fmt: skip
    return fused(group, reader, epilogue, scales)


def _with_add(matcher: Matcher, group: Group) -> Group | None:
    """The group with the residual add behind it as its epilogue."""
    reader = matcher.follower(group.bindings[-1], "nybble.add")
    if reader is None:
        return None
    attrs, args = graph.attributes(reader.value), reader.value.args
    # The sum commutes, so the accumulator is branch a wherever it stands.
    mine, other = (0, 3) if args[0].same_as(group.output) else (3, 0)
    zero = {0: attrs["zero_point_a"], 3: attrs["zero_point_b"]}
    if zero[mine] != 0 or graph.shape_of(args[0]) != graph.shape_of(args[3]):
        return None
    positions = {
        "multiplier_a": mine + 1,
        "shift_a": mine + 2,
        "multiplier_b": other + 1,
        "shift_b": other + 2,
    }
    scales = _scales(reader, positions)
    epilogue = Epilogue(
        "add", attrs["lo"], attrs["hi"], spec_of(args[other]), attrs["zero_point"],
        zero[other], attrs["rounding"],
        small_ratios=ratios_are_small(scales["multiplier_a"], scales["shift_a"]),
    )  # fmt: skip
    return fused(group, reader, epilogue, scales, args[other])


def _with_table(matcher: Matcher, group: Group) -> Group:
    """The group with the table behind it as the end of its epilogue; as it is without one."""
    assert group.problem is not None
    index = group.problem.output.dtype
    reader = matcher.follower(group.bindings[-1], "nybble.table")
    if reader is None or not (is_narrow(index) and is_narrow(graph.dtype_of(reader.var))):
        return group
    if not entries.pays(index, matcher.target):
        return group
    values = constant_of(reader.value.args[1], str(reader.var.name), "values")
    epilogue = replace(group.problem.epilogue, table=index)
    return fused(group, reader, epilogue, {"entries": values})


def _scales(reader: relax.VarBinding, positions: Mapping[str, int]) -> Arrays:
    """Multipliers and shifts of a call as vectors along the last axis."""
    name, channels = str(reader.var.name), graph.shape_of(reader.var)[-1]
    return {
        operand: vector(
            constant_of(reader.value.args[at], name, operand), channels, name, operand
        )
        for operand, at in positions.items()
    }  # fmt: skip


# ---------------------------------------------------------------- integer ops of their own


def _plain(_matcher: Matcher, binding: relax.VarBinding) -> Group:
    call = binding.value
    problem = Problem(
        _short(call), (spec_of(call.args[0]),), spec_of(binding.var), _attrs(call)
    )  # fmt: skip
    return Group((binding,), problem, (call.args[0],))


def _requantize(matcher: Matcher, binding: relax.VarBinding) -> Group:
    constants = _scales(binding, {"multiplier": 1, "shift": 2})
    return replace(_plain(matcher, binding), constants=constants)


def _add(matcher: Matcher, binding: relax.VarBinding) -> Group:
    group, args = _plain(matcher, binding), binding.value.args
    assert group.problem is not None
    positions = {"multiplier_a": 1, "shift_a": 2, "multiplier_b": 4, "shift_b": 5}
    problem = replace(group.problem, inputs=(spec_of(args[0]), spec_of(args[3])))
    return Group((binding,), problem, (args[0], args[3]), _scales(binding, positions))


def _multiply(matcher: Matcher, binding: relax.VarBinding) -> Group:
    group, args = _plain(matcher, binding), binding.value.args
    assert group.problem is not None
    problem = replace(group.problem, inputs=(spec_of(args[0]), spec_of(args[1])))
    constants = _scales(binding, {"multiplier": 2, "shift": 3})
    return Group((binding,), problem, (args[0], args[1]), constants)


def _concat(_matcher: Matcher, binding: relax.VarBinding) -> Group | None:
    """Concatenation of tensors that are static from the axis on; None for others."""
    fields = tuple(binding.value.args[0].fields)
    inputs, output = tuple(map(spec_of, fields)), spec_of(binding.var)
    axis = graph.attributes(binding.value)["axis"]
    if axis is None or concat.runs_of(inputs, axis % len(output.shape)) is None:
        return None
    attrs = (("axis", axis % len(output.shape)),)
    return Group((binding,), Problem("concat", inputs, output, attrs), fields)


def _table(matcher: Matcher, binding: relax.VarBinding) -> Group:
    values = constant_of(binding.value.args[1], str(binding.var.name), "values")
    return replace(_plain(matcher, binding), constants={"values": values})


def _border(matcher: Matcher, binding: relax.VarBinding) -> Group:
    call, name = binding.value, str(binding.var.name)
    shape = graph.shape_of(binding.var)
    length = shape[graph.attributes(call)["axis"]] if shape else 1
    constants = {
        operand: vector(constant_of(call.args[at], name, operand), length, name, operand)
        for operand, at in {"scale": 1, "zero_point": 2}.items()
    }
    return replace(_plain(matcher, binding), constants=constants)


def _quantize(matcher: Matcher, binding: relax.VarBinding) -> Group:
    group = _border(matcher, binding)
    source = matcher.bindings.get(binding.value.args[0])
    if source is None or graph.op_name(source.value) != "relax.permute_dims":
        return group
    return _join_permute(group, source) if matcher.follower(source, "nybble.quantize") else group


def _join_permute(group: Group, source: relax.VarBinding) -> Group:
    assert group.problem is not None
    problem = replace(
        group.problem,
        inputs=(spec_of(source.value.args[0]),),
        attrs=tuple(sorted((*group.problem.attrs, ("axes", permutation(source.value))))),
    )
    bindings = (source, *group.bindings)
    return replace(group, bindings=bindings, problem=problem, activations=(source.value.args[0],))


Rule = Callable[[Matcher, relax.VarBinding], Group | None]
_ANCHORS: dict[str, Rule] = {
    "nybble.conv2d": _integer_anchor,
    "nybble.linear": _integer_anchor,
    "nybble.sum_pool2d": _sums,
    "nybble.bilinear2d": _sums,
    "nybble.matmul": _matmul,
    "nybble.weight_only": match_weight_only.weight_only,
    "nybble.quantize": _quantize,
    "relax.nn.conv2d": match_float.conv2d,
    "relax.matmul": match_float.matmul,
}
_OTHERS: dict[str, Rule] = {
    "nybble.requantize": _requantize,
    "nybble.add": _add,
    "nybble.multiply": _multiply,
    "nybble.table": _table,
    "nybble.softmax": match_rows.softmax,
    "nybble.masked_softmax": match_rows.masked_softmax,
    "nybble.layer_norm": match_rows.norm,
    "nybble.rms_norm": match_rows.norm,
    "nybble.row_tops": match_rows.plain,
    "nybble.quantize_rows": match_rows.plain,
    "nybble.rescale_rows": match_rows.rescale,
    "relax.concat": _concat,
    "nybble.dequantize": _border,
    "nybble.max_pool2d": _plain,
    "nybble.nearest2d": _plain,
    "relax.nn.max_pool2d": match_float.max_pool2d,
}
