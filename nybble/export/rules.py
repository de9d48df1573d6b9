"""How each op of a quantized module is written in ONNX.

A rule adds nodes and returns the order of axes and the tensor of its result.
"""

from __future__ import annotations

import numpy as np

from nybble.export import borders, layers
from nybble.export.borders import clipped, move
from nybble.export.walk import Form, Order, Rule, Step, Walk
from nybble.ir import graph
from nybble.passes.channels_last import FIRST, LAST


def _read(walk: Walk, step: Step) -> tuple[Order, list[str]]:
    """All operands in one order."""
    order = walk.common(step.operands)
    return order, [walk.get(t, order, f"{step.name}.constant") for t in step.operands]


def _elementwise(op: str) -> Rule:
    def rule(walk: Walk, step: Step) -> Form:
        order, tensors = _read(walk, step)
        return order, walk.graph.node(op, tensors, step.name, **step.attrs)

    return rule


def _clip(walk: Walk, step: Step) -> Form:
    order, tensors = _read(walk, step)
    bounds = (float(graph.plain(bound)) for bound in step.call.args[1:])
    return order, clipped(walk, tensors[0], step.name, *bounds)


def _silu(walk: Walk, step: Step) -> Form:
    order, (x,) = _read(walk, step)
    gate = walk.graph.node("Sigmoid", [x], f"{step.name}.sigmoid")
    return order, walk.graph.node("Mul", [x, gate], step.name)


def _axis(step: Step, order: Order, axis: int) -> int:
    """An axis of the module's tensor in the ONNX tensor."""
    axis %= len(graph.shape_of(step.operands[0]))
    return LAST[axis] if order == "nchw" else axis


def _along(op: str) -> Rule:
    def rule(walk: Walk, step: Step) -> Form:
        order, tensors = _read(walk, step)
        axis = _axis(step, order, step.attrs["axis"])
        return order, walk.graph.node(op, tensors, step.name, axis=axis)

    return rule


# ---------------------------------------------------------------- pools and means


def _image(walk: Walk, step: Step) -> tuple[Order, str]:
    order: Order = "nchw" if step.attrs["layout"] == "NHWC" else "own"
    return order, walk.get(step.operands[0], order, f"{step.name}.constant")


def _pool(op: str) -> Rule:
    def rule(walk: Walk, step: Step) -> Form:
        attrs, (order, x) = step.attrs, _image(walk, step)
        if attrs["ceil_mode"]:
            step.refuse("has ceil_mode, which Nybble spells out as padding before this")
        own = {"dilations": attrs["dilation"]} if set(attrs["dilation"]) != {1} else {}
        if op == "AveragePool":  # ONNX Runtime's integer form knows no dilations, not even of 1
            own["count_include_pad"] = int(attrs["count_include_pad"])
        made = walk.graph.node(
            op, [x], step.name,
            kernel_shape=attrs["pool_size"], strides=attrs["strides"], pads=attrs["padding"], **own,
        )  # fmt: skip
        return order, made

    return rule


