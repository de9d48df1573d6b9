"""Convolutions and linear layers, their weights and biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nybble.export.walk import Form, Order, Step, Walk, holder_of
from nybble.ir import graph


def conv2d(walk: Walk, step: Step) -> Form:
    """Conv, on NCHW."""
    attrs = step.attrs
    orders: dict[str, Order] = {"NHWC": "nchw", "NCHW": "own", "OHWI": "nchw", "OIHW": "own"}
    if not {attrs["data_layout"], attrs["kernel_layout"]} <= set(orders):
        step.refuse(f"has the layouts {attrs['data_layout']} and {attrs['kernel_layout']}")
    order, (x, w) = orders[attrs["data_layout"]], step.operands
    tensors = [
        walk.get(x, order, f"{step.name}.constant"),
        walk.get(w, orders[attrs["kernel_layout"]], f"{step.name}.weight"),
        *_bias(walk, step),
    ]
    made = walk.graph.node(
        "Conv", tensors, step.name,
        strides=attrs["strides"], pads=attrs["padding"], dilations=attrs["dilation"],
        group=attrs["groups"],
    )  # fmt: skip
    return order, made


def matmul(walk: Walk, step: Step) -> Form:
    """Gemm where a bias follows: with it ONNX Runtime computes in integers."""
    bias = _bias(walk, step)
    x = walk.get(step.operands[0], "own", f"{step.name}.constant")
    w = walk.get(step.operands[1], "own", f"{step.name}.weight")
    return "own", walk.graph.node("Gemm" if bias else "MatMul", [x, w, *bias], step.name)


def _bias(walk: Walk, step: Step) -> list[str]:
    """A layer's bias: int32 in steps of both scales, as deployed; float32 if the layer is float."""
    if step.name not in walk.biases:
        return []
    name = walk.biases[step.name]
    values = walk.bias(step.name, name)
    assert values is not None  # or it were no bias
    scales = [walk.scales(x) for x in step.operands]
    if scales[0] is None or scales[1] is None:
        return [walk.graph.constant(values.astype(np.float32), name)]
    scale = np.broadcast_to(scales[0] * scales[1], values.shape)
    steps = np.rint(values / scale)  # deployed, their sums were proven to fit
    tensors = [
        walk.graph.constant(steps, f"{name}.integers", "int32"),
        walk.graph.constant(scale, f"{name}.scale", "float32"),
    ]
    return [walk.graph.node("DequantizeLinear", tensors, name, axis=0)]


def weight_only(walk: Walk, step: Step) -> Form:
    """The weights of a linear layer with a scale per group; activations in float, not rounded."""
    return _rounded(walk, step, step.operands, step.attrs["group"])


def rows(walk: Walk, step: Step) -> Form:
    """Rows, and their integers, are the floats that they come from: not rounded either."""
    x = step.operands[0]
    return "own", walk.get(x, "own", f"{step.name}.constant")


def rescale_rows(walk: Walk, step: Step) -> Form:
    """A layer whose activations are quantized at run time, as `weight_only`."""
    sums, _, scale, bias = step.operands
    x, w, _ = walk.view.calls[str(sums.name)].args
    column = graph.numpy_of(scale).reshape(-1, 1)
    zeros = graph.constant(np.zeros(column.shape, np.int32))
    return _rounded(walk, step, [x, w, graph.constant(column), zeros, bias], 0)


def _rounded(walk: Walk, step: Step, operands: Sequence[Any], group: int) -> Form:
    x, (w, scale, zero, bias) = operands[0], map(graph.numpy_of, operands[1:])
    holder, groups = holder_of(graph.dtype_of(operands[1])), scale.shape[1]
    blocks = {"axis": 0, "block_size": group} if groups > 1 else {"axis": 1}
    shape = scale.T.shape if groups > 1 else (-1,)
    weight = f"{step.name}.weight"
    tensors = [
        walk.graph.constant(w.T, f"{weight}.integers", holder),
        walk.graph.constant(scale.T.reshape(shape), f"{weight}.scale"),
        walk.graph.constant(zero.T.reshape(shape), f"{weight}.zero_point", holder),
    ]
    real = walk.graph.node("DequantizeLinear", tensors, weight, **blocks)
    product = walk.graph.node("MatMul", [walk.get(x, "own", ""), real], step.name)
    if not np.any(bias):
        return "own", product
    added = walk.graph.constant(bias, f"{step.name}.bias")
    return "own", walk.graph.node("Add", [product, added], f"{step.name}.bias")
