"""HAWQ-V3's integer linear programme: min Σ loss·z, one option a group, within the limits."""

from __future__ import annotations

from nybble.allocation.model import Model, chosen, infeasible
from nybble.allocation.problem import Problem
from nybble.allocation.result import Solved


def solve(problem: Problem, seconds: float) -> Solved:
    """The proven optimum of the linear losses; pairwise terms are not looked at.

    Raises:
        AllocationError: no choice keeps the limits.
    """
    found = Model.of(problem, problem.loss).solve(seconds)
    if found is None:
        raise infeasible(problem)
    values, bound = found
    picked = chosen(problem, values)
    loss = float(problem.loss[list(picked)].sum())
    return Solved(picked, relative_gap(loss, bound))


def relative_gap(loss: float, bound: float) -> float:
    """How much of a loss could be saved, given a lower bound; rounding counts as nothing."""
    gap = (loss - bound) / max(abs(loss), 1e-300)
    return gap if gap > 1e-9 else 0.0
