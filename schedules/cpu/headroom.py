"""How many products of u8 activations and s8 weights 16 bits can take, proven from the weights.

``vpmaddubsw`` adds pairs of products into a saturating s16. A *step* is four consecutive weights of
a channel, two pairs in two 16-bit lanes; a *window* is ``flush`` consecutive steps of one run that
are added up in 16 bits before they are widened. A window of a lane is safe, whatever the
activations, when

    most · Σ w⁺ <= 32767   and   most · Σ w⁻ <= 32768      (most: the largest activation)

The few windows of a layer that are not safe give up what is too much: it becomes a list of further
steps (where to read x, a vector of weights), at most two for each step. So any window length is
exact for any weights, only the list grows; ``flush_of`` takes the cheapest. Where all windows are
safe the kernel has no list at all, which shorter ones are worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from nybble.ir import numerics
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.kernel import Problem

DEPTH = 4  # weights of a step
LANES = 8  # channels of the narrowest vector
EXCESS = 2.3  # instructions of a further step
LIST = 4.0  # what asking for further steps costs a vector of channels
WIDENING = 3.0  # of a window, for a vector of channels, whose int32 accumulators lie in memory
WIDENED = 4.2  # instructions of a step by vpmaddwd, staging included: the alternative

Weights = NDArray[np.int8]


@dataclass(frozen=True)
class Limits:
    """Largest sums of positive and of negative weights in a window of one 16-bit lane."""

    positive: int
    negative: int


def limits_of(dtype: str) -> Limits:
    """The limits for activations of ``dtype``, which are read as unsigned."""
    lo, hi = numerics.limits(dtype)
    return Limits(32767 // (hi - lo), 32768 // (hi - lo))


def steps_of(geometry: Geometry, weights: NDArray[np.generic]) -> Weights:
    """Weights as (channels, taps, steps of a run, 4), the last step of a run filled with zeros."""
    taps = geometry.tap_rows * geometry.tap_cols
    shape = (geometry.groups * geometry.o, taps, geometry.runs(DEPTH) * DEPTH)
    padded = np.zeros(shape, np.int8)
    padded[..., : geometry.run] = weights.reshape(*shape[:2], geometry.run)
    return padded.reshape(*shape[:2], -1, DEPTH)


# ---------------------------------------------------------------- choosing the window


def flush_of(problem: Problem, weights: NDArray[np.generic]) -> int:
    """The cheapest window for a ``conv2d`` or ``linear`` problem, in steps; 0 if none pays.

    Args:
        problem: with integer activations and weights of at most 8 bits.
        weights: their values, OHWI or (O, K).
    """
    assert problem.weights is not None
    dtypes = (problem.inputs[0].dtype, problem.weights.dtype)
    symbolic = any(isinstance(d, str) for d in problem.inputs[0].shape[1:])
    if any(numerics.width(d)[1] > 8 for d in dtypes) or problem.weights.dtype == "uint8":
        return 0
    if problem.op == "conv2d" and symbolic:
        return 0
    sums = _sums(problem, weights)
    limits, lengths = limits_of(dtypes[0]), _lengths(sums[0].shape[2])
    costs = {n: _cost(_over(sums, limits, n), n, sums[0].shape[1:3]) for n in lengths}
    best = min(costs, key=lambda flush: (costs[flush], flush))
    return best if costs[best] < WIDENED else 0


def is_safe(problem: Problem, weights: NDArray[np.generic]) -> bool:
    """Whether all windows of ``problem.flush`` steps fit as they are: `Problem.safe`."""
    if not problem.flush:
        return False
    over = _over(_sums(problem, weights), limits_of(problem.inputs[0].dtype), problem.flush)
    return not any(most.any() for most, _ in over)


def _sums(problem: Problem, weights: NDArray[np.generic]) -> list[NDArray[np.int32]]:
    """Positive and negative weights of each lane of each step: (channels, taps, steps, 2)."""
    geometry = geometry_of(problem)
    pairs = steps_of(geometry, weights).reshape(-1, 2).astype(np.int16)
    shape = (geometry.groups * geometry.o, -1, geometry.runs(DEPTH), 2)
    return [np.maximum(sign * pairs, 0).sum(1, dtype=np.int32).reshape(shape) for sign in (1, -1)]


def _over(
    sums: list[NDArray[np.int32]], limits: Limits, flush: int
) -> list[tuple[NDArray[np.int32], int]]:
    """For both signs: what windows of ``flush`` steps have too much, and the largest sum."""
    starts = np.arange(0, sums[0].shape[2], flush)
    return [
        (np.maximum(np.add.reduceat(signed, starts, axis=2) - limit, 0), int(signed.max()))
        for signed, limit in zip(sums, (limits.positive, limits.negative), strict=True)
    ]


def _lengths(steps: int) -> list[int]:
    """Windows worth trying: single steps, two, and even shares of a run."""
    shares = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
    return sorted({1, min(2, steps), *(n for n in (ceil(steps / c) for c in shares) if n > 2)})


def _cost(over: list[tuple[NDArray[np.int32], int]], flush: int, extent: tuple[int, ...]) -> float:
    """Instructions for each step, further steps included; ``extent``: taps, steps of a run."""
    taps, steps = extent
    # Weights of middle size are moved, a further step each.
    moves = sum((-(-most // max(largest // 4, 1))).sum(3) for most, largest in over)
    blocks = np.add.reduceat(moves, np.arange(0, len(moves), LANES), axis=0)
    widening = 2.0 if taps * steps <= flush else WIDENING
    regular = {1: 3.0, 2: 2.5}.get(flush, 2 + widening / flush)
    further = np.minimum(blocks, 2 * flush).mean() * blocks.shape[2] / steps
    return float(regular + LIST * blocks.any() / (taps * steps) + EXCESS * further)


# ---------------------------------------------------------------- splitting


def split(steps: Weights, flush: int, limits: Limits) -> tuple[Weights, Weights, Weights]:
    """Weights whose windows are safe, and what they gave up.

    Args:
        steps: (channels, taps, steps, 4).
        flush: steps of a window.
        limits: of a window.

    Returns:
        Three arrays like ``steps`` whose sum is ``steps``. The first has safe windows of ``flush``
        steps, the others safe single steps; they are nearly all zero.
    """
    kept, given = _split(steps, flush, limits)
    first, second = _split(given, 1, limits)
    return kept, first, second


def _split(steps: Weights, flush: int, limits: Limits) -> tuple[Weights, Weights]:
    channels, taps, count, _ = steps.shape
    windows = ceil(count / flush)
    padded = np.zeros((channels, taps, windows * flush, DEPTH), np.int16)
    padded[:, :, :count] = steps
    lanes = padded.reshape(channels, taps, windows, flush, 2, 2).transpose(0, 1, 2, 4, 3, 5)
    kept = lanes.reshape(-1, 2 * flush).copy()
    given = np.zeros_like(kept)
    for sign, limit in ((1, limits.positive), (-1, limits.negative)):
        _relieve(kept, given, sign, limit)
    return _steps(kept, steps.shape, flush), _steps(given, steps.shape, flush)


def _relieve(kept: NDArray[np.int16], given: NDArray[np.int16], sign: int, limit: int) -> None:
    """Moves the largest weights of one sign from the rows of ``kept`` that exceed the limit."""
    while True:
        over = np.maximum(sign * kept, 0).sum(1, dtype=np.int32) - limit
        rows = np.flatnonzero(over > 0)
        if not rows.size:
            return
        largest = (sign * kept[rows]).argmax(1)
        moved = sign * np.minimum(over[rows], sign * kept[rows, largest])
        kept[rows, largest] -= moved.astype(np.int16)
        given[rows, largest] += moved.astype(np.int16)


def _steps(lanes: NDArray[np.int16], shape: tuple[int, ...], flush: int) -> Weights:
    """Back from rows of a lane's window to (channels, taps, steps, 4)."""
    split = lanes.reshape(*shape[:2], -1, 2, flush, 2).transpose(0, 1, 2, 4, 3, 5)
    flat = split.reshape(*shape[:2], -1, DEPTH)[:, :, : shape[2]]
    return np.ascontiguousarray(flat.astype(np.int8))