def _adaptive(walk: Walk, step: Step) -> Form:
    order, x = _image(walk, step)
    extents = graph.shape_of(step.operands[0])
    height, width = extents[1:3] if order == "nchw" else extents[2:]
    rows, columns = step.attrs["output_size"]
    if (rows, columns) == (1, 1):
        return order, walk.graph.node("GlobalAveragePool", [x], step.name)
    if isinstance(height, str) or isinstance(width, str) or height % rows or width % columns:
        step.refuse(f"averages {height}x{width} pixels to {rows}x{columns} cells of unequal size")
    size = (height // rows, width // columns)
    return order, walk.graph.node("AveragePool", [x], step.name, kernel_shape=size, strides=size)


def _mean(walk: Walk, step: Step) -> Form:
    x, attrs = step.operands[0], step.attrs
    rank = len(graph.shape_of(x))
    axes = sorted(a % rank for a in attrs["axis"] or range(rank))
    free = attrs["keepdims"] or {1, 2} <= set(axes)  # what is left has one order
    order = walk.common([x]) if free else "own"
    inputs = [walk.get(x, order, f"{step.name}.constant")]
    moved = np.array(sorted(_axis(step, order, a) for a in axes), np.int64)
    inputs.append(walk.graph.constant(moved, f"{step.name}.axes"))
    keep = int(attrs["keepdims"])
    made = walk.graph.node("ReduceMean", inputs, step.name, keepdims=keep)
    return (order if keep else "own"), made


# ---------------------------------------------------------------- shuffles


def _reshape(walk: Walk, step: Step) -> Form:
    x, shape = step.operands[0], graph.shape_of(step.operands[0])
    is_pixel = len(shape) == 4 and shape[1:3] == (1, 1)  # both orders are the same memory
    order: Order = walk.common([x]) if is_pixel else "own"
    target = [int(d) if isinstance(d, int) else -1 for d in graph.shape_of(step.call)]
    if target.count(-1) > 1:
        step.refuse("makes a shape with more than one open extent")
    inputs = [
        walk.get(x, order, f"{step.name}.constant"),
        walk.graph.constant(np.array(target, np.int64), f"{step.name}.shape"),
    ]
    return "own", walk.graph.node("Reshape", inputs, step.name)


def _permute(walk: Walk, step: Step) -> Form:
    """Nothing where the result, or the operand, is already there in the other order."""
    x, rank = step.operands[0], len(graph.shape_of(step.operands[0]))
    axes = [a % rank for a in step.attrs["axes"] or reversed(range(rank))]
    order = walk.common([x])
    if order == "nchw":
        axes = [LAST[a] for a in axes]
    tensor = walk.get(x, order, f"{step.name}.constant")
    if axes == list(range(rank)):
        return "own", tensor
    if order == "own" and axes == list(LAST):
        return "nchw", tensor
    return "own", walk.graph.node("Transpose", [tensor], step.name, perm=axes)


def _squeeze(walk: Walk, step: Step) -> Form:
    x, axes = step.operands[0], step.attrs["axis"]
    inputs = [walk.get(x, "own", f"{step.name}.constant")]
    if axes is not None:
        inputs.append(walk.graph.constant(np.array(axes, np.int64), f"{step.name}.axes"))
    return "own", walk.graph.node("Squeeze", inputs, step.name)


def _pad(walk: Walk, step: Step) -> Form:
    attrs = step.attrs
    if attrs["pad_mode"] != "constant":
        step.refuse(f"pads by '{attrs['pad_mode']}'; only constants have a form here")
    order, (x,) = _read(walk, step)
    width = attrs["pad_width"]
    pairs = list(zip(width[::2], width[1::2], strict=True))
    if order == "nchw":
        pairs = [pairs[axis] for axis in FIRST]
    pads = np.array([before for before, _ in pairs] + [after for _, after in pairs], np.int64)
    inputs = [
        x,
        walk.graph.constant(pads, f"{step.name}.pads"),
        walk.graph.constant(np.float32(attrs["pad_value"]), f"{step.name}.value"),
    ]
    return order, walk.graph.node("Pad", inputs, step.name)


RULES: dict[str, Rule] = {
    "nybble.quantize": borders.quantize,
    "nybble.dequantize": borders.dequantize,
    "nybble.weight_only": layers.weight_only,
    "nybble.row_tops": layers.rows,
    "nybble.quantize_rows": layers.rows,
    "nybble.linear": layers.rows,
    "nybble.rescale_rows": layers.rescale_rows,
    "relax.nn.conv2d": layers.conv2d,
    "relax.matmul": layers.matmul,
    "relax.add": borders.residual,
    "relax.subtract": _elementwise("Sub"),
    "relax.multiply": _elementwise("Mul"),
    "relax.divide": _elementwise("Div"),
    "relax.maximum": _elementwise("Max"),
    "relax.minimum": _elementwise("Min"),
    "relax.nn.relu": _elementwise("Relu"),
    "relax.nn.leakyrelu": _elementwise("LeakyRelu"),  # both call it alpha
    "relax.clip": _clip,
    "relax.sigmoid": _elementwise("Sigmoid"),
    "relax.tanh": _elementwise("Tanh"),
    "relax.exp": _elementwise("Exp"),
    "relax.nn.silu": _silu,
    "relax.nn.softmax": _along("Softmax"),
    "relax.nn.max_pool2d": move(_pool("MaxPool")),
    "relax.nn.avg_pool2d": _pool("AveragePool"),
    "relax.nn.adaptive_avg_pool2d": _adaptive,
    "relax.mean": _mean,
    "relax.concat": _along("Concat"),
    "relax.reshape": move(_reshape),
    "relax.permute_dims": move(_permute),
    "relax.squeeze": move(_squeeze),
    "relax.nn.pad": _pad,
}
