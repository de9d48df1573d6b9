"""CLADO's integer quadratic programme: min Σ loss·z + ½ zᵀ·pairs·z within the limits.

Products of two options are linearised exactly: y_ij stands for z_i·z_j, and for the options j of
another group Σ_j y_ij = z_i (Adams and Sherali's reformulation: it implies McCormick's three
inequalities, and its relaxation is much tighter because one option of each group is taken).
HiGHS starts from what a local search found, and reports what it could not prove in time as a gap.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from nybble.allocation import ilp
from nybble.allocation.model import Model, chosen
from nybble.allocation.problem import Array, Problem, loosened
from nybble.allocation.result import Solved


def solve(problem: Problem, seconds: float) -> Solved:
    """The best choice found, with the gap to the proven bound.

    Raises:
        AllocationError: no choice keeps the limits.
    """
    linear = ilp.solve(problem, seconds)
    if problem.pairs is None or not problem.pairs.any():
        return linear
    start = improved(problem, linear.chosen)
    model = Model.of(problem, problem.loss)
    products = _linearise(model, problem, problem.pairs)
    ones = [*start, *(y for (i, j), y in products.items() if i in start and j in start)]
    found = model.solve(seconds, sorted(ones))
    assert found is not None  # the linear programme has a choice, so this one has
    values, bound = found
    best = min(start, chosen(problem, values), key=problem.objective)
    return Solved(best, ilp.relative_gap(problem.objective(best), bound))


def _linearise(model: Model, problem: Problem, pairs: Array) -> dict[tuple[int, int], int]:
    """Adds the products; returns the column of each (i, j)."""
    products: dict[tuple[int, int], int] = {}
    for g, h in combinations(range(len(problem.groups)), 2):
        mine, theirs = problem.options(g), problem.options(h)
        if not pairs[mine.start : mine.stop, theirs.start : theirs.stop].any():
            continue
        for i in mine:
            for j in theirs:
                products[i, j] = model.add_column(float(pairs[i, j]))
        for i in mine:
            row = [products[i, j] for j in theirs]
            model.rows.append(([*row, i], [*[1.0] * len(row), -1.0], 0.0, 0.0))
        for j in theirs:
            row = [products[i, j] for i in mine]
            model.rows.append(([*row, j], [*[1.0] * len(row), -1.0], 0.0, 0.0))
    return products


def improved(problem: Problem, start: tuple[int, ...]) -> tuple[int, ...]:
    """Changes the option of one or of two groups, the best such change first, while that helps."""
    assert problem.pairs is not None
    group = np.repeat(np.arange(len(problem.groups)), np.diff(problem.first))
    other = group[:, None] != group[None, :]
    picked = np.array(start)
    while True:
        now = picked[group]  # the option that is taken where each option could be
        slope = problem.loss + problem.pairs[:, picked].sum(axis=1)
        single = slope - slope[now]
        matrix = problem.pairs
        both = matrix - matrix[:, now] - matrix[now] + matrix[np.ix_(now, now)]
        gain = np.where(other, single[:, None] + single[None, :] + both, np.inf)
        gain = np.where(_affordable(problem, picked, now), gain, np.inf)
        i, j = np.unravel_index(int(np.argmin(gain)), gain.shape)
        if gain[i, j] >= -1e-12 * max(1e-300, abs(problem.objective(picked.tolist()))):
            return tuple(picked.tolist())
        picked[group[[i, j]]] = [i, j]


def _affordable(problem: Problem, picked: Any, now: Any) -> Any:
    """Which pairs of options may be taken together within the limits."""
    fine = np.ones((len(now), len(now)), bool)
    for name, limit in problem.limits.items():
        cost = problem.costs[name]
        more = cost - cost[now]
        fine &= cost[picked].sum() + more[:, None] + more[None, :] <= loosened(limit)
    return fine
