"""Rules for float layers: conv2d | matmul -> add(bias) -> add(other) -> relu | clip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph
from nybble.schedules.cpu import stock
from nybble.schedules.group import Group, Matcher, fused, is_reshape, spec_of, vector
from nybble.schedules.kernel import Epilogue, Problem, TensorSpec
from nybble.schedules.target import CpuTarget

_CONV_LAYOUT = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}


def conv2d(matcher: Matcher, binding: relax.VarBinding) -> Group | None:
    """Convolution of NHWC by a constant in OHWI, with what follows; None for other layouts."""
    call, attrs = binding.value, graph.attributes(binding.value)
    is_canonical = all(attrs[key] == layout for key, layout in _CONV_LAYOUT.items())
    if not is_canonical or not _is_float32(binding.var) or not graph.is_constant(call.args[1]):
        return None
    kept = ("dilation", "groups", "padding", "strides")
    return _float_group(
        matcher, binding, "conv2d", graph.numpy_of(call.args[1]),
        (*((k, attrs[k]) for k in kept[:2]), ("pad_value", 0), *((k, attrs[k]) for k in kept[2:])),
    )  # fmt: skip


def matmul(matcher: Matcher, binding: relax.VarBinding) -> Group | None:
    """Product with a constant (K, O), with what follows; None for other products."""
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
    return with_sum_and_clamp(matcher, _with_bias(matcher, group) or group)


def with_sum_and_clamp(matcher: Matcher, group: Group) -> Group:
    """The group with the residual add and the clamp behind it, as far as they are there."""
    group = _with_other(matcher, group) or group
    return _with_clamp(matcher, group) or group


def _with_bias(matcher: Matcher, group: Group) -> Group | None:
    reader = matcher.follower(group.bindings[-1], "relax.add")
    beside = reader and _beside(reader, group)
    if beside is None or not graph.is_constant(beside):
        return None
    assert reader is not None
    values, channels = graph.numpy_of(beside), graph.shape_of(group.output)[-1]
    if graph.shape_of(reader.var) != graph.shape_of(group.output):
        return None  # the constant widens the shape
    if values.size not in (1, channels) or values.shape[-1:] not in ((), (1,), (channels,)):
        return None
    assert group.problem is not None
    bias = vector(values, channels, str(reader.var.name), "bias")
    return fused(group, reader, group.problem.epilogue, {"bias": bias})


def _with_other(matcher: Matcher, group: Group) -> Group | None:
    reader = matcher.follower(group.bindings[-1], "relax.add")
    beside = reader and _beside(reader, group)
    if beside is None or graph.shape_of(beside) != graph.shape_of(group.output):
        return None
    assert group.problem is not None
    epilogue = replace(group.problem.epilogue, other=spec_of(beside))
    return fused(group, reader, epilogue, {}, beside)


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
    return fused(group, reader, replace(group.problem.epilogue, lo=lo, hi=hi), {})


def max_pool2d(_matcher: Matcher, binding: relax.VarBinding) -> Group | None:
    """Maximum pooling of NHWC; None for other layouts and for rounding up."""
    call, attrs = binding.value, graph.attributes(binding.value)
    if attrs["layout"] != "NHWC" or attrs["ceil_mode"] or not _is_float32(binding.var):
        return None
    kept = ("dilation", "padding", "pool_size", "strides")
    problem = Problem(
        "max_pool2d", (spec_of(call.args[0]),), spec_of(binding.var),
        tuple((key, attrs[key]) for key in kept),
    )  # fmt: skip
    return Group((binding,), problem, (call.args[0],))


def leftover(matcher: Matcher, binding: relax.VarBinding) -> Group:
    """A call that no rule took: a layer with knobs of its own on CPUs, where it is one."""
    if isinstance(matcher.target, CpuTarget) and not is_reshape(binding.value):
        found = stock.problem_of(binding.value)
        if found is not None:
            return Group((binding,), *found)
    return Group((binding,))
