"""Which activations meet in a pair: an order of K in which few pairs of products exceed 16 bits.

``vpmaddubsw`` adds the products of two neighbouring activations at 16 bits, which 8-bit weights may
exceed: 255·(w0 + w1) > 32767. Which activations are neighbours is free, as long as their weights
move along. An *order* permutes K within blocks of sixteen, as one ``vpshufb`` does to activations,
and it holds for one unit of output channels:

    weights of a unit        0: 90 70 -8 ...    pairs (0, 1) and (2, 3) exceed 16 bits in a channel
                             1: 20 -3 99 64     each, (0, 3) and (1, 2) in none: 0 3 1 2

Sixteen activations can be paired in two million ways, so nearly always one is good in all sixteen
channels of a unit. What remains becomes further steps (`nybble.schedules.cpu.headroom`).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from nybble.schedules.cpu.headroom import Limits

BLOCK = 16  # bytes that vpshufb permutes
SWEEPS = 6  # over all pairs of pairs; a seventh improves next to nothing
ZERO = 0x80  # an index from which vpshufb makes 0


def orders(weights: NDArray[np.integer], unit: int, lanes: int, limits: Limits) -> NDArray[np.intp]:
    """The order of each unit.

    Args:
        weights: (O, K) with O a multiple of ``unit``.
        unit: channels of a unit.
        lanes: channels of a vector: each vector of a unit may need a further step of its own.
        limits: of a pair.

    Returns:
        (O / unit, K): where each weight comes from.
    """
    count, k = len(weights) // unit, weights.shape[1]
    found = np.tile(np.arange(k), (count, 1))
    whole = k // BLOCK * BLOCK
    for start, size in ((0, whole), (whole, k - whole)):
        if size:
            width = min(size, BLOCK)
            part = weights[:, start : start + size].reshape(count, unit, -1, width)
            blocks = part.transpose(0, 2, 1, 3).reshape(-1, unit, width)
            order = _matched(_costs(blocks, lanes, limits))
            places = order.reshape(count, -1, width) + np.arange(0, size, width)[:, None]
            found[:, start : start + size] = start + places.reshape(count, size)
    return found


def _costs(blocks: NDArray[np.integer], lanes: int, limits: Limits) -> NDArray[np.int8]:
    """(blocks, channels, width) -> further steps that each pair needs, (blocks, width, width)."""
    count, channels, width = blocks.shape
    costs = np.zeros((count, width, width), np.int8)
    parts = [np.maximum(sign * blocks.astype(np.int16), 0) for sign in (1, -1)]
    for a, b in combinations(range(width), 2):
        over = parts[0][..., a] + parts[0][..., b] > limits.positive
        over |= parts[1][..., a] + parts[1][..., b] > limits.negative
        cost = over.reshape(count, channels // lanes, lanes).any(axis=2).sum(axis=1)
        costs[:, a, b] = costs[:, b, a] = cost
    return costs


def _matched(costs: NDArray[np.int8]) -> NDArray[np.intp]:
    """A cheap perfect matching of each block as an order, the costliest pairs first.

    Two pairs exchange partners where that is no worse, in random order, so that plateaus are left.
    """
    count, width, _ = costs.shape
    rng = np.random.default_rng(0)
    order, rows = np.tile(np.arange(width), (count, 1)), np.arange(count)
    duels = list(combinations(range(width // 2), 2))
    for _ in range(SWEEPS):
        for duel in rng.permutation(len(duels)):
            p, q = (2 * pair for pair in duels[duel])
            a, b, c, d = (order[:, at] for at in (p, p + 1, q, q + 1))
            options = [
                costs[rows, a, b] + costs[rows, c, d],
                costs[rows, a, c] + costs[rows, b, d],
                costs[rows, a, d] + costs[rows, b, c],
            ]
            better = np.where(options[2] <= options[1], 2, 1)
            taken = np.where(np.minimum(options[1], options[2]) <= options[0], better, 0)
            partner = np.choose(taken, [b, c, d])
            first, second = np.choose(taken, [c, b, b]), np.choose(taken, [d, d, c])
            order[:, p + 1], order[:, q], order[:, q + 1] = partner, first, second
    if width % 2 == 0:
        pairs = order.reshape(count, -1, 2)
        rank = np.argsort(
            -costs[rows[:, None], pairs[..., 0], pairs[..., 1]], axis=1, kind="stable"
        )
        order = np.take_along_axis(pairs, rank[..., None], axis=1).reshape(count, width)
    return order


def indices(found: NDArray[np.intp]) -> NDArray[np.uint8]:
    """What ``vpshufb`` takes: (units, K) -> (units, bytes), sixteen for each block.

    The last block, where it is shorter, is read from the last sixteen activations.
    """
    count, k = found.shape
    table = np.full((count, -(-k // BLOCK) * BLOCK), ZERO, np.uint8)
    starts = np.arange(k) // BLOCK * BLOCK
    table[:, :k] = found - np.where(starts + BLOCK <= k, starts, k - BLOCK)
    return table
