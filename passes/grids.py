"""Grids of 1 to 8 bits: from a range to a scale, from weights to integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import code_books, numerics
from nybble.recipe import BOOKS, TERNARY, Weights

SMALLEST = 2.0**-60  # products of two scales stay normal float32 numbers
BIAS_LIMIT = 2.0**29  # leaves the accumulators room for the products
BIAS_STEPS = 2.0**20  # resolution of the bias of a channel without weights


@dataclass(frozen=True)
class Grid:
    """Where integers stand: value = (q - zero_point) * scale.

    Attributes:
        scale: float32 value of one step.
        dtype: ``uint1`` to ``uint8``, ``int1`` to ``int8``.
        zero_point: the integer that stands for 0.
    """

    scale: float
    dtype: str
    zero_point: int = 0


@dataclass(frozen=True)
class Levels:
    """The integers that weights of one kind may be.

    Attributes:
        dtype: their width.
        lo: the smallest.
        hi: the largest.
    """

    dtype: str
    lo: int
    hi: int


def grid(lo: float, hi: float, non_negative: bool, bits: int = 8) -> Grid:
    """The grid of a range: unsigned where the tensor cannot be negative, else symmetric.

    A range of nothing but zeros gets a harmless scale, never 0.
    """
    dtype = f"{'u' if non_negative else ''}int{bits}"
    levels = numerics.limits(dtype)[1]
    largest = max(hi, 0.0) if non_negative else max(abs(lo), abs(hi))
    scale = np.float32(largest / levels)
    return Grid(float(scale) if scale > SMALLEST else float(np.float32(1 / levels)), dtype)


def shifted_grid(lo: float, hi: float, bits: int = 8) -> Grid:
    """The grid of a lopsided range, such as that of SiLU: unsigned, with a zero point."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    dtype = f"uint{bits}"
    levels = numerics.limits(dtype)[1]
    scale = float(np.float32((hi - lo) / levels))
    if scale <= SMALLEST:
        return grid(lo, hi, non_negative=True, bits=bits)
    return Grid(scale, dtype, min(round(-lo / scale), levels))


def share_grid(bits: int = 8) -> Grid:
    """The grid of a softmax's results: steps of 2^-bits, so that 1 is stored as 1 - 2^-bits."""
    return Grid(2.0**-bits, f"uint{bits}")


def weight_levels(width: Weights) -> Levels:
    """Narrow range from 3 bits up; all four values of 2 bits; -1, 0, 1; both values of 1 bit.

    Of a code book all between its ends, though only 16 are used.
    """
    if width in BOOKS:
        found = code_books.levels(width)
        return Levels(code_books.DTYPE, int(found.min()), int(found.max()))
    if width == TERNARY:
        return Levels("int2", -1, 1)
    dtype = f"int{width}"
    lo, hi = numerics.limits(dtype)
    return Levels(dtype, lo if hi <= 1 else -hi, hi)


