"""NumPy meaning of the float (and structural) Relax ops that a model may hold.

Used to run float and quantized modules for calibration and simulation. Results agree with other
float implementations to rounding; only the integer ops of `nybble.ir.numerics` are exact law.
Each function takes the call's arguments (arrays, Python scalars, shapes), then its attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.errors import StageError
from nybble.ir import float_index, float_math, float_windows, numerics

Array = NDArray[Any]


def _channels_last(x: Array, layout: str) -> Array:
    return x.transpose(0, 2, 3, 1) if layout == "NCHW" else x


def _restore(x: Array, layout: str) -> Array:
    return x.transpose(0, 3, 1, 2) if layout == "NCHW" else x


def _refuse_ceil_mode(ceil_mode: bool) -> None:
    if ceil_mode:
        raise StageError("ceil_mode is spelled out as padding before a module is run.")


def conv2d(
    x: Array,
    w: Array,
    *,
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    data_layout: str,
    kernel_layout: str,
    **_: Any,
) -> Array:
    """float32 convolution in NCHW/OIHW or NHWC/OHWI."""
    w = w.transpose(0, 2, 3, 1) if kernel_layout == "OIHW" else w
    size = (w.shape[1], w.shape[2])
    view = numerics.windows(_channels_last(x, data_layout), size, strides, padding, dilation)
    return _restore(numerics.correlate(view, w, groups, np.float32), data_layout)


def max_pool2d(
    x: Array,
    *,
    pool_size: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
    layout: str,
    **_: Any,
) -> Array:
    """Maximum over windows; padding never wins."""
    _refuse_ceil_mode(ceil_mode)
    pooled = numerics.max_pool2d(
        _channels_last(x, layout),
        pool_size=pool_size,
        strides=strides,
        padding=padding,
        dilation=dilation,
    )
    return _restore(pooled, layout)


def avg_pool2d(
    x: Array,
    *,
    pool_size: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    count_include_pad: bool,
    ceil_mode: bool,
    layout: str,
    **_: Any,
) -> Array:
    """Mean over windows; padding is counted only with ``count_include_pad``."""
    _refuse_ceil_mode(ceil_mode)
    image = _channels_last(x, layout)
    total = numerics.windows(image, pool_size, strides, padding).sum(axis=(3, 4), dtype=np.float32)
    if count_include_pad or not any(padding):
        return _restore(total / np.float32(np.prod(pool_size)), layout)
    ones = np.ones_like(image[:1, :, :, :1])
    count = numerics.windows(ones, pool_size, strides, padding).sum(axis=(3, 4))
    return _restore(total / count, layout)


def adaptive_avg_pool2d(x: Array, *, output_size: tuple[int, int], layout: str, **_: Any) -> Array:
    """Mean over an even grid of output_size cells (bounds as in torch: floor and ceil)."""
    image = _channels_last(x, layout)
    height, width = image.shape[1:3]
    rows, columns = output_size
    cells = [
        [
            image[:, top : -(-height * (i + 1) // rows), left : -(-width * (j + 1) // columns)]
            .mean(axis=(1, 2), dtype=np.float32)
            for j in range(columns)
            for left in [width * j // columns]
        ]
        for i in range(rows)
        for top in [height * i // rows]
    ]  # fmt: skip
    return _restore(np.stack([np.stack(row, axis=1) for row in cells], axis=1), layout)


def pad(x: Array, *, pad_width: tuple[int, ...], pad_value: float, pad_mode: str) -> Array:
    """Constant padding; ``pad_width`` is before, after for each axis."""
    if pad_mode != "constant":
        raise ValueError(f"pad mode {pad_mode!r} is not supported, only 'constant'")
    pairs = list(zip(pad_width[::2], pad_width[1::2], strict=True))
    return np.pad(x, pairs, constant_values=pad_value)


def mean(x: Array, *, axis: Sequence[int] | None, keepdims: bool) -> Array:
    """Mean over ``axis`` in float32."""
    over = None if axis is None else tuple(axis)
    return np.asarray(x.mean(axis=over, keepdims=keepdims, dtype=np.float32))


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), without overflow."""
    return (0.5 * (1 + np.tanh(0.5 * x))).astype(x.dtype)


def softmax(x: Array, *, axis: int) -> Array:
    """e^x over its sum along ``axis``."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def leaky_relu(x: Array, *, alpha: float) -> Array:
    """Keeps x where positive, gives alpha·x elsewhere."""
    return np.where(x > 0, x, np.float32(alpha) * x)


def _permute(x: Array, *, axes: Sequence[int] | None) -> Array:
    return np.transpose(x, None if axes is None else tuple(axes))


def _squeeze(x: Array, *, axis: Sequence[int] | None) -> Array:
    return np.squeeze(x, None if axis is None else tuple(axis))


OPS: dict[str, Callable[..., Any]] = {
    **float_math.OPS,
    **float_index.OPS,
    **float_windows.OPS,
    "relax.nn.conv2d": conv2d,
    "relax.matmul": lambda a, b, **_: a @ b,
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.maximum": np.maximum,
    "relax.minimum": np.minimum,
    "relax.nn.relu": lambda x: np.maximum(x, 0),
    "relax.nn.leakyrelu": leaky_relu,
    "relax.clip": np.clip,
    "relax.sigmoid": sigmoid,
    "relax.tanh": np.tanh,
    "relax.exp": np.exp,
    "relax.nn.silu": lambda x: x * sigmoid(x),
    "relax.nn.softmax": softmax,
    "relax.nn.max_pool2d": max_pool2d,
    "relax.nn.avg_pool2d": avg_pool2d,
    "relax.nn.adaptive_avg_pool2d": adaptive_avg_pool2d,
    "relax.mean": mean,
    "relax.concat": lambda *xs, axis: np.concatenate(xs, axis=axis),
    "relax.reshape": np.reshape,
    "relax.permute_dims": _permute,
    "relax.squeeze": _squeeze,
    "relax.nn.pad": pad,
}
