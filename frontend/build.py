"""What both importers share: one Relax meaning for every layer, whatever format it came from.

A value is either a ``relax.Var`` (an activation) or a NumPy array (a constant). Shape tensors are
NumPy too: with a symbolic batch they are object arrays with `extents.Batch` entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.errors import ImportModelError
from nybble.frontend import extents
from nybble.frontend.extents import Refused
from nybble.ir import graph

Array = NDArray[Any]
Value = Any  # relax.Var | Array | Python scalar
FLOAT_MAX = float(np.finfo(np.float32).max)


class Builder:
    """Emits float Relax layer by layer; ``name`` is always the source model's node name."""

    def __init__(self, params: Sequence[relax.Var]):
        self.emitter = graph.Emitter(params)

    def emit(self, expr: Any, name: str) -> relax.Var:
        """Binds an expression; what Relax cannot type is refused with Relax's words."""
        try:
            result = self.emitter.emit(expr, name)
        except (ValueError, TypeError, tvm.error.InternalError) as error:
            raise Refused(str(error).strip().splitlines()[-1]) from error
        if result.ty.shape is None:
            raise Refused("combines shapes that agree for some batch sizes only")
        return result

    def tensor(self, value: Value, name: str) -> Any:
        """A Relax operand: variables as they are, constants as float32.

        Raises:
            ImportModelError: the constant holds NaN or infinity.
        """
        if isinstance(value, relax.Var):
            return value
        array = np.asarray(value)
        if array.dtype == object:
            raise Refused("computes with the batch size")
        if not np.isfinite(array).all():
            raise ImportModelError(not_finite(array, f"a constant of '{name}'"))
        return graph.constant(array, "float32")

    # ------------------------------------------------------------ layers with weights

    def conv2d(self, operands: Sequence[Value], window: dict[str, Any], name: str) -> relax.Var:
        """Convolution of (x NCHW, weight OIHW, bias or None).

        Args:
            operands: x, weight and bias (or None).
            window: strides, padding (top, left, bottom, right), dilation and groups.
            name: of the convolution; the bias addition gets the suffix ``.bias``.
        """
        x, weight, bias = operands
        if extents.rank(x) != 4 or np.ndim(self.weights(weight, "weight")) != 4:
            raise Refused("only 2-D convolutions are supported")
        call = relax.op.nn.conv2d(x, self.tensor(weight, name), **window)
        result = self.emit(call, name)
        if bias is None:
            return result
        return self.binary("add", result, self.weights(bias, "bias").reshape(1, -1, 1, 1),
                           f"{name}.bias")  # fmt: skip

    def linear(self, x: Value, weight: Value, bias: Value | None, name: str) -> relax.Var:
        """``x @ weight + bias`` for x (…, K), a constant weight (K, O) and bias (O,) or None."""
        if self.weights(weight, "right operand").ndim != 2 or extents.rank(x) < 2:
            raise Refused("the right operand must be a matrix and the left at least one")
        result = self.emit(relax.op.matmul(x, self.tensor(weight, name)), name)
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
        if isinstance(value, relax.Var):
            raise Refused(f"its {what} is computed by the network; it must be a constant")
        return np.asarray(value)

    # ------------------------------------------------------------ element-wise

    def binary(self, op: str, left: Value, right: Value, name: str) -> relax.Var:
        """``relax.<op>(left, right)``; constants stand right where the op commutes."""
        if op in {"add", "multiply", "maximum", "minimum"} and not isinstance(left, relax.Var):
            left, right = right, left
        function: Callable[..., Any] = getattr(relax.op, op)
        return self.emit(function(self.tensor(left, name), self.tensor(right, name)), name)

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
        if not -inf < value < inf:
            raise Refused(f"pads with {value}")
        if not any(widths):
            return x
        return self.emit(relax.op.nn.pad(x, list(widths), "constant", float(value)), name)

    def concat(self, values: Sequence[Value], axis: int, name: str) -> relax.Var:
        """Concatenation along one axis."""
        rank = max(extents.rank(v) for v in values if isinstance(v, relax.Var))
        tensors = [self.tensor(v, name) for v in values]
        return self.emit(relax.op.concat(tensors, axis % rank), name)

    def reshape(self, x: Value, target: Sequence[Any], name: str) -> relax.Var:
        """Reshape; one -1 is inferred, the batch may stay symbolic."""
        before = extents.shape(x)
        after = extents.resolve(before, target)
        if before == after:
            return x
        return self.emit(relax.op.reshape(x, extents.expressions(after)), name)

    def transpose(self, x: Value, axes: Sequence[int], name: str) -> relax.Var:
        """Permutes the axes."""
        rank = extents.rank(x)
        order = [axis % rank for axis in axes]
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


def not_finite(array: Array, what: str) -> str:
    """The message about NaN or infinity in a tensor."""
    bad = int(array.size - np.isfinite(array).sum())
    return (
        f"Model: {what} of shape {array.shape} holds {bad} value(s) that are NaN or infinite. "
        "Such a network computes nothing meaningful: train or export it again."
    )
