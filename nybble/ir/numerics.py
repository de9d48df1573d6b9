"""THE LAW: what every integer op means, in NumPy.

Every kernel on every target equals these functions bit for bit. Tensors are NHWC, weights OHWI,
channels last, so a per-channel vector of length C broadcasts without reshaping. Widths below 8
bits live unpacked in int8/uint8 here; ``pack`` and ``unpack`` give their stored form.

Sources: HAWQ-V3 (arXiv 2011.10680) for dyadic requantization; gemmlowp for ``tflite``.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Rounding = Literal["half_up", "half_even", "tflite"]
ROUNDINGS: tuple[Rounding, ...] = ("half_up", "half_even", "tflite")
MAX_SHIFT = 62  # acc·multiplier < 2^62, so a larger shift could only give 0
MAX_RATIO = 2.0**29  # beyond it, a renormalised multiplier would need a shift of 0


# ---------------------------------------------------------------- widths


def width(dtype: str) -> tuple[bool, int]:
    """Splits an integer dtype name: ``"uint4"`` -> (signed=False, bits=4)."""
    match = re.fullmatch(r"(u?)int(\d+)", dtype)
    if match is None:
        raise ValueError(f"{dtype!r} is not an integer dtype")
    return match[1] == "", int(match[2])


def limits(dtype: str) -> tuple[int, int]:
    """Smallest and largest value of an integer dtype of any width: ``"int4"`` -> (-8, 7).

    ``int1`` holds -1 and +1 and no 0 between them.
    """
    signed, bits = width(dtype)
    if dtype == "int1":
        return -1, 1
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def storage(dtype: str) -> np.dtype[np.generic]:
    """The NumPy dtype that holds unpacked values: int1..int8 -> int8, int9..int16 -> int16."""
    signed, bits = width(dtype)
    holder = next(size for size in (8, 16, 32, 64) if bits <= size)
    return np.dtype(f"{'' if signed else 'u'}int{holder}")


def settle(steps: Array, lo: int, hi: int, dtype: str) -> Array:
    """Clamps integers to lo..hi and stores them as ``dtype``; in ``int1``, 0 counts as +1."""
    clamped = np.clip(steps, lo, hi)
    kept = np.where(np.less(clamped, 0), -1, 1) if dtype == "int1" else clamped
    return kept.astype(storage(dtype))


def pack(values: Array, dtype: str) -> NDArray[np.uint8]:
    """Packs integers of 1-8 bits along the last axis, lowest bits first, rows padded to a byte.

    Args:
        values: (..., n) integers of ``dtype``; each is taken modulo 2^bits (two's complement), an
            ``int1`` by its sign (-1 is the bit 1, +1 the bit 0).
        dtype: the width, ``int1`` to ``uint8``.

    Returns:
        (..., ceil(n·bits / 8)) bytes.
    """
    _, bits = width(dtype)
    shifts = np.arange(bits, dtype=np.uint8)
    codes = np.less(values, 0) if dtype == "int1" else values
    planes = (codes.astype(np.uint8)[..., None] >> shifts) & 1
    return np.packbits(planes.reshape(*values.shape[:-1], -1), axis=-1, bitorder="little")


def unpack(packed: NDArray[np.uint8], count: int, dtype: str) -> Array:
    """Inverse of `pack`: (..., bytes) -> (..., count) values of ``dtype``, sign-extended."""
    signed, bits = width(dtype)
    planes = np.unpackbits(packed, axis=-1, bitorder="little")[..., : count * bits]
    weights = 1 << np.arange(bits, dtype=np.int16)
    values = planes.reshape(*packed.shape[:-1], count, bits).astype(np.int16) @ weights
    if dtype == "int1":
        values = 1 - 2 * values
    elif signed:
        values = values - ((values >> (bits - 1)) << bits)
    return values.astype(storage(dtype))


def to_planes(values: Array, dtype: str) -> NDArray[np.uint8]:
    """Splits integers of 1-8 bits into bit planes along the last axis, lowest bit first.

    Args:
        values: (..., n) integers of ``dtype``, coded as in `pack`.
        dtype: the width.

    Returns:
        (..., bits·ceil(n / 8)) bytes: each plane as `pack` writes one bit of every element.
    """
    _, bits = width(dtype)
    codes = np.less(values, 0) if dtype == "int1" else values
    return np.concatenate(
        [pack((codes.astype(np.uint8) >> bit) & 1, "uint1") for bit in range(bits)], axis=-1
    )


def from_planes(planes: NDArray[np.uint8], count: int, dtype: str) -> Array:
    """Inverse of `to_planes`: (..., bits·ceil(count / 8)) bytes -> (..., count) values."""
    _, bits = width(dtype)
    apart = planes.reshape(*planes.shape[:-1], bits, -1)
    codes = np.unpackbits(apart, axis=-1, bitorder="little")[..., :count]
    return unpack(np.packbits(np.moveaxis(codes, -2, -1).reshape(*planes.shape[:-1], -1),
                              axis=-1, bitorder="little"), count, dtype)  # fmt: skip


# ---------------------------------------------------------------- the borders


def quantize(x: Array, scale: Array, zero_point: Array, dtype: str) -> Array:
    """Float to integer: clamp(RN(x / scale) + zero_point), round half to even, NaN counts as 0.

    ``int1`` is the sign of the rounded steps, with 0 as +1 (`settle`).

    The division is one IEEE float32 division (not a multiplication by 1/scale), as in ONNX.
    """
    lo, hi = limits(dtype)
    with np.errstate(over="ignore"):  # an infinite ratio saturates like any large one
        ratio = np.where(np.isnan(x), 0, x).astype(np.float32) / scale.astype(np.float32)
    # Clip before the conversion: beyond ±2^31 float -> int is undefined; zero_point is < 2^16.
    steps = np.rint(np.clip(ratio, np.float32(-(2**24)), np.float32(2**24))).astype(np.int32)
    return settle(steps + zero_point.astype(np.int32), lo, hi, dtype)


def dequantize(q: Array, scale: Array, zero_point: Array) -> NDArray[np.float32]:
    """Integer to float: float32(q - zero_point) · scale."""
    centred = q.astype(np.int32) - zero_point.astype(np.int32)
    return centred.astype(np.float32) * scale.astype(np.float32)


# ---------------------------------------------------------------- requantization


def dyadic(ratio: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Writes positive ratios as multiplier / 2^shift with a 31-bit integer multiplier.

    ratio = m·2^e with m in [1/2, 1); multiplier = RN(m·2^31), shift = 31 - e. A multiplier that
    rounds up to 2^31 is renormalised to 2^30 with e + 1. Ratios below 2^-31 lose low bits, so that
    shift stays at most ``MAX_SHIFT``.

    Args:
        ratio: any shape, 0 <= ratio < 2^29.

    Returns:
        int32 (multiplier, shift), shift in 1..62.

    Raises:
        ValueError: a ratio is negative, not finite or too large.
    """
    ratio = np.asarray(ratio, np.float64)
    if not np.all(np.isfinite(ratio)) or np.any(ratio < 0) or np.any(ratio >= MAX_RATIO):
        raise ValueError(f"requantization ratios must lie in [0, 2^29), got {ratio}")
    mantissa, exponent = np.frexp(ratio)
    multiplier = np.rint(mantissa * 2.0**31).astype(np.int64)
    carry = multiplier == 1 << 31
    multiplier = np.where(carry, 1 << 30, multiplier)
    shift = 31 - (exponent.astype(np.int64) + carry)
    excess = np.clip(shift - MAX_SHIFT, 0, 63)
    return (multiplier >> excess).astype(np.int32), (shift - excess).astype(np.int32)


def scaled(x: Array, multiplier: Array, shift: Array, rounding: Rounding) -> NDArray[np.int64]:
    """x·multiplier / 2^shift as an integer, rounded as ``rounding`` says.

    - ``half_up`` (the house's): (x·m + 2^(c-1)) >> c.
    - ``half_even``: the exact quotient to nearest, ties to even.
    - ``tflite``: gemmlowp's SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT with ties
      away from zero: two roundings.
    """
    x64, m, c = x.astype(np.int64), multiplier.astype(np.int64), shift.astype(np.int64)
    if rounding == "half_up":
        return (x64 * m + (np.int64(1) << (c - 1))) >> c
    if rounding == "half_even":
        product = x64 * m
        floor, rest, half = product >> c, product & ((np.int64(1) << c) - 1), np.int64(1) << (c - 1)
        return floor + ((rest > half) | ((rest == half) & (floor & 1 == 1)))
    return _tflite(x64, m, c)


def _tflite(x: NDArray[np.int64], m: NDArray[np.int64], c: NDArray[np.int64]) -> NDArray[np.int64]:
    left, right = np.maximum(31 - c, 0), np.maximum(c - 31, 0)
    product = np.clip(x << left, -(2**31), 2**31 - 1) * m
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))  # C's division truncates
    mask = (np.int64(1) << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def requantize(
    x: Array,
    multiplier: Array,
    shift: Array,
    *,
    dtype: str,
    lo: int,
    hi: int,
    zero_point_in: int = 0,
    zero_point: int = 0,
    rounding: Rounding = "half_up",
) -> Array:
    """clamp(scaled(x - zero_point_in) + zero_point, lo, hi); ReLU and ReLU6 are the clamp's bounds.

    Args:
        x: int32 accumulators or narrower integers.
        multiplier: int32, broadcasts against ``x``.
        shift: int32 in 1..62, broadcasts against ``x``.
        dtype: the result's dtype, any width.
        lo: lower bound, within ``dtype``'s limits.
        hi: upper bound.
        zero_point_in: the integer that stands for 0 in ``x``.
        zero_point: the integer that stands for 0 in the result.
        rounding: which convention.
    """
    steps = scaled(x.astype(np.int64) - zero_point_in, multiplier, shift, rounding)
    return settle(steps + zero_point, lo, hi, dtype)


def add(
    a: Array,
    multiplier_a: Array,
    shift_a: Array,
    b: Array,
    multiplier_b: Array,
    shift_b: Array,
    *,
    dtype: str,
    lo: int,
    hi: int,
    zero_point_a: int = 0,
    zero_point_b: int = 0,
    zero_point: int = 0,
    rounding: Rounding = "half_up",
) -> Array:
    """Residual add: each branch is requantized by itself, summed in 64 bit, clamped once."""
    left = scaled(a.astype(np.int64) - zero_point_a, multiplier_a, shift_a, rounding)
    right = scaled(b.astype(np.int64) - zero_point_b, multiplier_b, shift_b, rounding)
    return settle(left + right + zero_point, lo, hi, dtype)


def multiply(
    a: Array,
    b: Array,
    multiplier: Array,
    shift: Array,
    *,
    dtype: str,
    lo: int,
    hi: int,
    zero_point_a: int = 0,
    zero_point_b: int = 0,
    zero_point: int = 0,
    rounding: Rounding = "half_up",
) -> Array:
    """clamp(scaled((a - zero_point_a)·(b - zero_point_b)) + zero_point); operands may broadcast."""
    product = (a.astype(np.int64) - zero_point_a) * (b.astype(np.int64) - zero_point_b)
    return settle(scaled(product, multiplier, shift, rounding) + zero_point, lo, hi, dtype)


def table(x: Array, values: Array) -> Array:
    """values[x - lo]: any function of one integer of at most 16 bits.

    Args:
        x: integers whose smallest value is ``lo``; signed ones lie half below 0.
        values: one entry for every integer from ``lo`` to the largest, both included (so 3 for
            ``int1``, the middle one unused).
    """
    lo = -(len(values) // 2) if x.dtype.kind == "i" else 0
    return values[x.astype(np.int64) - lo]


# ---------------------------------------------------------------- convolution and linear


def windows(
    x: Array,
    size: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int] = (1, 1),
    pad_value: float = 0,
) -> Array:
    """All windows of an NHWC image as a view: (N, OH, OW, KH, KW, C).

    Args:
        x: (N, H, W, C).
        size: (KH, KW).
        strides: (along H, along W).
        padding: (top, left, bottom, right).
        dilation: (along H, along W).
        pad_value: what stands in the padding.
    """
    top, left, bottom, right = padding
    if any(padding):
        x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=pad_value)
    reach = ((size[0] - 1) * dilation[0] + 1, (size[1] - 1) * dilation[1] + 1)
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(1, 2))
    view = view[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]
    return view.transpose(0, 1, 2, 4, 5, 3)


