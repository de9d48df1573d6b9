"""What transformed tiles and weights reach, and how many products of them 16 bits can take.

Activations of b bits are read as 0 … X = 2^b - 1. A transformed tile holds sums of two minus sums
of two of them, -2X … 2X, but for the spot (1, 1), a sum of four. To be read as unsigned bytes the
others are moved up by ``shift_of``, a multiple of four that is at least 2X; so b <= 6. The products
then have too much, by a constant for each channel and each of the four outputs of a tile
(`surplus`), which the bias takes back.

``vpmaddubsw`` adds pairs of products v·u into a saturating s16. A *step* is four channels, two
pairs in two 16-bit lanes; a *window* is ``tile_flush`` steps that are added up in 16 bits. Sums
between may wrap around; a window is safe, whatever the activations low <= v <= high, when

    high · Σ u⁺ - low · Σ u⁻ <= 32767   and   high · Σ u⁻ - low · Σ u⁺ <= 32768

and so must every single pair be, which would saturate.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import numerics
from nybble.schedules.kernel import Problem

SPOTS = 16  # positions of a transformed 4x4 tile
SUM = 5  # the spot (1, 1)
DEPTH = 4  # channels of a step
SHARES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # windows of a sum over all channels, at most
SHORTEST = 4  # steps of a window; widening more often costs what the transform gains

Integers = NDArray[np.int64]


def shift_of(dtype: str) -> int:
    """What is added to transformed activations of ``dtype``, but for the spot (1, 1)."""
    low, high = numerics.limits(dtype)
    return ceil((high - low) / 2) * 4


def transformed(weights: NDArray[Any]) -> NDArray[np.int16]:
    """(O, 3, 3, C) weights of up to 8 bits as (O, spots, C): G·g·Gᵀ."""
    return _doubled(_doubled(weights.astype(np.int16), 1), 2).reshape(len(weights), SPOTS, -1)


def _doubled(w: NDArray[np.int16], axis: int) -> NDArray[np.int16]:
    first, middle, last = np.moveaxis(w, axis, 0)
    ends = first + last
    return np.stack([2 * first, ends + middle, ends - middle, 2 * last], axis)


def surplus(dtype: str, u: NDArray[np.int16]) -> Integers:
    """What the shifted activations add to the four outputs of a tile: (4, O), row by row."""
    sums = u.sum(2, dtype=np.int64) * shift_of(dtype)
    sums[:, SUM] = 0
    lines = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
    four = np.einsum("is,jt,ost->ijo", lines, lines, sums.reshape(-1, 4, 4))
    return np.asarray(four.reshape(4, -1) // 4)  # exact: shifts are multiples of four


def flush_of(problem: Problem, weights: NDArray[Any]) -> int:
    """`Problem.tile_flush`: the longest even share of the channels that is safe; 0 if too short.

    Args:
        problem: a ``conv2d`` or ``linear`` problem with integer activations and weights.
        weights: their values, OHWI or (O, K).
    """
    if not is_plain(problem) or numerics.width(problem.inputs[0].dtype)[1] > 6:
        return 0
    u = transformed(weights)
    steps = ceil(u.shape[2] / DEPTH)
    spans = sorted({ceil(steps / share) for share in SHARES}, reverse=True)
    safe = (span for span in spans if span >= min(SHORTEST, steps))
    return next((span for span in safe if fits(problem, u, span)), 0)


def is_plain(problem: Problem) -> bool:
    """Whether it is a 3x3 convolution with stride 1, without dilation and groups."""
    if problem.op != "conv2d" or problem.weights is None:
        return False
    attrs = dict(problem.attrs)
    plain = tuple(attrs["strides"]) == tuple(attrs["dilation"]) == (1, 1) and attrs["groups"] == 1
    return plain and tuple(problem.weights.shape[1:3]) == (3, 3)


def fits(problem: Problem, u: NDArray[np.int16], span: int) -> bool:
    """Whether transformed weights are bytes and their windows of ``span`` steps are safe."""
    if u.max(initial=0) > 127 or u.min(initial=0) < -128:
        return False
    filled = np.pad(u, [(0, 0), (0, 0), (0, -u.shape[2] % DEPTH)])
    pairs = filled.reshape(*u.shape[:2], -1, DEPTH // 2, 2)
    signed = [np.maximum(sign * pairs, 0).sum(4, dtype=np.int32) for sign in (1, -1)]
    starts = np.arange(0, pairs.shape[2], span)
    windows = [np.add.reduceat(part, starts, axis=2) for part in signed]
    return _safe(problem, *signed) and _safe(problem, *windows)


def _safe(problem: Problem, positive: NDArray[np.int32], negative: NDArray[np.int32]) -> bool:
    """Whether sums of products, (O, spots, …), fit 16 bits."""
    low, high = _reach(problem.inputs[0].dtype)
    shape = (1, SPOTS, 1, 1)
    low, high = low.reshape(shape), high.reshape(shape)
    most = (high * positive - low * negative).max()
    return bool(most <= 32767 and (high * negative - low * positive).max() <= 32768)


def _reach(dtype: str) -> tuple[Integers, Integers]:
    """The smallest and the largest shifted activation at every spot."""
    low, high = numerics.limits(dtype)
    span, shift = high - low, shift_of(dtype)
    lows, highs = np.full(SPOTS, shift - 2 * span), np.full(SPOTS, shift + 2 * span)
    lows[SUM], highs[SUM] = 0, 4 * span
    return lows, highs
