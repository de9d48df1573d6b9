"""Makes room in the accumulators of imported layers whose biases nearly fill 32 bits.

Tools that give a channel of (nearly) zero weights a tiny scale stretch it until the bias just fits
int32, which leaves no room for the products. Such a channel is put on a grid 2^k times as coarse:

    w' = round(w / 2^k),  scale' = scale · 2^k

which moves its results by at most scale · s_x · (Σ |x| · |w - 2^k·w'| + 2^k / 2).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nybble.ir import numerics
from nybble.passes.integer_emitters import ACCUMULATOR_LIMIT, accumulator_steps
from nybble.passes.regions import Accumulators

SHARE = 1 / 64  # of an output step, that results may move by


def with_room(acc: Accumulators, step: float) -> Accumulators | None:
    """The same layer with accumulators that keep within 32 bits; None where that shows.

    Args:
        acc: a layer as imported.
        step: of the grid that its results are rounded to.
    """
    bound = _bound(acc)
    coarser = np.zeros(len(bound), np.int64)
    over = bound >= ACCUMULATOR_LIMIT
    if not over.any():
        return acc
    coarser[over] = np.ceil(np.log2(bound[over] / ACCUMULATOR_LIMIT)).astype(np.int64) + 1
    factor = np.exp2(coarser)
    per_row = factor.reshape(-1, *[1] * (acc.weights.ndim - 1))
    weights = np.rint(acc.weights / per_row).astype(acc.weights.dtype)
    lost = np.abs(acc.weights - weights * per_row).reshape(len(factor), -1).sum(axis=1)
    moved = acc.scale * acc.x.grid.scale * (lost * _largest(acc) + np.where(over, factor / 2, 0))
    found = replace(acc, weights=weights, scale=acc.scale * factor)
    fits = bool(np.all(_bound(found) < ACCUMULATOR_LIMIT))
    return found if fits and float(moved.max()) <= SHARE * step else None


def _largest(acc: Accumulators) -> float:
    """The largest distance of an activation from its zero point."""
    ends = numerics.limits(acc.x.grid.dtype)
    return float(max(abs(end - acc.x.grid.zero_point) for end in ends))


def _bound(acc: Accumulators) -> NDArray[np.float64]:
    """What the accumulators of each channel may reach."""
    rows, steps = accumulator_steps(acc)
    largest = max(map(abs, numerics.limits(acc.x.grid.dtype)))
    return np.asarray(np.abs(rows).sum(axis=1) * float(largest) + np.abs(steps))
