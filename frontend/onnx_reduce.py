"""Reductions and normalizations of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from nybble.frontend import extents
from nybble.frontend.build import Builder, Value, dtype_of
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_node import Node

Convert = Callable[[Node, Builder], Value]
Step = Callable[[Node, Value], Value]


# ---------------------------------------------------------------- reductions


def _axes(node: Node) -> list[int] | None:
    """The axes that are reduced; None means nothing at all."""
    rank, axes = extents.rank(node.input(0)), node.numbers(1, "axes")
    if axes:
        return sorted({axis % rank for axis in axes})
    return None if node.attr("noop_with_empty_axes", 0) else list(range(rank))


def _reduction(op: str, before: Step | None = None, after: Step | None = None) -> Convert:
    """``after(op(before(x)))``."""

    def convert(node: Node, build: Builder) -> Value:
        x, axes = node.input(0), _axes(node)
        x = x if before is None else before(node, x)
        if axes is not None:
            x = _reduced(node, build, op, x, axes)
        return x if after is None else after(node, x)

    return convert


def _reduced(node: Node, build: Builder, op: str, x: Value, axes: list[int]) -> Value:
    keep, dtype = bool(node.attr("keepdims", 1)), dtype_of(x)
    x = build.cast(x, "int8", f"{node.name}.integers") if dtype == "bool" else x
    return build.cast(build.emit(getattr(relax.op, op)(x, axes, keep), node.name), dtype, node.name)


def _reduce_mean(node: Node, build: Builder) -> Value:
    axes = _axes(node)
    if axes is None:
        return node.input(0)
    return build.mean(node.input(0), axes, bool(node.attr("keepdims", 1)), node.name)


def _reduce_log_sum_exp(node: Node, build: Builder) -> Value:
    """Max + log Σ e^(x - max), which does not overflow."""
    x, axes = node.input(0), _axes(node)
    if axes is None:
        return x
    most = build.emit(relax.op.max(x, axes, True), f"{node.name}.max")
    powers = node.op("Exp.powers", node.op("Sub.centred", x, most))
    total = build.emit(relax.op.sum(powers, axes, True), f"{node.name}.sum")
    result = node.op("Add.result", node.op("Log", total), most)
    return result if node.attr("keepdims", 1) else build.squeeze(result, axes, node.name)


def _square(node: Node, x: Value) -> Value:
    return node.op("Mul.square", x, x)


# ---------------------------------------------------------------- softmax


def _softmax(function: Callable[..., Any]) -> Convert:
    """Softmax and LogSoftmax."""

    def convert(node: Node, build: Builder) -> Value:
        x = node.input(0)
        sizes = extents.shape(x)
        axis = node.attr("axis", -1 if node.opset >= 13 else 1) % len(sizes)
        if node.opset >= 13 or axis == len(sizes) - 1:
            return build.emit(function(x, axis), node.name)
        # before opset 13 the axes from ``axis`` on are one
        rows = build.reshape(x, [*sizes[:axis], prod(sizes[axis:])], f"{node.name}.rows")
        return build.reshape(
            build.emit(function(rows, axis), node.name), sizes, f"{node.name}.shape"
        )

    return convert


# ---------------------------------------------------------------- normalizations


def _layer_norm(node: Node, build: Builder) -> Value:
    x, scale, bias = node.input(0), node.input(1), node.input(2)
    sizes = extents.shape(x)
    axis = node.attr("axis", -1) % len(sizes)
    axes, epsilon = list(range(axis, len(sizes))), node.attr("epsilon", 1e-5)
    if any(node.read[1:]):
        return _spelled_norm(node, build, axes, epsilon)
    return normal(node, build, [x, scale, bias], axes, epsilon)


def normal(
    node: Node, build: Builder, values: list[Value], axes: list[int], epsilon: float
) -> Value:
    """Layer normalization of (x, scale, bias or None) over the last axes."""
    x, scale, bias = values
    sizes = extents.shape(x)[axes[0] :]
    known = all(isinstance(size, int) for size in sizes)
    same = extents.shape(scale) == sizes and (bias is None or extents.shape(bias) == sizes)
    if not known or not same:
        plain = [np.ones(sizes, np.float32), np.zeros(sizes, np.float32)]  # type: ignore[arg-type]
        y = normal(node, build, [x, *plain], axes, epsilon)
        y = node.op("Mul.scale", y, scale)
        return y if bias is None else node.op("Add.bias", y, bias)
    shift = np.zeros(sizes, np.float32) if bias is None else bias  # type: ignore[arg-type]
    operands = [build.tensor(v, node.name) for v in (x, scale, shift)]
    return build.emit(relax.op.nn.layer_norm(*operands, axes, epsilon), node.name)


def _spelled_norm(node: Node, build: Builder, axes: list[int], epsilon: float) -> Value:
    """Layer normalization step by step, for those who read its mean and deviation too."""
    x, scale, bias = node.input(0), node.input(1), node.input(2)
    mean = build.mean(x, axes, True, f"{node.name}.mean")
    centred = node.op("Sub.centred", x, mean)
    variance = build.mean(node.op("Mul.square", centred, centred), axes, True, f"{node.name}.var")
    deviation = node.op("Sqrt.deviation", node.op("Add.epsilon", variance, float(epsilon)))
    inverse = node.op("Reciprocal.inverse", deviation)
    y = node.op("Mul.scale", node.op("Mul.normal", centred, inverse), scale)
    return y if bias is None else node.op("Add.bias", y, bias), mean, inverse


def rms_normal(node: Node, build: Builder, x: Value, scale: Value, axis: int) -> Value:
    """The quotient x / √(mean(x²) + ε) · scale over the axes from ``axis`` on."""
    sizes = extents.shape(x)
    axes = list(range(axis % len(sizes), len(sizes)))
    if len(axes) == len(sizes):  # nothing is left to run along
        square = build.mean(node.op("Mul.square", x, x), axes, True, f"{node.name}.mean")
        root = node.op(
            "Sqrt.root", node.op("Add.epsilon", square, float(node.attr("epsilon", 1e-5)))
        )
        return node.op("Mul.scale", node.op("Div.normal", x, root), scale)
    if extents.shape(scale) != sizes[axes[0] :]:
        ones = np.ones(sizes[axes[0] :], np.float32)  # type: ignore[arg-type]
        return node.op("Mul.scale", rms_normal(node, build, x, ones, axis), scale)
    operands = [build.tensor(v, node.name) for v in (x, scale)]
    call = relax.op.nn.rms_norm(*operands, axes, node.attr("epsilon", 1e-5))
    return build.emit(call, node.name)


def _rms_norm(node: Node, build: Builder) -> Value:
    return rms_normal(node, build, node.inputs[0], node.inputs[1], node.attr("axis", -1))


def _group_norm(node: Node, build: Builder) -> Value:
    """Normalizes groups of channels; scale and bias are one for each group before opset 21."""
    x, scale, bias = node.inputs
    groups = node.attrs["num_groups"]
    y = _in_groups(node, build, x, groups)
    if extents.shape(scale) == [groups] and groups != extents.shape(x)[1]:
        repeats = extents.shape(x)[1] // groups
        scale, bias = (_repeated(node, v, repeats) for v in (scale, bias))
    return _per_channel(node, y, scale, bias)


def _repeated(node: Node, value: Value, repeats: Any) -> Value:
    column = node.op("Unsqueeze.column", value, np.array([1]))
    tiled = node.op("Tile.every", column, np.array([1, repeats]))
    return node.op("Reshape.channels", tiled, np.array([-1]))


def _instance_norm(node: Node, build: Builder) -> Value:
    x, scale, bias = node.inputs
    return _per_channel(node, _in_groups(node, build, x, extents.shape(x)[1]), scale, bias)


def _in_groups(node: Node, build: Builder, x: Value, groups: Any) -> Value:
    """Every group of channels with mean 0 and variance 1."""
    sizes = extents.shape(x)
    split = build.reshape(x, [sizes[0], groups, -1], f"{node.name}.groups")
    mean = build.mean(split, [2], True, f"{node.name}.mean")
    centred = node.op("Sub.centred", split, mean)
    variance = build.mean(node.op("Mul.square", centred, centred), [2], True, f"{node.name}.var")
    deviation = node.op("Sqrt.deviation", node.op("Add.epsilon", variance,
                                                  float(node.attr("epsilon", 1e-5))))  # fmt: skip
    return build.reshape(node.op("Div.normal", centred, deviation), sizes, f"{node.name}.back")


def _per_channel(node: Node, y: Value, scale: Value, bias: Value) -> Value:
    column = np.array([-1, *[1] * (extents.rank(y) - 2)])
    scale, bias = (node.op("Reshape.column", v, column) for v in (scale, bias))
    return node.op("Add.bias", node.op("Mul.scale", y, scale), bias)


def _lp_norm(node: Node, build: Builder) -> Value:
    """The quotient x / ‖x‖ along an axis; where the norm is 0 the result is 0."""
    x, axis = node.input(0), np.array([node.attr("axis", -1)])
    norm = node.op("ReduceL1" if node.attr("p", 2) == 1 else "ReduceL2", x, axis)
    empty = build.binary("equal", norm, 0, f"{node.name}.empty")
    safe = build.where(empty, np.float32(1), norm, f"{node.name}.safe")
    return build.binary("divide", x, safe, node.name)


def _lrn(node: Node, build: Builder) -> Value:
    """Divides by (bias + alpha·mean of the squares of the neighbouring channels)^beta."""
    x, size = node.input(0), node.attrs["size"]
    sizes = extents.shape(x)
    if len(sizes) < 3:
        raise Refused("needs channels with spatial axes")
    square = node.op("Mul.square", x, x)
    plane = build.reshape(square, [sizes[0], 1, sizes[1], -1], f"{node.name}.plane")
    around = [(size - 1) // 2, 0, size // 2, 0]
    mean = node.op("AveragePool.mean", plane, kernel_shape=[size, 1], pads=around,
                   count_include_pad=1)  # fmt: skip
    mean = build.reshape(mean, sizes, f"{node.name}.back")
    base = node.op("Add.base", node.op("Mul.alpha", mean, float(node.attr("alpha", 1e-4))),
                   float(node.attr("bias", 1.0)))  # fmt: skip
    return node.op("Div", x, node.op("Pow.beta", base, float(node.attr("beta", 0.75))))


REDUCE: dict[str, Convert] = {
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax(relax.op.nn.log_softmax),
    "LpNormalization": _lp_norm,
    "RMSNormalization": _rms_norm,
    "ReduceL1": _reduction("sum", before=lambda node, x: node.op("Abs", x)),
    "ReduceL2": _reduction("sum", _square, lambda node, x: node.op("Sqrt", x)),
    "ReduceLogSum": _reduction("sum", after=lambda node, x: node.op("Log", x)),
    "ReduceLogSumExp": _reduce_log_sum_exp,
    "ReduceMax": _reduction("max"),
    "ReduceMean": _reduce_mean,
    "ReduceMin": _reduction("min"),
    "ReduceProd": _reduction("prod"),
    "ReduceSum": _reduction("sum"),
    "ReduceSumSquare": _reduction("sum", _square),
    "Softmax": _softmax(relax.op.nn.softmax),
}
"""Operators by name."""
