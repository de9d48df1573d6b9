"""What both importers share: one Relax meaning for every layer, whatever format it came from.

A value is either a ``relax.Var`` (an activation) or a NumPy array (a constant). Shape tensors are
NumPy too: with a symbolic batch they are object arrays with `extents.Symbolic` entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, isnan
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.errors import ImportModelError
from nybble.frontend import extents
from nybble.frontend.extents import Refused
from nybble.frontend.stored import Stored
from nybble.ir import graph, ops, specs

Array = NDArray[Any]
Value = Any  # relax.Var | Array | Python scalar
FLOAT_MAX = float(np.finfo(np.float32).max)


class Builder:
    """Emits float Relax layer by layer; ``name`` is always the source model's node name."""

    def __init__(self, params: Sequence[relax.Var]):
        self.emitter = graph.Emitter(params)
        self.is_quantized = False
        self.integers: set[relax.Var] = set()  # what the source model quantizes

    def emit(self, expr: Any, name: str) -> relax.Var:
        """Binds an expression; what Relax cannot type is refused with Relax's words."""
        self.is_quantized |= graph.op_name(expr) in specs.BORDERS
        try:
            result = self.emitter.emit(expr, name)
        except (ValueError, TypeError, tvm.error.InternalError) as error:
            raise Refused(str(error).strip().splitlines()[-1]) from error
        if result.ty.shape is None:
            raise Refused("combines shapes that agree for some batch sizes only")
        if graph.op_name(expr) == "nybble.quantize":
            self.integers.add(result)
        return result

    def tensor(self, value: Value, name: str, dtype: str = "float32") -> Any:
        """A Relax operand: variables as they are, constants as ``dtype``.

        Raises:
            ImportModelError: the constant holds NaN, or infinity and is no mask.
        """
        if isinstance(value, relax.Var):
            return value
        if isinstance(value, Stored):
            return self.stored(value, name)
        array = np.asarray(value)
        if array.dtype == object:
            raise Refused("computes with the batch size")
        if not is_sound(array):
            raise ImportModelError(not_finite(array, f"a constant of '{name}'"))
        return graph.constant(array, dtype)

    def stored(self, value: Stored, name: str) -> relax.Var:
        """Integers of the source model behind a ``dequantize``."""
        on = value.affine
        constants = [
            graph.constant(value.integers, value.dtype),
            graph.constant(on.scale, "float32"),
            graph.constant(on.zero_point, "int32"),
        ]
        return self.emit(ops.call("dequantize", constants, axis=on.axis, block=on.block), name)

    def finish(
        self, results: Sequence[relax.Var], names: Sequence[str], recipe: str = ""
    ) -> tvm.IRModule:
        """The module: of stage ``quantized`` where the source model holds integers.

        Args:
            results: the outputs.
            names: theirs.
            recipe: what a quantized file of Nybble's own says of itself.
        """
        if not self.is_quantized:
            return self.emitter.finish(results, names, "float")
        attrs = {graph.RECIPE: recipe} if recipe else {}
        return self.emitter.finish(results, names, "quantized", attrs)

    # ------------------------------------------------------------ layers with weights

    def conv2d(self, operands: Sequence[Value], window: dict[str, Any], name: str) -> relax.Var:
        """Convolution of (x NCHW, weight OIHW, bias or None).

        Args:
            operands: x, weight and bias (or None).
            window: strides, padding (top, left, bottom, right), dilation and groups.
            name: of the convolution; the bias addition gets the suffix ``.bias``.
        """
        x, weight, bias = operands
        if extents.rank(x) != 4 or self.constant(weight, "weight").ndim != 4:
            raise Refused("only 2-D convolutions are supported")
        call = relax.op.nn.conv2d(x, self.tensor(weight, f"{name}.weight"), **window)
        result = self.emit(call, name)
        if bias is None:
            return result
        column = (
            bias.reshaped((1, -1, 1, 1), 1)
            if isinstance(bias, Stored)
            else (self.weights(bias, "bias").reshape(1, -1, 1, 1))
        )
        return self.binary("add", result, column, f"{name}.bias")

    def linear(self, x: Value, weight: Value, bias: Value | None, name: str) -> relax.Var:
        """``x @ weight + bias`` for x (…, K), a constant weight (K, O) and bias (O,) or None."""
        if self.constant(weight, "right operand").ndim != 2 or extents.rank(x) < 2:
            raise Refused("the right operand must be a matrix and the left at least one")
        product = relax.op.matmul(x, self.tensor(weight, f"{name}.weight"))
        result = self.emit(product, name)
        return result if bias is None else self.binary("add", result, bias, f"{name}.bias")

    def batch_norm(
        self, x: Value, moments: Sequence[Value | None], epsilon: float, name: str
    ) -> relax.Var:
        """Inference batch norm over axis 1 as multiply and add.

        Args:
            x: (N, C, …).
            moments: scale, shift, mean, variance, each (C,); scale and shift may be None.
            epsilon: added to the variance.
            name: of the result; the multiplication gets the suffix ``.scale``.
        """
        kinds = ("scale", "shift", "mean", "variance")
        gamma, beta, mean, variance = (
            np.float64(kind == "scale") if m is None else self.weights(m, kind).astype(np.float64)
            for m, kind in zip(moments, kinds, strict=True)
        )
        if not np.all(variance + epsilon > 0):
            raise Refused("variance + epsilon is not positive in some channel")
        spread = np.sqrt(variance + epsilon)
        scale = gamma / spread
        shift = beta - mean * scale
        column = (-1,) + (1,) * (extents.rank(x) - 2)
        scaled = self.binary("multiply", x, scale.reshape(column), f"{name}.scale")
        return self.binary("add", scaled, shift.reshape(column), name)

    def weights(self, value: Value, what: str) -> Array:
        """The value as an array, refusing activations in the place of weights."""
        return np.asarray(self.constant(value, what))

    def constant(self, value: Value, what: str) -> Any:
        """An array, or integers of the source model as they are; refuses activations."""
        if isinstance(value, relax.Var):
            raise Refused(f"its {what} is computed by the network; it must be a constant")
        return value if isinstance(value, Stored) else np.asarray(value)

    # ------------------------------------------------------------ element-wise

    def binary(self, op: str, left: Value, right: Value, name: str) -> relax.Var:
        """``relax.<op>(left, right)``; constants stand right where the op commutes."""
        if op in {"add", "multiply", "maximum", "minimum"} and not isinstance(left, relax.Var):
            left, right = right, left
        function: Callable[..., Any] = getattr(relax.op, op)
        dtype = dtype_of(left) if isinstance(left, relax.Var) else dtype_of(right)
        operands = (self.tensor(value, f"{name}.integers", dtype) for value in (left, right))
        return self.emit(function(*operands), name)

    def where(self, condition: Value, yes: Value, no: Value, name: str) -> relax.Var:
        """``yes`` where the condition holds, ``no`` elsewhere; all three broadcast."""
        dtype = next((dtype_of(v) for v in (yes, no) if isinstance(v, relax.Var)), dtype_of(yes))
        chosen = (self.tensor(value, name, dtype) for value in (yes, no))
        return self.emit(relax.op.where(self.tensor(condition, name, "bool"), *chosen), name)

    def cast(self, x: Value, dtype: str, name: str) -> Value:
        """The elements as another type; nothing is emitted where they are of it already."""
        if dtype_of(x) == dtype:
            return x
        if not isinstance(x, relax.Var):
            return np.asarray(x).astype(dtype)
        if dtype == "bool":
            return self.binary("not_equal", x, 0, name)
        return self.emit(relax.op.astype(x, dtype), name)

    def clip(self, x: Value, low: float | None, high: float | None, name: str) -> relax.Var:
        """Clamps; a missing, infinite or largest-float bound is none, [0, none) is a relu."""
        low = None if low is None or low <= -FLOAT_MAX else float(low)
        high = None if high is None or high >= FLOAT_MAX else float(high)
        if high is None:
            if low is None:
                return x
            return self.relu(x, name) if low == 0 else self.binary("maximum", x, low, name)
        if low is None:
            return self.binary("minimum", x, high, name)
        if not (isfinite(low) and isfinite(high) and low <= high):
            raise Refused(f"clips to the empty or undefined range [{low}, {high}]")
        return self.emit(relax.op.clip(x, low, high), name)

    def relu(self, x: Value, name: str) -> relax.Var:
        """max(x, 0)."""
        return self.emit(relax.op.nn.relu(x), name)

    def hard_sigmoid(self, x: Value, alpha: float, beta: float, name: str) -> relax.Var:
        """clip(alpha·x + beta, 0, 1)."""
        sloped = self.binary("multiply", x, alpha, f"{name}.slope")
        return self.clip(self.binary("add", sloped, beta, f"{name}.offset"), 0, 1, name)

    def hard_swish(self, x: Value, name: str) -> relax.Var:
        """X · clip(x/6 + 1/2, 0, 1)."""
        return self.binary("multiply", x, self.hard_sigmoid(x, 1 / 6, 0.5, f"{name}.gate"), name)

    def softmax(self, x: Value, axis: int, name: str) -> relax.Var:
        """Softmax along one axis."""
        return self.emit(relax.op.nn.softmax(x, axis % extents.rank(x)), name)

    # ------------------------------------------------------------ pooling

    def max_pool2d(self, x: Value, window: extents.Window, name: str) -> relax.Var:
        """Maximum over windows; padding never wins."""
        height, width = extents.image(x)
        padding = window.full_padding(height, width)
        call = relax.op.nn.max_pool2d(
            x, pool_size=window.size, strides=window.strides, padding=padding,
            dilation=window.dilation,
        )  # fmt: skip
        return self.emit(call, name)

    def avg_pool2d(
        self, x: Value, window: extents.Window, count_include_pad: bool, name: str
    ) -> relax.Var:
        """Mean over windows; what only ``ceil_mode`` adds at the end is never counted."""
        height, width = extents.image(x)
        padding = window.full_padding(height, width)
        if window.dilation != (1, 1):
            raise Refused("dilated average pooling is not supported")
        if padding != window.padding and count_include_pad and any(window.padding):
            # two kinds of padding in one window: make the counted kind part of the image
            top, left, bottom, right = window.padding
            x = self.pad(x, (0, 0, 0, 0, top, bottom, left, right), 0.0, f"{name}.pad")
            padding = (0, 0, padding[2] - bottom, padding[3] - right)
            count_include_pad = False
        elif padding != window.padding:
            count_include_pad = False
        call = relax.op.nn.avg_pool2d(
            x, pool_size=window.size, strides=window.strides, padding=padding,
            count_include_pad=count_include_pad and any(padding),
        )  # fmt: skip
        return self.emit(call, name)

    def mean(self, x: Value, axes: Sequence[int] | None, keepdims: bool, name: str) -> relax.Var:
        """Mean over axes; None or none given means over all."""
        rank = extents.rank(x)
        over = sorted({a % rank for a in axes}) if axes else list(range(rank))
        return self.emit(relax.op.mean(x, over, keepdims), name)

    # ------------------------------------------------------------ structure

    def pad(self, x: Value, widths: Sequence[int], value: float, name: str) -> relax.Var:
        """Constant padding; ``widths`` is (before, after) for each axis, flat."""
        if min(widths) < 0:
            raise Refused("negative padding (cropping) is not supported")
        if isnan(value):
            raise Refused("pads with NaN")
        if not any(widths):
            return x
        return self.emit(relax.op.nn.pad(x, list(widths), "constant", float(value)), name)

    def concat(self, values: Sequence[Value], axis: int, name: str) -> relax.Var:
        """Concatenation along one axis."""
        values = [v for v in values if isinstance(v, relax.Var | Stored) or np.size(v)]
        computed = [v for v in values if isinstance(v, relax.Var)]
        rank, dtype = extents.rank(computed[0]), dtype_of(computed[0])
        tensors = [self.tensor(v, name, dtype) for v in values]
        return self.emit(relax.op.concat(tensors, axis % rank), name)

    def reshape(self, x: Value, target: Sequence[Any], name: str) -> relax.Var:
        """Reshape; one -1 is inferred, the batch may stay symbolic."""
        before = extents.shape(x)
        after = extents.resolve(before, target)
        if before == after:
            return x
        if not isinstance(x, relax.Var):
            return np.asarray(x).reshape(after)
        return self.emit(relax.op.reshape(x, extents.expressions(after)), name)

    def transpose(self, x: Value, axes: Sequence[int], name: str) -> Value:
        """Permutes the axes."""
        rank = extents.rank(x)
        order = [axis % rank for axis in axes]
        if isinstance(x, Stored):
            return x.transposed(order)
        return x if order == list(range(rank)) else self.emit(relax.op.permute_dims(x, order), name)

    def squeeze(self, x: Value, axes: Sequence[int] | None, name: str) -> relax.Var:
        """Drops axes of extent 1; None means all of them (never the symbolic batch)."""
        sizes = extents.shape(x)
        ones = [axis for axis, size in enumerate(sizes) if isinstance(size, int) and size == 1]
        chosen = ones if axes is None else [axis % len(sizes) for axis in axes]
        if not set(chosen) <= set(ones):
            raise Refused(f"squeezes axes {chosen} of {extents.words(sizes)}; not all are 1")
        return self.reshape(x, [s for axis, s in enumerate(sizes) if axis not in chosen], name)

    def unsqueeze(self, x: Value, axes: Sequence[int], name: str) -> relax.Var:
        """Inserts axes of extent 1 at these positions of the result."""
        sizes = extents.shape(x)
        places = {axis % (len(sizes) + len(axes)) for axis in axes}
        for place in sorted(places):
            sizes.insert(place, 1)
        return self.reshape(x, sizes, name)


def dtype_of(value: Value) -> str:
    """The type that a value has inside the network: floats are float32."""
    if isinstance(value, relax.Var):
        return graph.dtype_of(value)
    kind = np.asarray(value).dtype
    return "float32" if kind.kind in "fV" else str(kind)


def is_sound(array: Array) -> bool:
    """Whether a constant has a meaning: finite, or a mask of zeros and infinities."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return True
    if array.size == 1:
        return not np.isnan(array).any()
    return bool(((array == 0) | np.isinf(array)).all())


def not_finite(array: Array, what: str) -> str:
    """The message about NaN or infinity in a tensor."""
    bad = int(array.size - np.isfinite(array).sum())
    return (
        f"Model: {what} of shape {array.shape} holds {bad} value(s) that are NaN or infinite. "
        "Such a network computes nothing meaningful: train or export it again."
    )
