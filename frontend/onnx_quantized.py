"""Quantized operators of ONNX (QDQ and QOperator) as float operators between borders.

Every one is dequantize -> the float operator's own translation -> quantize, with the scales and
zero points of the file; `nybble.passes.to_integer` makes integers of them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto
from tvm import relax

from nybble.frontend import quantized
from nybble.frontend.build import Builder, Value, dtype_of
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_nbits import dynamic_quantize_matmul, matmul_nbits
from nybble.frontend.onnx_node import Node
from nybble.frontend.onnx_ops import CONVERTERS
from nybble.frontend.stored import Affine, Stored, affine, stored

Convert = Callable[[Node, Builder], Value]


def _affine(node: Node, index: int, axis: int = 0, block: int = 0) -> Affine:
    """Scale and zero point from operands ``index`` and ``index + 1``."""
    scale = node.constant(index)
    if scale is None:
        raise Refused(f"its scale (operand {index}) is missing")
    return affine(scale, node.constant(index + 1), axis, block)


def _dequantized(build: Builder, node: Node, index: int, axis: int = 0) -> Value:
    """Operand ``index`` as float; its scale and zero point are the next two operands."""
    name = f"{node.name}.{index}.dequantize"
    return quantized.dequantize(build, node.input(index), _affine(node, index + 1, axis), name)


def _as(op: str, node: Node, inputs: Sequence[Value], build: Builder) -> Value:
    """The float operator's translation on these operands."""
    return CONVERTERS[op](replace(node, inputs=list(inputs)), build)


def _quantized(build: Builder, node: Node, y: Value, index: int) -> Value:
    """A result on the grid that operands ``index`` and ``index + 1`` give."""
    zero = node.constant(index + 1)
    dtype = "uint8" if zero is None else quantized.type_of(zero)
    on = _affine(node, index)
    if not on.is_single:
        raise Refused("its result has more than one scale")
    return quantized.quantize(build, y, on, dtype, f"{node.name}.quantize")


def _bias(scales: Sequence[Affine], bias: Any) -> Value | None:
    """An int32 bias in steps of both operands' scales."""
    if bias is None:
        return None
    steps = np.asarray(scales[0].scale * scales[1].scale, np.float32).reshape(-1)
    steps = np.array(np.broadcast_to(steps, (int(np.size(bias)),)))
    return stored(np.asarray(bias).reshape(-1), affine(steps))


# ---------------------------------------------------------------- the borders


def _quantize_linear(node: Node, build: Builder) -> Value:
    if isinstance(node.input(0), Stored) and node.attrs.get("block_size", 0):
        raise Refused("quantizes constants again, in blocks")
    zero, asked = node.input(2), node.attrs.get("output_dtype", 0)
    dtype = "uint8"
    if zero is not None:
        dtype = dtype_of(zero) if isinstance(zero, relax.Var) else str(zero.dtype)
    elif asked:
        dtype = TensorProto.DataType.Name(asked).lower()
    dtype = quantized.check_width(dtype)
    if _is_computed(node, 1):
        return quantized.quantize_by(build, [node.input(i) for i in range(3)], dtype, node.name)
    on = _affine(node, 1, node.attrs.get("axis", 1), node.attrs.get("block_size", 0))
    return quantized.quantize(build, node.input(0), on, dtype, node.name)


def _is_computed(node: Node, index: int) -> bool:
    """Whether the network computes a scale, or the zero point behind it."""
    return any(isinstance(node.input(i), relax.Var) for i in (index, index + 1))


def _dequantize_linear(node: Node, build: Builder) -> Value:
    q = node.input(0)
    if isinstance(q, np.ndarray):
        quantized.type_of(q)
    if _is_computed(node, 1):
        return quantized.dequantize_by(build, [node.input(i) for i in range(3)], node.name)
    on = _affine(node, 1, node.attrs.get("axis", 1), node.attrs.get("block_size", 0))
    return quantized.dequantize(build, q, on, node.name)


# ---------------------------------------------------------------- layers with weights


def _qlinear_conv(node: Node, build: Builder) -> Value:
    x, w = _dequantized(build, node, 0), _dequantized(build, node, 3)
    bias = _bias([_affine(node, 1), _affine(node, 4)], node.constant(8))
    return _quantized(build, node, _as("Conv", node, [x, w, bias], build), 6)


def _qlinear_matmul(node: Node, build: Builder) -> Value:
    a, b = _dequantized(build, node, 0, axis=-2), _dequantized(build, node, 3, axis=-1)
    return _quantized(build, node, _as("MatMul", node, [a, b], build), 6)


def _qgemm(node: Node, build: Builder) -> Value:
    """com.microsoft: a float result where no scale for it is given."""
    columns = -2 if node.attrs.get("transB", 0) else -1
    scales = [_affine(node, 1), _affine(node, 4, axis=columns)]
    a = quantized.dequantize(build, node.input(0), scales[0], f"{node.name}.0.dequantize")
    b = quantized.dequantize(build, node.input(3), scales[1], f"{node.name}.3.dequantize")
    alpha = np.float32(node.attrs.get("alpha", 1.0))
    bias = _bias([replace(scales[0], scale=scales[0].scale * alpha), scales[1]], node.constant(6))
    y = _as("Gemm", node, [a, b, bias], build)
    return y if node.input(7) is None else _quantized(build, node, y, 7)


def _conv_integer(node: Node, build: Builder) -> Value:
    x = _centred(build, node, 0, 2)
    return _accumulated(build, node, _as("Conv", node, [x, _centred(build, node, 1, 3)], build))


