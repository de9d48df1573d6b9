"""Groups the bindings of a module into layers: an anchor and what is computed in its epilogue.

Integer:   conv2d | linear | sum_pool2d -> requantize
           conv2d | linear -> add              (the accumulator becomes branch a)
           permute_dims -> quantize
Float:     conv2d | matmul -> add(bias) -> add(other) -> relu | clip   (each step optional)

A binding joins a layer only if the layer is its single reader's single source and nobody else sees
the value between. Where two anchors could take the same add, the later one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.errors import ScheduleError
from nybble.ir import graph, numerics, ops
from nybble.schedules.kernel import Epilogue, Extent, Problem, TensorSpec

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Group:
    """One layer of the scheduled module.

    Attributes:
        bindings: the anchor first; the last one's variable is the layer's output.
        problem: what to compile; None for ops that have no kernel family (float leftovers,
            structural ops).
        activations: the tensor operands, ``epilogue.other`` last.
        constants: unpacked constants by operand name; per-channel ones as vectors.
    """

    bindings: tuple[relax.VarBinding, ...]
    problem: Problem | None = None
    activations: tuple[Any, ...] = ()
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def output(self) -> relax.Var:
        """The variable that holds the layer's result."""
        return self.bindings[-1].var


def groups(mod: tvm.IRModule) -> list[Group]:
    """The layers of a module, in an order in which they can run; dead bindings are left out.

    Raises:
        ScheduleError: an operand that must be a constant is none, or has no per-channel shape.
    """
    matcher = Matcher(mod)
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
    found += [Group((binding,)) for binding in rest]
    position = {b.var: i for i, b in enumerate(bindings)}
    return sorted(found, key=lambda group: position[group.output])


class Matcher:
    """What the rules need to know about the module around a binding."""

    def __init__(self, mod: tvm.IRModule):
        self.users = graph.users(mod)
        self.outputs = set(graph.outputs(mod))
        self.bindings = {b.var: b for b in graph.bindings(mod)}
        self.claimed: set[Any] = set()
        self.live = self._live(mod)

    def follower(self, binding: relax.VarBinding, *wanted: str) -> relax.VarBinding | None:
        """The only reader of a binding, if it is one of the wanted ops and still free."""
        readers = self.users[binding.var]
        if len(readers) != 1 or binding.var in self.outputs or readers[0].var in self.claimed:
            return None
        return readers[0] if graph.op_name(readers[0].value) in wanted else None

    def _live(self, mod: tvm.IRModule) -> set[Any]:
        live = set(self.outputs)
        for binding in reversed(graph.bindings(mod)):
            if binding.var in live:
                live.update(graph.operands(binding.value))
        return live


def spec_of(expr: Any) -> TensorSpec:
    """Shape and dtype of an expression."""
    return TensorSpec(graph.shape_of(expr), graph.dtype_of(expr))


def constant_of(expr: Any, name: str, operand: str) -> NDArray[Any]:
    """The values of an operand that must be a constant."""
    if not graph.is_constant(expr):
        raise ScheduleError(f"'{name}': operand {operand} must be a constant. Fold it first.")
    return graph.numpy_of(expr)


def vector(values: NDArray[Any], length: Extent, name: str, operand: str) -> NDArray[Any]:
    """A per-channel constant as a vector; a symbolic length takes a single value only."""
    flat = values.reshape(-1)
    if isinstance(length, int) and values.shape[-1:] in ((), (1,), (length,)) and (
        flat.size in (1, length)
    ):  # fmt: skip
        return np.ascontiguousarray(np.broadcast_to(flat, (length,)))
    if flat.size == 1:
        return flat
    raise ScheduleError(
        f"'{name}': operand {operand} has shape {values.shape}, expected a scalar or ({length},)."
    )


def _attrs(call: relax.Call, drop: tuple[str, ...] = ()) -> tuple[tuple[str, Any], ...]:
    found = graph.attributes(call)
    return tuple(sorted((k, v) for k, v in found.items() if k not in drop))


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
        weights_narrow=bool(w.min() > numerics.limits(dtype)[0]),
    )
    group = Group((binding,), problem, (call.args[0],), {"w": w, "bias": bias})
    return _with_requantize(matcher, group) or _with_add(matcher, group) or group


def _short(call: relax.Call) -> str:
    definition = ops.definition_of(graph.op_name(call))
    assert definition is not None
    return definition.name


def _sum_pool(matcher: Matcher, binding: relax.VarBinding) -> Group:
    group = _plain(matcher, binding)
    return _with_requantize(matcher, group) or group


def _with_requantize(matcher: Matcher, group: Group) -> Group | None:
    """The group with the requantize behind it as its epilogue."""
    reader = matcher.follower(group.bindings[-1], "nybble.requantize")
    if reader is None or graph.attributes(reader.value)["zero_point_in"] != 0:
        return None
    attrs = graph.attributes(reader.value)
    epilogue = Epilogue(
        "requantize", attrs["lo"], attrs["hi"],
        zero_point=attrs["zero_point"], rounding=attrs["rounding"],
    )  # fmt: skip
    scales = _scales(reader, {"multiplier": 1, "shift": 2})
    return _fused(group, reader, epilogue, scales)


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
    epilogue = Epilogue(
        "add", attrs["lo"], attrs["hi"], spec_of(args[other]), attrs["zero_point"],
        zero[other], attrs["rounding"],
    )  # fmt: skip
    positions = {
        "multiplier_a": mine + 1, "shift_a": mine + 2, "multiplier_b": other + 1, "shift_b": other + 2,
    }  # fmt: skip
    return _fused(group, reader, epilogue, _scales(reader, positions), args[other])


