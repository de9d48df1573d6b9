"""The law of ops on whole rows: products of two tensors, softmax, layer norm and RMS norm.

Like `nybble.ir.numerics`, which it continues, this is what every kernel equals bit for bit.
``docs/integer_ops.md`` derives the formulas and bounds their errors.

Source: I-BERT (arXiv 2101.01321) for the idea of exponentials and norms in integers; the
exponential here is of base two and cubic, the square root is a reciprocal one without a division.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nybble.ir.numerics import Array, limits, scaled, settle

OCTAVE_BITS = 15  # fractional bits of softmax's exponents
MOST_OCTAVES = 22  # e^x below 2^-22 of the largest counts as 0
POWER_BITS = 20  # of an exponential; the largest of a row is 1
POWER = (22662, 7575, 1298)  # 2^-f ≈ 1 - c1·f + c2·f² - c3·f³, relative error below 9e-5
LONGEST_ROW = 1 << 16
RECIPROCAL_BITS = 30
NORM_BITS = 16  # fractional bits of a normalised value
NEWTON_STEPS = 4
ROOT_START = 2405181686  # 1.12 with 31 fractional bits


def matmul(
    a: Array, b: Array, *, zero_point_a: int = 0, zero_point_b: int = 0, transpose_b: bool = False
) -> NDArray[np.int32]:
    """Σ_k (a - zero_point_a)·(b - zero_point_b) over the leading axes that both have.

    Args:
        a: (…, M, K) integers of at most 8 bits.
        b: (…, K, N) integers of at most 8 bits, or (…, N, K) with ``transpose_b``.
        zero_point_a: the integer that stands for 0 in ``a``.
        zero_point_b: the integer that stands for 0 in ``b``.
        transpose_b: whether ``b`` has K last.

    Returns:
        (…, M, N) int32; exact in float64 as in `nybble.ir.numerics.correlate`.
    """
    right = np.swapaxes(b, -1, -2) if transpose_b else b
    left = a.astype(np.float64) - zero_point_a
    return np.asarray((left @ (right.astype(np.float64) - zero_point_b)).astype(np.int32))


# ---------------------------------------------------------------- softmax


def softmax(x: Array, multiplier: Array, shift: Array, *, dtype: str) -> Array:
    """2^-t over its sum along the last axis, t = (max - x)·multiplier / 2^shift in 2^-15 octaves.

        t = z + f:   power = 2^20·2^-f >> z,   y = power·floor(2^50 / Σ power) >> 42

    Args:
        x: (…, length) integers: accumulators, or narrower ones; length up to ``LONGEST_ROW``.
        multiplier: one int32; with ``shift`` the dyadic form of scale·log2(e)·2^15.
        shift: one int32 in 1..62.
        dtype: ``uint1`` to ``uint8``; its b bits hold steps of 2^-b, so 1 is stored as 1 - 2^-b.
    """
    return masked_softmax(x, np.ones((1, x.shape[-1]), np.uint8), multiplier, shift, dtype=dtype)


def masked_softmax(x: Array, mask: Array, multiplier: Array, shift: Array, *, dtype: str) -> Array:
    """`softmax` over the values of each row that a mask shows; the others count for nothing.

    Args:
        x: (…, M, length).
        mask: (M, length) or (1, length) uint8: 0 hides a value. A row without any gives zeros.
        multiplier: as of `softmax`.
        shift: as of `softmax`.
        dtype: as of `softmax`.
    """
    right = POWER_BITS + RECIPROCAL_BITS - limits(dtype)[1].bit_length()
    shown, steps = np.broadcast_to(mask != 0, x.shape), x.astype(np.int64)
    largest = np.where(shown, steps, -(1 << 31)).max(axis=-1, keepdims=True)
    below = np.where(shown, largest - steps, 1 << 31)
    octaves = scaled(below, multiplier, shift, "half_up")
    octaves = np.minimum(octaves, MOST_OCTAVES << OCTAVE_BITS)
    powers = np.where(shown, power(octaves), 0)
    total = np.maximum(powers.sum(axis=-1, keepdims=True), 1)
    reciprocal = (1 << POWER_BITS + RECIPROCAL_BITS) // total
    shares = scaled(powers, reciprocal, np.asarray(right), "half_up")
    return settle(shares, *limits(dtype), dtype)


def power(octaves: NDArray[np.int64]) -> NDArray[np.int64]:
    """2^20·2^-octaves, octaves with 15 fractional bits; every product is below 2^31."""
    f, half = octaves & 0x7FFF, 1 << 14
    c1, c2, c3 = POWER
    inner = c2 - ((f * c3 + half) >> 15)
    inner = c1 - ((f * inner + half) >> 15)
    fraction = (1 << 15) - ((f * inner + half) >> 15)
    doubled = (fraction << (POWER_BITS - 14)) >> (octaves >> OCTAVE_BITS)
    return np.asarray((doubled + 1) >> 1)


# ---------------------------------------------------------------- norms


def layer_norm(
    x: Array,
    multiplier: Array,
    offset: Array,
    epsilon: Array,
    *,
    shift: int,
    dtype: str,
    lo: int,
    hi: int,
    zero_point: int = 0,
) -> Array:
    """(x - mean) / sqrt(variance + ε)·γ + β along the last axis; the mean takes any zero point.

    With c = K·x - Σx, which is exact, and N = K·Σx² - (Σx)² + epsilon = K²·(variance + ε):

        u = 2^16·c / sqrt(N),   y = ((u·multiplier >> 32) + offset) >> shift

    Args:
        x: (…, K) integers of at most 16 bits, K·max|x| below 2^30.
        multiplier: (K,) int32: γ/scale·2^(shift + 16), of any sign.
        offset: (K,) int32: β/scale·2^shift and the half that rounds.
        epsilon: ε·K²/scale_x² as one int64, below 2^60.
        shift: 1 to 14.
        dtype: of the result.
        lo: lower bound.
        hi: upper bound.
        zero_point: the integer that stands for 0 in the result.
    """
    steps = x.astype(np.int64)
    total, squares = (t.sum(axis=-1, keepdims=True) for t in (steps, steps * steps))
    k = x.shape[-1]
    unit = _unit(k * steps - total, k * squares - total * total + epsilon)
    return _affine(unit, multiplier, offset, shift, (lo, hi, zero_point, dtype))


def rms_norm(
    x: Array,
    multiplier: Array,
    offset: Array,
    epsilon: Array,
    *,
    shift: int,
    dtype: str,
    lo: int,
    hi: int,
    zero_point_in: int = 0,
    zero_point: int = 0,
) -> Array:
    """X / sqrt(mean of x² + ε)·γ along the last axis: `layer_norm` without its mean.

    c = K·(x - zero_point_in), N = K·Σ(x - zero_point_in)² + epsilon; the rest as there.
    """
    steps = x.astype(np.int64) - zero_point_in
    k, squares = x.shape[-1], (steps * steps).sum(axis=-1, keepdims=True)
    unit = _unit(k * steps, k * squares + epsilon)
    return _affine(unit, multiplier, offset, shift, (lo, hi, zero_point, dtype))


def _unit(centred: NDArray[np.int64], square: NDArray[np.int64]) -> NDArray[np.int64]:
    """2^16·centred / sqrt(square), rounded down."""
    y, shift = reciprocal_root(square)
    return np.asarray((centred * y) >> shift)


def reciprocal_root(square: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(y, s) with 2^16 / sqrt(square) = y / 2^s: Newton's y·(3 - v·y²) / 2, without a division.

    ``square`` times a power of four is v in [1, 4) with 30 fractional bits; y has 31, and starts
    from a line that is off by less than 12 %: after four steps, each of which squares the error,
    what remains is the rounding, below 2^-28.

    Args:
        square: 0 to 2^62; 0 counts as 1.

    Returns:
        y in [2^30, 2^31), s in 14 to 45.
    """
    square = np.maximum(square, 1)
    length = np.frexp(square.astype(np.float64))[1].astype(np.int64)
    length = length - ((np.int64(1) << np.minimum(length - 1, 62)) > square)  # rounded up to 2^n
    left = (62 - length) & -2
    v = (square << left) >> 30
    y = ROOT_START - ((v * 85) >> 8)  # 1.12 - v / 6
    for _ in range(NEWTON_STEPS):
        error = (v * ((y * y) >> 32)) >> 30
        y = (y * ((np.int64(3) << 30) - error)) >> 31
    return np.clip(y, 1 << 30, (1 << 31) - 1), 45 - (left >> 1)


def _affine(
    unit: NDArray[np.int64], multiplier: Array, offset: Array, shift: int,
    result: tuple[int, int, int, str],
) -> Array:  # fmt: skip
    lo, hi, zero_point, dtype = result
    high = (unit * multiplier.astype(np.int64)) >> 32
    return settle(((high + offset.astype(np.int64)) >> shift) + zero_point, lo, hi, dtype)
