"""ONNX operators as float Relax: one small function for each, opsets 7 and up."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from nybble.frontend import extents
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused, Window
from nybble.frontend.onnx_node import Node

Convert = Callable[[Node, Builder], Value]


# ---------------------------------------------------------------- layers with weights


def _conv(node: Node, build: Builder) -> Value:
    weight = node.constant(1)
    assert weight is not None
    if extents.rank(node.input(0)) != 4 or weight.ndim != 4:
        raise Refused("only 2-D convolutions are supported")
    size = (weight.shape[2], weight.shape[3])
    if tuple(node.attrs.get("kernel_shape", size)) != size:
        raise Refused(f"kernel_shape {node.attrs['kernel_shape']} is not that of the weights")
    window = _window(node, size)
    attrs = {
        "strides": window.strides, "padding": window.padding,
        "dilation": window.dilation, "groups": node.attrs.get("group", 1),
    }  # fmt: skip
    return build.conv2d([node.input(0), weight, node.constant(2)], attrs, node.name)


def _gemm(node: Node, build: Builder) -> Value:
    x, weight, bias = node.input(0), build.weights(node.input(1), "operand B"), node.input(2)
    if node.attrs.get("transA", 0):
        x = build.transpose(x, (1, 0), f"{node.name}.transpose")
    if node.attrs.get("transB", 0):
        weight = weight.T
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    weight = weight if alpha == 1 else weight * np.float32(alpha)
    if bias is not None and beta != 1:
        is_var = isinstance(bias, relax.Var)
        bias = build.binary("multiply", bias, beta, f"{node.name}.beta") if is_var else bias * beta
    if isinstance(bias, np.ndarray) and prod(bias.shape[:-1]) == 1:
        bias = np.broadcast_to(bias.reshape(-1), (weight.shape[1],))
    return build.linear(x, weight, bias, node.name)


def _matmul(node: Node, build: Builder) -> Value:
    return build.linear(node.input(0), node.constant(1), None, node.name)


def _batch_norm(node: Node, build: Builder) -> Value:
    if node.attrs.get("training_mode", 0):
        raise Refused("is in training mode; export the network in eval mode")
    if not node.attrs.get("spatial", 1):
        raise Refused("spatial=0 is not supported")
    moments = [node.constant(i) for i in range(1, 5)]
    return build.batch_norm(node.input(0), moments, node.attrs.get("epsilon", 1e-5), node.name)


# ---------------------------------------------------------------- windows


def _window(node: Node, size: tuple[int, int]) -> Window:
    """Strides, padding (explicit or auto_pad) and dilation of a convolution or pooling."""
    attrs = node.attrs
    top, left, bottom, right = attrs.get("pads", (0, 0, 0, 0))
    window = Window(
        size,
        tuple(attrs.get("strides", (1, 1))),
        (top, left, bottom, right),
        tuple(attrs.get("dilations", (1, 1))),
        bool(attrs.get("ceil_mode", 0)),
    )
    mode = attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        if min(window.padding) < 0:
            raise Refused("negative padding is not supported")
        return window
    height, width = extents.image(node.input(0))
    if mode == "VALID":
        padding = (0, 0, 0, 0)
    elif mode in {"SAME_UPPER", "SAME_LOWER"}:
        padding = window.same_padding(height, width, upper=mode == "SAME_UPPER")
    else:
        raise Refused(f"auto_pad '{mode}' is unknown")
    return Window(size, window.strides, padding, window.dilation, window.ceil_mode)


def _pool_window(node: Node) -> Window:
    size = tuple(node.attrs["kernel_shape"])
    if len(size) != 2:
        raise Refused("only 2-D pooling is supported")
    return _window(node, size)


def _max_pool(node: Node, build: Builder) -> Value:
    return build.max_pool2d(node.input(0), _pool_window(node), node.name)


def _average_pool(node: Node, build: Builder) -> Value:
    counted = bool(node.attrs.get("count_include_pad", 0))
    return build.avg_pool2d(node.input(0), _pool_window(node), counted, node.name)


def _global_average_pool(node: Node, build: Builder) -> Value:
    axes = range(2, extents.rank(node.input(0)))
    return build.mean(node.input(0), axes, True, node.name)


def _reduce_mean(node: Node, build: Builder) -> Value:
    axes = node.numbers(1, "axes")
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return node.input(0)
    return build.mean(node.input(0), axes, bool(node.attrs.get("keepdims", 1)), node.name)


# ---------------------------------------------------------------- element-wise


def _binary(op: str) -> Convert:
    return lambda node, build: build.binary(op, node.input(0), node.input(1), node.name)


def _variadic(op: str) -> Convert:
    def convert(node: Node, build: Builder) -> Value:
        result, *others = sorted(node.inputs, key=lambda v: not isinstance(v, relax.Var))
        for other in others:
            result = build.binary(op, result, other, node.name)
        return result

    return convert


def _unary(function: Callable[[Any], Any]) -> Convert:
    return lambda node, build: build.emit(function(node.input(0)), node.name)


def _clip(node: Node, build: Builder) -> Value:
    low, high = (
        node.attrs[name] if name in node.attrs else node.scalar(index)
        for index, name in ((1, "min"), (2, "max"))
    )
    return build.clip(node.input(0), low, high, node.name)


def _leaky_relu(node: Node, build: Builder) -> Value:
    alpha = node.attrs.get("alpha", 0.01)
    return build.emit(relax.op.nn.leakyrelu(node.input(0), alpha), node.name)


def _hard_sigmoid(node: Node, build: Builder) -> Value:
    alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    return build.hard_sigmoid(node.input(0), alpha, beta, node.name)


def _softmax(node: Node, build: Builder) -> Value:
    x = node.input(0)
    sizes = extents.shape(x)
    if node.opset >= 13:
        return build.softmax(x, node.attrs.get("axis", -1), node.name)
    axis = node.attrs.get("axis", 1) % len(sizes)
    if axis == len(sizes) - 1:
        return build.softmax(x, axis, node.name)
    # before opset 13 the axes from ``axis`` on are one
    rows = build.reshape(x, [*sizes[:axis], prod(sizes[axis:])], f"{node.name}.rows")
    return build.reshape(build.softmax(rows, axis, node.name), sizes, f"{node.name}.shape")


def _cast(node: Node, _build: Builder) -> Value:
    if node.attrs["to"] != 1:  # TensorProto.FLOAT
        raise Refused("casts an activation to another dtype than float32")
    return node.input(0)


def _dropout(node: Node, _build: Builder) -> Value:
    training = node.constant(2)
    if training is not None and training.any():
        raise Refused("is in training mode; export the network in eval mode")
    return node.input(0)


# ---------------------------------------------------------------- structure


def _pad(node: Node, build: Builder) -> Value:
    mode = node.attrs.get("mode", "constant")
    if mode != "constant":
        raise Refused(f"mode '{mode}' is not supported, only 'constant'")
    x, pads = node.input(0), node.numbers(1, "pads")
    value = node.attrs["value"] if "value" in node.attrs else node.scalar(2)
    rank = extents.rank(x)
    axes = node.numbers(3, "axes") or list(range(rank))
    if pads is None or len(pads) != 2 * len(axes):
        raise Refused(f"pads {pads} do not fit {len(axes)} axes")
    widths = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        widths[2 * (axis % rank)] = pads[place]
        widths[2 * (axis % rank) + 1] = pads[place + len(axes)]
    return build.pad(x, widths, value or 0.0, node.name)


def _concat(node: Node, build: Builder) -> Value:
    return build.concat(node.inputs, node.attrs["axis"], node.name)


def _flatten(node: Node, build: Builder) -> Value:
    sizes = extents.shape(node.input(0))
    axis = node.attrs.get("axis", 1)
    axis += len(sizes) if axis < 0 else 0
    return build.reshape(node.input(0), [prod(sizes[:axis]), prod(sizes[axis:])], node.name)


def _reshape(node: Node, build: Builder) -> Value:
    before, target = extents.shape(node.input(0)), node.constant(1)
    assert target is not None
    after = list(target.reshape(-1))
    if not node.attrs.get("allowzero", 0):
        after = [before[axis] if size == 0 else size for axis, size in enumerate(after)]
    return build.reshape(node.input(0), after, node.name)


def _transpose(node: Node, build: Builder) -> Value:
    axes = node.attrs.get("perm") or range(extents.rank(node.input(0)))[::-1]
    return build.transpose(node.input(0), axes, node.name)


def _squeeze(node: Node, build: Builder) -> Value:
    return build.squeeze(node.input(0), node.numbers(1, "axes"), node.name)


def _unsqueeze(node: Node, build: Builder) -> Value:
    return build.unsqueeze(node.input(0), node.numbers(1, "axes") or [], node.name)


CONVERTERS: dict[str, Convert] = {
    "Add": _binary("add"),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _binary("divide"),
    "Dropout": _dropout,
    "Exp": _unary(relax.op.exp),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node, build: build.hard_swish(node.input(0), node.name),
    "Identity": lambda node, _build: node.input(0),
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "Max": _variadic("maximum"),
    "MaxPool": _max_pool,
    "Min": _variadic("minimum"),
    "Mul": _binary("multiply"),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": lambda node, build: build.relu(node.input(0), node.name),
    "Reshape": _reshape,
    "Sigmoid": _unary(relax.op.sigmoid),
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _binary("subtract"),
    "Sum": _variadic("add"),
    "Tanh": _unary(relax.op.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