def _scales(reader: relax.VarBinding, positions: Mapping[str, int]) -> Arrays:
    """Multipliers and shifts of a call as vectors along the last axis."""
    name, channels = str(reader.var.name), graph.shape_of(reader.var)[-1]
    return {
        operand: vector(
            constant_of(reader.value.args[at], name, operand), channels, name, operand
        )
        for operand, at in positions.items()
    }  # fmt: skip


def _fused(
    group: Group,
    reader: relax.VarBinding,
    epilogue: Epilogue,
    constants: Mapping[str, NDArray[Any]],
    other: Any = None,
) -> Group:
    assert group.problem is not None
    return Group(
        (*group.bindings, reader),
        replace(group.problem, output=spec_of(reader.var), epilogue=epilogue),
        group.activations if other is None else (*group.activations, other),
        {**group.constants, **constants},
    )


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
    rank = len(group.problem.output.shape)
    axes = graph.attributes(source.value)["axes"] or tuple(reversed(range(rank)))
    problem = replace(
        group.problem,
        inputs=(spec_of(source.value.args[0]),),
        attrs=tuple(sorted((*group.problem.attrs, ("axes", tuple(a % rank for a in axes))))),
    )
    bindings = (source, *group.bindings)
    return replace(group, bindings=bindings, problem=problem, activations=(source.value.args[0],))


# ---------------------------------------------------------------- float anchors

_CONV_LAYOUT = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}


def _float_conv2d(matcher: Matcher, binding: relax.VarBinding) -> Group | None:
    call, attrs = binding.value, graph.attributes(binding.value)
    is_canonical = all(attrs[key] == layout for key, layout in _CONV_LAYOUT.items())
    if not is_canonical or not _is_float32(binding.var) or not graph.is_constant(call.args[1]):
        return None
    kept = ("dilation", "groups", "padding", "strides")
    return _float_group(
        matcher, binding, "conv2d", graph.numpy_of(call.args[1]),
        (*((k, attrs[k]) for k in kept[:2]), ("pad_value", 0), *((k, attrs[k]) for k in kept[2:])),
    )  # fmt: skip


def _float_matmul(matcher: Matcher, binding: relax.VarBinding) -> Group | None:
    w = binding.value.args[1]
    if not graph.is_constant(w) or len(w.ty.shape) != 2 or not _is_float32(binding.var):
        return None
    # Relax multiplies by (K, O); weights are rows of K here.
    return _float_group(matcher, binding, "linear", graph.numpy_of(w).T.copy(), ())


def _is_float32(*exprs: Any) -> bool:
    return all(graph.dtype_of(expr) == "float32" for expr in exprs)


def _float_group(
    matcher: Matcher,
    binding: relax.VarBinding,
    op: str,
    w: NDArray[Any],
    attrs: tuple[tuple[str, Any], ...],
) -> Group:
    x = binding.value.args[0]
    problem = Problem(
        op, (spec_of(x),), spec_of(binding.var), attrs, TensorSpec(w.shape, "float32"),
        epilogue=Epilogue("float", -np.inf, np.inf),
    )  # fmt: skip
    bias = np.zeros(w.shape[0], np.float32)
    group = Group((binding,), problem, (x,), {"w": w, "bias": bias})
    for step in (_with_bias, _with_other, _with_clamp):
        group = step(matcher, group) or group
    return group


def _with_bias(matcher: Matcher, group: Group) -> Group | None:
    reader = matcher.follower(group.bindings[-1], "relax.add")
    beside = reader and _beside(reader, group)
    if beside is None or not graph.is_constant(beside):
        return None
    assert reader is not None
    values, channels = graph.numpy_of(beside), graph.shape_of(group.output)[-1]
    if values.size not in (1, channels) or values.shape[-1:] not in ((), (1,), (channels,)):
        return None
    assert group.problem is not None
    bias = vector(values, channels, str(reader.var.name), "bias")
    return _fused(group, reader, group.problem.epilogue, {"bias": bias})


def _with_other(matcher: Matcher, group: Group) -> Group | None:
    reader = matcher.follower(group.bindings[-1], "relax.add")
    beside = reader and _beside(reader, group)
    if beside is None or graph.shape_of(beside) != graph.shape_of(group.output):
        return None
    assert group.problem is not None
    epilogue = replace(group.problem.epilogue, other=spec_of(beside))
    return _fused(group, reader, epilogue, {}, beside)


def _beside(reader: relax.VarBinding, group: Group) -> Any:
    """The other summand of an add."""
    a, b = reader.value.args
    return b if a.same_as(group.output) else a


def _with_clamp(matcher: Matcher, group: Group) -> Group | None:
    reader = matcher.follower(group.bindings[-1], "relax.nn.relu", "relax.clip")
    if reader is None:
        return None
    assert group.problem is not None
    is_relu = graph.op_name(reader.value) == "relax.nn.relu"
    lo, hi = (0.0, np.inf) if is_relu else map(graph.plain, reader.value.args[1:])
    return _fused(group, reader, replace(group.problem.epilogue, lo=lo, hi=hi), {})


Rule = Callable[[Matcher, relax.VarBinding], Group | None]
_ANCHORS: dict[str, Rule] = {
    "nybble.conv2d": _integer_anchor,
    "nybble.linear": _integer_anchor,
    "nybble.sum_pool2d": _sum_pool,
    "nybble.quantize": _quantize,
    "relax.nn.conv2d": _float_conv2d,
    "relax.matmul": _float_matmul,
}
_OTHERS: dict[str, Rule] = {
    "nybble.requantize": _requantize,
    "nybble.add": _add,
    "nybble.dequantize": _border,
    "nybble.max_pool2d": _plain,
}
