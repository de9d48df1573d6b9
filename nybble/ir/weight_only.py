"""THE LAW of weight-only linear layers: float activations, integer weights, floats out.

CPUs round a row of activations to 8 bits and compute in integers (``compute="int8"``):

    y[m, o] = fma(acc, row_scale[m], bias[o])
    acc     = fma(float32(Σ_g q·(w - zero_point)), scale[o, g], acc)     groups g in order, from 0
    q       = round(x · inv), half to even, in -127..127                 a row at a time
    inv     = 127 / top,  row_scale = top / 127,  top = max(2^-100, max |x|)

The sums over a group are integers and exact; each group costs one rounding to float32 (none while
the sum stays below 2^24: groups of up to 518 at 8 bits) and one fused multiply-add. Every operation
above is one IEEE operation in a fixed order, so every kernel equals these floats bit for bit. The
bound 2^-100 keeps ``inv`` finite; smaller rows quantize to 0. A row that holds NaN or an infinity
has no scale: all its outputs are NaN.

Error against the float product with the dequantized weights ŵ = scale·(w - zero_point): rounding x
costs at most (0.5 + 2^-16)·row_scale·Σ|ŵ|, the additions (G + 2)·2^-24·row_scale·Σ|q·ŵ|.

Where one scale serves a whole output channel and no zero point is needed, the same bits come from
four ops (dynamic quantization, `nybble.passes.dynamic`), of which one is an ordinary integer layer:

    top = row_tops(x)    q = quantize_rows(x, top)    acc = linear(q, w)    y = rescale_rows(acc, …)

Weights of a *code book* (`nybble.ir.code_books`) are integers as well, 16 different ones; what is
above holds for them as for others of 8 bits.

GPUs multiply in half precision and add in float32 (``compute="float16"``), in the order that suits
their tensor cores, so the law is a value and a bound: `in_half` in float64, and

    |y - in_half| <= HALF_BOUND · (Σ |float16(x)·ŵ| + |bias|)

of which half a step of half precision, 2^-11, is for the scale of a group, and the rest for sums in
float32. What x loses by being rounded to half precision is part of the value: beyond 65504 it is
infinite there, and so is, or is NaN, whatever it is added to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import code_books

Array = NDArray[Any]
Float32 = NDArray[np.float32]
HALF, INT8 = "float16", "int8"  # what `weight_only` computes with
MOST = 127  # magnitude of a quantized activation
HALF_BOUND = 1e-3  # relative error of a float16 product, to the sum of magnitudes
LEAST = np.float32(2.0**-100)  # rows below it count as zero


def fma(a: Float32, b: Float32, c: Float32) -> Float32:
    """float32(a·b + c) with a single rounding, as the machine's fused multiply-add.

    a·b is exact in float64. The sum is rounded to odd there, which float32's own rounding cannot
    tell from the exact value (Boldo and Melquiond, 2008): 53 bits are at least 24 + 2.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        product, addend = a.astype(np.float64) * b, np.asarray(c, np.float64)
        total = np.asarray(product + addend)
        back = total - product  # Knuth's TwoSum: total + error is the exact sum
        error = (product - (total - back)) + (addend - back)
        even = (total.view(np.int64) & 1) == 0
        nudge = even & np.isfinite(total) & (error != 0)
        total = np.where(nudge, np.nextafter(total, np.copysign(np.inf, error)), total)
        return total.astype(np.float32)


def quantize_rows(x: Float32) -> tuple[NDArray[np.int8], Float32]:
    """Rows of floats as integers of -127..127 and one scale each.

    Args:
        x: (…, K) float32.

    Returns:
        q (…, K) int8 and scale (…, 1) float32 with x ≈ q·scale; a row that holds NaN or an
        infinity gives zeros and the scale NaN.
    """
    top = row_tops(x)
    return rounded(x, top), _row_scale(top)


def row_tops(x: Float32) -> Float32:
    """The largest magnitude of every row, (…, K) -> (…, 1).

    At least 2^-100; NaN for a row that holds NaN or an infinity.
    """
    top = np.maximum(np.abs(x).max(-1, keepdims=True, initial=0), LEAST)  # NaN wins here
    return np.where(np.isfinite(top), top, np.nan).astype(np.float32)


def rounded(x: Float32, top: Float32) -> NDArray[np.int8]:
    """Rows as integers of -127..127, given their tops; zeros where the top is NaN."""
    with np.errstate(invalid="ignore"):
        steps = np.rint(x * (np.float32(MOST) / top))
    return np.where(np.isnan(steps), 0, steps).astype(np.int8)


def _row_scale(top: Float32) -> Float32:
    return np.asarray(np.divide(top, np.float32(MOST), dtype=np.float32))


def rescale_rows(acc: Array, top: Float32, scale: Float32, bias: Float32) -> Float32:
    """fma(float32(acc)·scale, top / 127, bias): what integer rows and weights stand for.

    Args:
        acc: (…, O) int32.
        top: (…, 1) of `row_tops`.
        scale: (O,) of the weights, positive.
        bias: (O,).
    """
    return fma(acc.astype(np.float32) * scale, _row_scale(top), bias)


def weight_only(  # noqa: PLR0913
    x: Float32,
    w: Array,
    scale: Float32,
    zero_point: Array,
    bias: Float32,
    *,
    group: int,
    compute: str = INT8,
    book: str = "",
) -> Float32:
    """A linear layer with integer weights whose scale belongs to a run of ``group`` of them.

    Args:
        x: (…, K) float32.
        w: (O, K) integers of 2 to 8 bits.
        scale: (O, G) float32, G = ceil(K / group); the last group may be shorter.
        zero_point: (O, G) int32 within the limits of the weights' dtype.
        bias: (O,) float32.
        group: weights that share a scale.
        compute: ``int8``, or ``float16`` for `in_half`.
        book: the code book whose levels the weights are, if any.

    Returns:
        (…, O) float32.

    Raises:
        ValueError: a weight is no level of its code book.
    """
    if book:
        code_books.numbers(w, book)
    if compute == HALF:
        with np.errstate(over="ignore"):
            value, _ = in_half(x, w, scale, zero_point, bias, group=group)
            return value.astype(np.float32)
    q, row_scale = quantize_rows(x)
    acc = np.zeros((*x.shape[:-1], len(w)), np.float32)
    for g, start in enumerate(range(0, w.shape[1], group)):
        span = slice(start, start + group)
        centred = w[:, span].astype(np.float64) - zero_point[:, g, None]
        sums = q[..., span].astype(np.float64) @ centred.T  # exact: below 2^53
        acc = fma(sums.astype(np.float32), scale[:, g], acc)
    return fma(acc, row_scale, bias)


def in_half(
    x: Float32, w: Array, scale: Float32, zero_point: Array, bias: Float32, *, group: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The product of float16(x) with the dequantized weights, in float64.

    Args:
        x: as of `weight_only`, like all others.
        w: (O, K).
        scale: (O, G).
        zero_point: (O, G).
        bias: (O,).
        group: weights that share a scale.

    Returns:
        (…, O) values, and by how much a float32 result may differ from each.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        half = x.astype(np.float16).astype(np.float64)
        of = np.arange(w.shape[1]) // group
        real = (w.astype(np.float64) - zero_point[:, of]) * scale.astype(np.float64)[:, of]
        sizes = np.abs(half) @ np.abs(real).T + np.abs(bias.astype(np.float64))
        return half @ real.T + bias, HALF_BOUND * sizes