def quantize_weights(
    weights: NDArray[Any],
    bias: NDArray[Any],
    scale_in: float,
    width: Weights = 8,
    steps: NDArray[Any] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric integers per output channel.

    From 3 bits up the largest weight is the largest integer. 2 bits and ternary take the scale of
    least squared error, 1 bit the signs and the mean magnitude, which is the same thing.

    The bias bounds the scale from below: it must fit 32 bits in steps of scale * scale_in. So a
    channel of zeros keeps its bias to 20 bits, and a channel without anything gets scale 1. With 1
    bit, which has no 0, such a channel gets the smallest scale instead.

    Args:
        weights: (O, …) float32.
        bias: (O,) float32.
        scale_in: of the activations that the weights meet.
        width: bits, or ternary.
        steps: (O,) scales to take instead, above the bound; 1 bit has its own.

    Returns:
        (O, …) integers within `weight_levels`, and (O,) scales.
    """
    rows = weights.reshape(weights.shape[0], -1).astype(np.float64)
    magnitude = np.abs(bias.astype(np.float64))
    enough = magnitude / (scale_in * BIAS_LIMIT)
    if width == 1:
        means = np.maximum(np.abs(rows).mean(axis=1), enough)
        scale = np.maximum(means, SMALLEST).astype(np.float32)
        signs = np.where(rows < 0, -1, 1).astype(np.int8)
        return signs.reshape(weights.shape), scale
    levels = weight_levels(width)
    largest = np.abs(rows).max(axis=1)
    if steps is None and levels.hi > 1:
        steps = largest / levels.hi
    elif steps is None:
        steps = np.array([least_squares(row, levels) for row in rows])
    natural, only_bias = np.maximum(steps, enough), magnitude / (scale_in * BIAS_STEPS)
    scale = np.where(largest > SMALLEST * levels.hi, natural, only_bias)
    scale = np.where(scale > SMALLEST, scale, 1.0).astype(np.float32)
    ratio = np.rint(rows / scale.astype(np.float64)[:, None])
    integers = np.clip(ratio, levels.lo, levels.hi).astype(np.int8)
    return integers.reshape(weights.shape), scale


def quantize_groups(
    weights: NDArray[Any], group: int, width: Weights, symmetric: bool
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """Weights with a scale (and zero point) for every ``group`` of them along the inputs.

    Symmetric groups are `quantize_weights` of each. Otherwise a group's range, zero included, is
    spread over all 2^bits values, and the zero point is the integer of 0. In a code book a group's
    largest magnitude is the largest level, every weight the level nearest to it.

    Args:
        weights: (O, K) float32.
        group: weights that share a scale; the last group of a row may be shorter.
        width: 2 to 8 bits; with ``symmetric`` also ternary, or a code book.
        symmetric: all zero points are 0.

    Returns:
        (O, K) integers, (O, G) scales and (O, G) zero points, G = ceil(K / group).
    """
    o, k = weights.shape
    groups = -(-k // group)
    padded = np.pad(weights, ((0, 0), (0, groups * group - k)))  # zeros widen no range
    rows = padded.reshape(o * groups, group).astype(np.float64)
    if width in BOOKS:
        q, scale = _by_book(rows, width)
        zero = np.zeros(len(rows))
    elif symmetric:
        q, scale = quantize_weights(rows, np.zeros(len(rows)), 1.0, width)
        zero = np.zeros(len(rows))
    else:
        lo, hi = numerics.limits(f"int{width}")
        low, high = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
        scale = ((high - low) / (hi - lo)).astype(np.float32)
        scale = np.where(scale > SMALLEST, scale, np.float32(1))
        step = scale.astype(np.float64)
        zero = np.clip(np.rint(lo - low / step), lo, hi)
        q = np.clip(np.rint(rows / step[:, None]) + zero[:, None], lo, hi).astype(np.int8)
    integers = np.ascontiguousarray(q.reshape(o, groups * group)[:, :k])
    shape = (o, groups)
    return integers, scale.reshape(shape), zero.astype(np.int32).reshape(shape)


def _by_book(rows: NDArray[np.float64], book: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Levels and a scale for each row."""
    scale = (np.abs(rows).max(axis=1) / code_books.levels(book).max()).astype(np.float32)
    scale = np.where(scale > SMALLEST, scale, np.float32(1))
    return code_books.nearest(rows / scale.astype(np.float64)[:, None], book), scale


def least_squares(row: NDArray[np.float64], levels: Levels) -> float:
    """The scale s that minimises Σ (w - s·q)², q = w/s rounded and clamped: exactly.

    With A = Σ w·q and B = Σ q², the best s for given q is A/B, and its error Σ w² - A²/B. As s
    falls, the q of a weight goes from k-1 to k at s = |w| / (k - 1/2), which adds |w| to A and
    2k - 1 to B. So all q that rounding can give are the prefixes of these steps, sorted by s.

    Args:
        row: the weights of one channel.
        levels: the integers allowed.

    Returns:
        The scale; 0 for a channel of zeros.
    """
    at, gain, cost = [], [], []
    for side, most in ((row[row > 0], levels.hi), (-row[row < 0], -levels.lo)):
        for k in range(1, most + 1):
            at.append(side / (k - 0.5))
            gain.append(side)
            cost.append(np.full(side.shape, 2.0 * k - 1.0))
    order = np.argsort(-np.concatenate(at), kind="stable")
    if order.size == 0:
        return 0.0
    a = np.cumsum(np.concatenate(gain)[order])
    b = np.cumsum(np.concatenate(cost)[order])
    best = int(np.argmax(a * (a / b)))
    return float(a[best] / b[best])
