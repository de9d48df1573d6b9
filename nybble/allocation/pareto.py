"""The whole front of loss against one cost, by dynamic programming over the layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nybble.allocation.problem import Array, Problem, Table, Width, problem_of
from nybble.allocation.result import Allocation, Solved
from nybble.errors import AllocationError, near

MOST = 50_000  # states kept: beyond that the front is thinned


class _Front(NamedTuple):
    """Choices of the first groups that no other is as cheap and as good as, by rising cost.

    Attributes:
        cost: of each.
        loss: of each.
        back: which state of the front before it each extends.
        option: what it adds.
    """

    cost: Array
    loss: Array
    back: NDArray[np.int64]
    option: NDArray[np.int64]


def pareto(
    sensitivity: Any,
    costs: Mapping[str, Table],
    axis: str = "size",
    ties: Iterable[Iterable[str]] = (),
    *,
    fixed: Mapping[str, Width] | None = None,
    points: int | None = None,
) -> list[Allocation]:
    """The front of loss against one cost: no other allocation is as cheap and as good.

    Pairwise terms are left out. Up to `MOST` states the front is whole and exact; beyond that its
    points are still allocations as they stand, and some between them are missing.

    Args:
        sensitivity: as for `nybble.allocate`.
        costs: as for `nybble.allocate`.
        axis: the cost to trade against the loss.
        ties: as for `nybble.allocate`.
        fixed: as for `nybble.allocate`.
        points: the most to return, spread evenly over the cost; None returns all.

    Returns:
        Allocations from the cheapest to the dearest, with falling loss.

    Raises:
        AllocationError: the tables do not go together, there are no costs ``axis``, or fewer than
            2 points are asked for.
    """
    if axis not in costs:
        raise AllocationError(
            f"axis={axis!r}: no such costs{near(axis, costs)}. Given: {', '.join(costs)}."
        )
    if points is not None and points < 2:
        raise AllocationError(f"points={points}: a front has at least two.")
    problem = replace(problem_of(sensitivity, costs, {}, ties, fixed), pairs=None)
    fronts = [_Front(np.zeros(1), np.zeros(1), np.zeros(1, int), np.zeros(1, int))]
    for g in range(len(problem.groups)):
        fronts.append(_extended(problem, fronts[-1], g, axis))
    kept = _spread(fronts[-1].cost, points or len(fronts[-1].cost))
    return [Allocation.of(problem, Solved(_traced(fronts, int(end)))) for end in kept]


def _extended(problem: Problem, front: _Front, group: int, axis: str) -> _Front:
    """Every state with every option of the next group, without those that are dominated."""
    options = np.array(problem.options(group))
    cost = (front.cost[:, None] + problem.costs[axis][options]).ravel()
    loss = (front.loss[:, None] + problem.loss[options]).ravel()
    order = np.lexsort((loss, cost))
    best = np.minimum.accumulate(loss[order])
    improves = np.r_[True, loss[order][1:] < best[:-1]]
    kept = order[improves]
    kept = kept[_spread(cost[kept], MOST)]
    return _Front(cost[kept], loss[kept], kept // len(options), options[kept % len(options)])


def _spread(cost: Array, most: int) -> NDArray[np.int64]:
    """At most so many indices, evenly over the cost, with the first and the last."""
    if len(cost) <= most:
        return np.arange(len(cost))
    wanted = np.linspace(cost[0], cost[-1], most)
    return np.unique(np.searchsorted(cost, wanted, side="right") - 1)


def _traced(fronts: list[_Front], state: int) -> tuple[int, ...]:
    """The options behind a state of the last front."""
    chosen = []
    for front in reversed(fronts[1:]):
        chosen.append(int(front.option[state]))
        state = int(front.back[state])
    return tuple(reversed(chosen))
