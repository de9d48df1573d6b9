"""The best choice of widths within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nybble.allocation import closed_form, ilp, iqp
from nybble.allocation.problem import Problem, Table, Width, problem_of
from nybble.allocation.result import Allocation, Solved
from nybble.errors import AllocationError

SECONDS = 60.0
SOLVERS: dict[str, Callable[[Problem, float], Solved]] = {
    "ilp": ilp.solve,
    "iqp": iqp.solve,
    "closed_form": closed_form.solve,
}


def allocate(  # noqa: PLR0913  (the problem's own parts)
    sensitivity: Any,
    costs: Mapping[str, Table],
    budget: Mapping[str, float],
    ties: Iterable[Iterable[str]] = (),
    solver: str = "ilp",
    *,
    fixed: Mapping[str, Width] | None = None,
    seconds: float = SECONDS,
) -> Allocation:
    """Chooses a width for every layer: the least loss within all limits of the budget.

    ``ilp`` is HAWQ-V3's integer linear programme (arXiv 2011.10680, eq. 9), ``iqp`` CLADO's
    quadratic one with pairwise terms (arXiv 2307.05657), ``closed_form`` BAQ's rates rounded to
    the widths (arXiv 2506.05664), for one limit.

    Args:
        sensitivity: {layer: {width: loss}}, or what `nybble.sensitivity` returned, whose pairwise
            terms ``iqp`` reads. Any hashable may be a width.
        costs: {cost: {layer: {width: value}}}, such as ``{"size": …, "latency": …}``.
        budget: {cost: limit}, any number of them. A float from 0 to 1 is a share of the way from
            the cheapest model to the dearest, unless it lies between the costs of the two; other
            numbers, and any `nybble.allocation.problem.Limit`, are limits as they stand.
        ties: groups of layers that must agree.
        solver: ``ilp``, ``iqp`` or ``closed_form``.
        fixed: {shell-style pattern of layer names: width}; the last pattern that matches decides.
        seconds: how long ``iqp`` may search; what it could not prove is the allocation's ``gap``.

    Raises:
        AllocationError: the tables do not go together, a name is unknown, tied layers have no
            width in common, or no choice keeps the budget (says which limit binds, and the nearest
            that can be kept).
    """
    if solver not in SOLVERS:
        raise AllocationError(f"solver={solver!r} is not one of: {', '.join(SOLVERS)}.")
    problem = problem_of(sensitivity, costs, budget, ties, fixed)
    solved = SOLVERS[solver](problem, seconds)
    return Allocation.of(problem, solved)