def _matmul_integer(node: Node, build: Builder) -> Value:
    a = _centred(build, node, 0, 2, axis=-2)
    b = _centred(build, node, 1, 3, axis=-1)
    return _accumulated(build, node, _as("MatMul", node, [a, b], build))


def _centred(build: Builder, node: Node, index: int, zero: int, axis: int = 0) -> Value:
    """An operand's distance from its zero point, as floats."""
    on = affine(np.float32(1), node.constant(zero), axis)
    return quantized.dequantize(build, node.input(index), on, f"{node.name}.{index}.dequantize")


def _accumulated(build: Builder, node: Node, y: Value) -> Value:
    name, dtype = f"{node.name}.quantize", quantized.ACCUMULATORS
    return quantized.quantize(build, y, quantized.UNSCALED, dtype, name)


# ---------------------------------------------------------------- com.microsoft


def _qlinear_binary(op: str, node: Node, build: Builder) -> Value:
    a, b = _dequantized(build, node, 0), _dequantized(build, node, 3)
    return _quantized(build, node, _as(op, node, [a, b], build), 6)


def _qlinear_unary(op: str, node: Node, build: Builder) -> Value:
    if node.attrs.get("channels_last", 0):
        raise Refused("channels_last=1 is not supported; quantize the network in NCHW")
    attrs = {k: v for k, v in node.attrs.items() if k not in ("channels_last", "opset")}
    opset = int(node.attrs.get("opset", node.opset))
    plain = replace(node, attrs=attrs, opset=opset)
    return _quantized(build, node, _as(op, plain, [_dequantized(build, node, 0)], build), 3)


def _qlinear_concat(node: Node, build: Builder) -> Value:
    parts = [_dequantized(build, node, index) for index in range(2, len(node.inputs), 3)]
    return _quantized(build, node, _as("Concat", node, parts, build), 0)


QUANTIZED: dict[str, Convert] = {
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "ConvInteger": _conv_integer,
    "MatMulInteger": _matmul_integer,
    "com.microsoft.QuantizeLinear": _quantize_linear,
    "com.microsoft.DequantizeLinear": _dequantize_linear,
    "com.microsoft.MatMulNBits": matmul_nbits,
    "com.microsoft.DynamicQuantizeMatMul": dynamic_quantize_matmul,
    "com.microsoft.QGemm": _qgemm,
    "com.microsoft.QLinearAdd": partial(_qlinear_binary, "Add"),
    "com.microsoft.QLinearMul": partial(_qlinear_binary, "Mul"),
    "com.microsoft.QLinearConcat": _qlinear_concat,
    "com.microsoft.QLinearAveragePool": partial(_qlinear_unary, "AveragePool"),
    "com.microsoft.QLinearGlobalAveragePool": partial(_qlinear_unary, "GlobalAveragePool"),
    "com.microsoft.QLinearReduceMean": partial(_qlinear_unary, "ReduceMean"),
    "com.microsoft.QLinearSigmoid": partial(_qlinear_unary, "Sigmoid"),
    "com.microsoft.QLinearLeakyRelu": partial(_qlinear_unary, "LeakyRelu"),
    "com.microsoft.QLinearSoftmax": partial(_qlinear_unary, "Softmax"),
}

MOVES = {
    "Clip", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Max", "MaxPool",
    "Min", "Pad", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that give integers of their operands for integers, unchanged or bounded."""
COPIES = {"Resize", "Upsample"}
"""So do these, of the nearest pixel."""


def moves(node: Node, build: Builder) -> bool:
    """Whether a node moves, bounds or unpacks integers that the model has quantized."""
    is_move = _is_move(node) and not node.proto.domain
    unpacks = node.proto.op_type == "Cast" and node.attrs["to"] == TensorProto.FLOAT
    return (is_move or unpacks) and any(
        v in build.integers for v in node.inputs if quantized.is_integer(v)
    )


def _is_move(node: Node) -> bool:
    op = node.proto.op_type
    return op in MOVES or (op in COPIES and node.attrs.get("mode", "nearest") == "nearest")


def on_integers(node: Node, build: Builder, convert: Callable[[Node], list[Value]]) -> list[Value]:
    """Translates an operator whose operands are activations of integers.

    They are moved as floats of the same value, which is exact; a padding is moved as a zero.

    Raises:
        Refused: the operator computes with them.
    """
    op = node.proto.op_type
    if op == "Cast":
        if node.attrs["to"] != TensorProto.FLOAT:
            raise Refused("casts integers to another type than float32")
        return [quantized.raw(build, node.input(0), node.name)]
    if not _is_move(node):
        raise Refused("computes with integers that it does not dequantize")
    dtypes = {quantized.type_of(v) for v in node.inputs if quantized.is_integer(v)}
    if len(dtypes) > 1:
        raise Refused(f"joins integers of the types {', '.join(sorted(dtypes))}")
    (dtype,) = dtypes
    inputs, zero = list(node.inputs), 0
    if op == "Pad" and len(inputs) > 2 and inputs[2] is not None:
        zero, inputs[2] = int(node.constant(2)), np.float32(0)  # type: ignore[arg-type]
    floats = [
        quantized.raw(build, v, f"{node.name}.{i}.dequantize", zero) if quantized.is_integer(v)
        else v
        for i, v in enumerate(inputs)
    ]  # fmt: skip
    results = convert(replace(node, inputs=floats))
    return [quantized.raw_back(build, y, dtype, f"{node.name}.quantize", zero) for y in results]
