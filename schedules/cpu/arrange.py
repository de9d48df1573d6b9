"""Which activations meet in 16 bits: an order of K in which few sums of products exceed them.

``vpmaddubsw`` adds the products of two neighbouring activations at 16 bits, which 8-bit weights may
exceed: 255·(w0 + w1) > 32767. Which activations are neighbours is free, as long as their weights
move along. An *order* permutes K within blocks of sixteen, as one ``vpshufb`` does to activations,
and it holds for one unit of output channels:

    weights of a unit        0: 90 70 -8 ...    pairs (0, 1) and (2, 3) exceed 16 bits in a channel
                             1: 20 -3 99 64     each, (0, 3) and (1, 2) in none: 0 3 1 2

Sixteen activations can be put into eight pairs in two million ways, so nearly always one is good in
all sixteen channels of a unit. The four groups of two windows of two steps leave a few per cent of
further steps (`nybble.schedules.cpu.headroom`) where the largest weight is four deviations away.
"""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from nybble.schedules.cpu.headroom import DEPTH, Limits

BLOCK = 16  # bytes that vpshufb permutes
SWEEPS = 4  # over all exchanges; a fifth improves next to nothing
CHUNK = 1024  # blocks whose sums stay in the second-level cache
ZERO = 0x80  # an index from which vpshufb makes 0

Order = NDArray[np.intp]


def orders(
    weights: NDArray[np.integer], unit: int, lanes: int, limits: Limits, flush: int
) -> Order:
    """The order of each unit.

    Args:
        weights: (O, K) with O a multiple of ``unit``.
        unit: channels of a unit.
        lanes: channels of a vector: each vector of a unit may need a further step of its own.
        limits: of a window.
        flush: steps of a window, 1 or 2.

    Returns:
        (O / unit, K): where each weight comes from.
    """
    count, k = len(weights) // unit, weights.shape[1]
    found = np.tile(np.arange(k), (count, 1))
    whole, window = k // BLOCK * BLOCK, DEPTH * flush
    for start, size in ((0, whole), (whole, (k - whole) // window * window)):
        if size:
            width = min(size, BLOCK)
            part = weights[:, start : start + size].reshape(count, unit // lanes, lanes, -1, width)
            blocks = part.transpose(0, 3, 4, 1, 2).reshape(-1, width, unit // lanes, lanes)
            cuts = np.split(blocks, range(CHUNK, len(blocks), CHUNK))
            order = np.concatenate([_Search(cut, limits, 2 * flush).order() for cut in cuts])
            places = order.reshape(count, -1, width) + np.arange(0, size, width)[:, None]
            found[:, start : start + size] = start + places.reshape(count, size)
    return found


class _Search:
    """Groups of the activations of some blocks; two groups exchange two where that is no worse.

    Args:
        blocks: weights, (blocks, width, vectors, lanes).
        limits: of a group.
        size: activations of a group.
    """

    def __init__(self, blocks: NDArray[np.integer], limits: Limits, size: int):
        count, width = blocks.shape[:2]
        signed = np.stack([np.maximum(blocks, 0), np.maximum(-blocks.astype(np.int16), 0)], axis=2)
        self.parts = signed.astype(np.int16)
        self.limits = np.array([limits.positive, limits.negative], np.int16)[:, None, None]
        self.groups = np.tile(np.arange(width), (count, 1)).reshape(count, -1, size)
        shape = (count, width // size, size, *self.parts.shape[2:])
        self.sums = self.parts.reshape(shape).sum(2, dtype=np.int16)
        self.costs = self._cost(self.sums)

    def order(self) -> Order:
        """The order of each block, (blocks, width), the costliest groups first."""
        count, groups, size = self.groups.shape
        exchanges = list(product(combinations(range(groups), 2), range(size), range(size)))
        rng = np.random.default_rng(0)
        for _ in range(SWEEPS):
            for index in rng.permutation(len(exchanges)):
                self._exchange(*exchanges[index])
        rank = np.argsort(-self.costs, axis=1, kind="stable")
        ranked = np.take_along_axis(self.groups, rank[..., None], axis=1)
        lanes = ranked.reshape(count, groups // 2, 2, size // 2, 2)  # a step has two lanes of two
        return lanes.transpose(0, 1, 3, 2, 4).reshape(count, -1)

    def _exchange(self, pair: tuple[int, int], i: int, j: int) -> None:
        """Member ``i`` of one group for member ``j`` of another."""
        p, q = pair
        before = self.costs[:, p] + self.costs[:, q]
        rows = np.flatnonzero(before)
        a, b = self.groups[rows, p, i], self.groups[rows, q, j]
        change = self.parts[rows, b] - self.parts[rows, a]
        sums = self.sums[rows, p] + change, self.sums[rows, q] - change
        costs = self._cost(sums[0]), self._cost(sums[1])
        taken = costs[0] + costs[1] <= before[rows]  # sideways too: so plateaus are left
        rows = rows[taken]
        self.groups[rows, p, i], self.groups[rows, q, j] = b[taken], a[taken]
        for group, value, cost in zip(pair, sums, costs, strict=True):
            self.sums[rows, group], self.costs[rows, group] = value[taken], cost[taken]

    def _cost(self, sums: NDArray[np.int16]) -> NDArray[np.int64]:
        """Vectors in which a sum is too large: (…, signs, vectors, lanes) -> (…)."""
        return (sums > self.limits).any(axis=(-3, -1)).sum(axis=-1)


def indices(found: Order) -> NDArray[np.uint8]:
    """What ``vpshufb`` takes: (units, K) -> (units, bytes), sixteen for each block.

    The last block, where it is shorter, is read from the last sixteen activations.
    """
    count, k = found.shape
    table = np.full((count, -(-k // BLOCK) * BLOCK), ZERO, np.uint8)
    starts = np.arange(k) // BLOCK * BLOCK
    table[:, :k] = found - np.where(starts + BLOCK <= k, starts, k - BLOCK)
    return table