def conv2d(
    x: Array,
    w: Array,
    bias: Array,
    *,
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    pad_value: int = 0,
) -> NDArray[np.int32]:
    """Integer convolution into int32 accumulators.

    Args:
        x: (N, H, W, C) integers of at most 16 bits.
        w: (O, KH, KW, C/groups) integers of at most 16 bits.
        bias: (O,) int32.
        strides: (along H, along W).
        padding: (top, left, bottom, right).
        dilation: (along H, along W).
        groups: divides C and O.
        pad_value: the integer that stands for 0 in ``x``.

    Returns:
        (N, OH, OW, O) int32. That nothing exceeds 32 bits is the lowering's duty to prove.
    """
    view = windows(x, (w.shape[1], w.shape[2]), strides, padding, dilation, pad_value)
    return correlate(view, w, groups, np.float64).astype(np.int32) + bias.astype(np.int32)


def correlate(view: Array, w: Array, groups: int, dtype: type[np.floating]) -> Array:
    """Windows (N, OH, OW, KH, KW, C) times weights (O, KH, KW, C/groups) -> (N, OH, OW, O).

    On integers of 16 bits a float64 matrix product is exact: partial sums of up to 2^21 products
    are integers below 2^53, whatever the order of summation. So BLAS may compute the law.
    """
    n, oh, ow, kh, kw, c = view.shape
    out_channels = w.shape[0]
    if c == groups == out_channels:  # depthwise: one tap at a time
        acc = np.zeros((n, oh, ow, c), dtype)
        for i in range(kh):
            for j in range(kw):
                acc += view[:, :, :, i, j].astype(dtype) * w[:, i, j, 0].astype(dtype)
        return acc
    per_in, per_out = c // groups, out_channels // groups
    out = np.empty((n, oh, ow, out_channels), dtype)
    for g in range(groups):
        kernel = w[g * per_out : (g + 1) * per_out].reshape(per_out, -1).astype(dtype).T
        for image in range(n):  # one image at a time bounds the memory of the unfolded windows
            patch = view[image, ..., g * per_in : (g + 1) * per_in]
            columns = patch.astype(dtype).reshape(oh * ow, -1)
            product = (columns @ kernel).reshape(oh, ow, per_out)
            out[image, ..., g * per_out : (g + 1) * per_out] = product
    return out


def linear(x: Array, w: Array, bias: Array) -> NDArray[np.int32]:
    """(..., K) times (O, K) plus bias (O,) -> (..., O) int32; exact as in `correlate`."""
    product = x.astype(np.float64) @ w.astype(np.float64).T
    return product.astype(np.int32) + bias.astype(np.int32)


# ---------------------------------------------------------------- pooling


def max_pool2d(
    x: Array,
    *,
    pool_size: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> Array:
    """Maximum over each window; padding never wins."""
    lowest = -np.inf if x.dtype.kind == "f" else limits(str(x.dtype))[0]
    return windows(x, pool_size, strides, padding, dilation, lowest).max(axis=(3, 4))


def sum_pool2d(
    x: Array,
    *,
    pool_size: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    pad_value: int = 0,
) -> NDArray[np.int32]:
    """Sum over each window in int32; `requantize` then multiplies by 1/N: average pooling."""
    view = windows(x, pool_size, strides, padding, (1, 1), pad_value)
    return view.sum(axis=(3, 4), dtype=np.int32)
