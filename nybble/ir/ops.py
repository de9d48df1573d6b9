"""The quantized ops, each declared once: operands, attributes, type inference, NumPy meaning.

The dtype in an op's type is its width, from ``int1`` to ``uint8``; values are NHWC / OHWI and
their meaning is `nybble.ir.numerics`. ``ops.call("conv2d", [x, w, bias], strides=(1, 1), …)``
builds a call.
Structural ops (concat, reshape, permute_dims, pad) are Relax's own, on integers as on floats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import tvm
from tvm import relax

from nybble.ir import numerics, resampling, rows
from nybble.ir.graph import attributes
from nybble.ir.weight_only import rescale_rows, rounded, row_tops, weight_only

Infer = Callable[[list[Any], dict[str, Any]], tuple[Sequence[Any], str]]


@dataclass(frozen=True)
class OpDef:
    """One op of the vocabulary.

    Attributes:
        name: without the ``nybble.`` prefix.
        operands: names of the tensor operands, in order.
        defaults: attributes and their defaults; ``...`` marks a required one.
        infer: (operand types, attributes) -> (shape, dtype) of the result.
        law: the function in `nybble.ir.numerics`; takes operands, then attributes by keyword.
        doc: one line.
    """

    name: str
    operands: tuple[str, ...]
    defaults: dict[str, Any]
    infer: Infer
    law: Callable[..., Any]
    doc: str


def _same_shape(types: list[Any], attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    return types[0].shape, attrs["dtype"]


def _broadcast(types: list[Any], attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    pairs = zip(types[0].shape, types[1].shape, strict=True)
    return [b if _is_one(a) else a for a, b in pairs], attrs["dtype"]


def _is_one(extent: Any) -> bool:
    return isinstance(extent, int | tvm.tirx.IntImm) and int(extent) == 1


def _dequantized(types: list[Any], _attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    return types[0].shape, "float32"


def _out(extent: Any, kernel: int, stride: int, pad: int, dilation: int = 1) -> Any:
    return (extent + pad - (kernel - 1) * dilation - 1) // stride + 1


def _window_shape(x: Any, size: Sequence[int], attrs: dict[str, Any], channels: Any) -> list[Any]:
    n, h, w, _ = x.shape
    (top, left, bottom, right), strides = attrs["padding"], attrs["strides"]
    dilation = attrs.get("dilation", (1, 1))
    height = _out(h, size[0], strides[0], top + bottom, dilation[0])
    return [n, height, _out(w, size[1], strides[1], left + right, dilation[1]), channels]


def _conv2d(types: list[Any], attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    out_channels, kh, kw, _ = types[1].shape
    return _window_shape(types[0], (int(kh), int(kw)), attrs, out_channels), "int32"


def _linear(types: list[Any], _attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    return [*list(types[0].shape)[:-1], types[1].shape[0]], "int32"


def _weight_only(types: list[Any], _attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    return [*list(types[0].shape)[:-1], types[1].shape[0]], "float32"


def _row_tops(types: list[Any], _attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    return [*list(types[0].shape)[:-1], 1], "float32"


def _quantized_rows(types: list[Any], _attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    return types[0].shape, "int8"


def _max_pool2d(types: list[Any], attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    x = types[0]
    return _window_shape(x, attrs["pool_size"], attrs, x.shape[3]), str(x.dtype)


def _sum_pool2d(types: list[Any], attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    return _window_shape(types[0], attrs["pool_size"], attrs, types[0].shape[3]), "int32"


def _resized(types: list[Any], attrs: dict[str, Any]) -> list[Any]:
    n, *image, c = types[0].shape
    scales = zip(image, attrs["up"], attrs["down"], strict=True)
    return [n, *(extent * up // down for extent, up, down in scales), c]


def _nearest2d(types: list[Any], attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    return _resized(types, attrs), str(types[0].dtype)


def _bilinear2d(types: list[Any], attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    return _resized(types, attrs), "int32"


def _quantize_law(x: Any, scale: Any, zero_point: Any, *, dtype: str, axis: int) -> Any:
    return numerics.quantize(x, along(scale, axis, x.ndim), along(zero_point, axis, x.ndim), dtype)


def _dequantize_law(q: Any, scale: Any, zero_point: Any, *, axis: int, block: int = 0) -> Any:
    if block:
        scale, zero_point = (_spread(t, q.shape[axis], axis, block) for t in (scale, zero_point))
        return numerics.dequantize(q, scale, zero_point)
    return numerics.dequantize(q, along(scale, axis, q.ndim), along(zero_point, axis, q.ndim))


def _spread(blocks: Any, extent: int, axis: int, block: int) -> Any:
    """One entry for each element, from one for each block along an axis."""
    return np.take(blocks, np.arange(extent) // block, axis=axis)


def _table(types: list[Any], _attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    return types[0].shape, str(types[1].dtype)


def _matmul(types: list[Any], attrs: dict[str, Any]) -> tuple[Sequence[Any], str]:
    columns = types[1].shape[-2 if attrs["transpose_b"] else -1]
    return [*list(types[0].shape)[:-1], columns], "int32"


def along(vector: Any, axis: int, ndim: int) -> Any:
    """Reshapes a scalar or a vector so that it broadcasts along ``axis`` of an ndim tensor."""
    if vector.ndim == 0:
        return vector
    return vector.reshape([-1 if d == axis % ndim else 1 for d in range(ndim)])


_WINDOW = {"strides": ..., "padding": ...}
_RESIZED = {"up": ..., "down": (1, 1)}
_NORMALISED = {"shift": ..., "dtype": ..., "lo": ..., "hi": ..., "zero_point": 0}
_REQUANTIZED = {"dtype": ..., "lo": ..., "hi": ..., "zero_point": 0, "rounding": "half_up"}

VOCABULARY: dict[str, OpDef] = {
    op.name: op
    for op in (
        OpDef(
            "quantize", ("x", "scale", "zero_point"), {"dtype": ..., "axis": -1},
            _same_shape, _quantize_law,
            "float32 -> integer; scale float32 and zero_point int32, scalars or along axis",
        ),
        OpDef(
            "dequantize", ("q", "scale", "zero_point"), {"axis": -1, "block": 0},
            _dequantized, _dequantize_law,
            "integer -> float32; scale float32 and zero_point int32, scalars, vectors along axis, "
            "or (of constants) one for each block of so many integers along axis",
        ),
        OpDef(
            "conv2d", ("x", "w", "bias"),
            {**_WINDOW, "dilation": (1, 1), "groups": 1, "pad_value": 0},
            _conv2d, numerics.conv2d,
            "NHWC x OHWI + bias -> int32 accumulators",
        ),
        OpDef(
            "linear", ("x", "w", "bias"), {}, _linear, numerics.linear,
            "(…, K) x (O, K) + bias -> int32 accumulators",
        ),
        OpDef(
            "weight_only", ("x", "w", "scale", "zero_point", "bias"),
            {"group": ..., "compute": "int8", "book": ""}, _weight_only, weight_only,
            "float32 (…, K) x integers (O, K) with a scale per group + bias -> float32",
        ),
        OpDef(
            "row_tops", ("x",), {}, _row_tops, row_tops,
            "the largest magnitude of each row, float32 (…, K) -> (…, 1)",
        ),
        OpDef(
            "quantize_rows", ("x", "top"), {}, _quantized_rows, rounded,
            "float32 rows as int8 of -127..127, by their largest magnitude",
        ),
        OpDef(
            "rescale_rows", ("acc", "top", "scale", "bias"), {}, _dequantized, rescale_rows,
            "int32 sums of quantized rows -> float32: a scale per channel and one per row, bias",
        ),
        OpDef(
            "requantize", ("x", "multiplier", "shift"), {**_REQUANTIZED, "zero_point_in": 0},
            _same_shape, numerics.requantize,
            "dyadic rescaling and clamp; multiplier and shift int32, broadcast against x",
        ),
        OpDef(
            "add", ("a", "multiplier_a", "shift_a", "b", "multiplier_b", "shift_b"),
            {**_REQUANTIZED, "zero_point_a": 0, "zero_point_b": 0},
            _same_shape, numerics.add,
            "residual add: each branch requantized by itself, then clamped",
        ),
        OpDef(
            "multiply", ("a", "b", "multiplier", "shift"),
            {**_REQUANTIZED, "zero_point_a": 0, "zero_point_b": 0},
            _broadcast, numerics.multiply,
            "product of two tensors of one rank that broadcast, requantized and clamped",
        ),
        OpDef(
            "table", ("x", "values"), {}, _table, numerics.table,
            "values[x - lo]: a function of one integer; an entry for each from lo to the largest",
        ),
        OpDef(
            "max_pool2d", ("x",), {**_WINDOW, "pool_size": ..., "dilation": (1, 1)},
            _max_pool2d, numerics.max_pool2d, "maximum over windows",
        ),
        OpDef(
            "sum_pool2d", ("x",), {**_WINDOW, "pool_size": ..., "pad_value": 0},
            _sum_pool2d, numerics.sum_pool2d, "sum over windows in int32",
        ),
        OpDef(
            "nearest2d", ("x",), _RESIZED, _nearest2d, resampling.nearest2d,
            "copies of pixels: each axis grows by up / down",
        ),
        OpDef(
            "bilinear2d", ("x",), {**_RESIZED, "mode": ...}, _bilinear2d, resampling.bilinear2d,
            "interpolation between four pixels, as whole sums in int32",
        ),
        OpDef(
            "matmul", ("a", "b"), {"zero_point_a": 0, "zero_point_b": 0, "transpose_b": False},
            _matmul, rows.matmul,
            "(…, M, K) x (…, K, N), or (…, N, K) transposed -> int32 accumulators",
        ),
        OpDef(
            "softmax", ("x", "multiplier", "shift"), {"dtype": ...}, _same_shape, rows.softmax,
            "along the last axis, in steps of 2^-bits; multiplier and shift: one int32 each",
        ),
        OpDef(
            "masked_softmax", ("x", "mask", "multiplier", "shift"), {"dtype": ...},
            _same_shape, rows.masked_softmax,
            "softmax of what a constant uint8 mask of the last two axes shows",
        ),
        OpDef(
            "layer_norm", ("x", "multiplier", "offset", "epsilon"), _NORMALISED,
            _same_shape, rows.layer_norm,
            "mean 0 and variance 1 along the last axis, then an affine step for each channel",
        ),
        OpDef(
            "rms_norm", ("x", "multiplier", "offset", "epsilon"),
            {**_NORMALISED, "zero_point_in": 0}, _same_shape, rows.rms_norm,
            "mean square 1 along the last axis, then an affine step for each channel",
        ),
    )
}  # fmt: skip


@cache
def get(name: str) -> tvm.ir.Op:
    """TVM's handle of a vocabulary op, registered with TVM on first use."""
    definition = VOCABULARY[name]
    full = f"nybble.{name}"
    tvm.ir._ffi_api.RegisterOp(full, definition.doc)
    op = tvm.ir.Op.get(full)
    tvm.ir._ffi_api.OpSetNumInputs(op, len(definition.operands))
    for operand in definition.operands:
        tvm.ir._ffi_api.OpAddArgument(op, operand, "Tensor", operand)

    def infer(call: relax.Call, _context: Any) -> relax.TensorType:
        types = [arg.ty for arg in call.args]
        return relax.TensorType(*definition.infer(types, attributes(call)))

    tvm.ir.register_op_attr(full, "FInferType", infer)
    tvm.ir.register_op_attr(full, "FPurity", True)
    return op


def call(name: str, operands: Sequence[Any], **attrs: Any) -> relax.Call:
    """A call of a vocabulary op with every attribute filled in.

    Raises:
        TypeError: wrong number of operands, an unknown attribute or a missing one.
    """
    definition = VOCABULARY[name]
    if len(operands) != len(definition.operands):
        raise TypeError(f"{name} takes {definition.operands}, got {len(operands)} operands")
    unknown = attrs.keys() - definition.defaults.keys()
    full = {**definition.defaults, **attrs}
    missing = [key for key, value in full.items() if value is ...]
    if unknown or missing:
        raise TypeError(f"{name}: unknown attributes {sorted(unknown)}, missing {missing}")
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in full.items()}
    node = tvm.ir.make_node("ir.DictAttrs", **values)
    return relax.Call(get(name), list(operands), node)


def definition_of(op: str) -> OpDef | None:
    """The vocabulary entry of a full op name (``"nybble.conv2d"``), None for other ops."""
    return VOCABULARY.get(op.removeprefix("nybble.")) if op.startswith("nybble.") else None
