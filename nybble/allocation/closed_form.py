"""BAQ's closed form: equal loss per bit everywhere, then rounded to the widths that exist.

The losses of a group are taken as c·4^(-R) for R bits, and its cost as a + n·R; then

    min Σ c·4^(-R)  with  Σ n·R = B   is at   R = R̄ + ½ log₂((c/n) / geometric mean(c/n))

with means weighted by n (arXiv 2506.05664, where all n are equal). Rates beyond the smallest or
largest width are held there and the others share the rest, which is the optimum under those bounds.
"""

from __future__ import annotations

import numpy as np

from nybble.allocation.model import infeasible
from nybble.allocation.problem import Array, Problem, loosened
from nybble.allocation.result import Solved
from nybble.errors import AllocationError


def rates(c: Array, n: Array, budget: float, lo: Array, hi: Array) -> Array:
    """Bits that minimise Σ c·4^(-R) with Σ n·R <= budget and lo <= R <= hi.

    Args:
        c: positive, the loss at 0 bits.
        n: positive, the cost of a bit.
        budget: at least Σ n·lo.
        lo: the fewest bits.
        hi: the most bits.
    """
    level = np.log2(c / n) / 2  # R = level - λ: the same slope 4^(-R)·c/n for all
    if (n * hi).sum() <= budget:
        return hi.astype(float)
    below, above = float((level - hi).min()), float((level - lo).max())
    for _ in range(200):  # Σ n·clip(level - λ) falls with λ
        middle = (below + above) / 2
        over = float((n * np.clip(level - middle, lo, hi)).sum()) > budget
        below, above = (middle, above) if over else (below, middle)
    inner = np.clip(level - above, lo, hi)
    free = (inner > lo) & (inner < hi)
    if free.any():  # the last step exactly
        rest = budget - float((n * inner)[~free].sum())
        shift = (float((n * level)[free].sum()) - rest) / float(n[free].sum())
        inner[free] = level[free] - shift
    return np.clip(inner, lo, hi)


def solve(problem: Problem, seconds: float) -> Solved:  # noqa: ARG001  (a formula needs no limit)
    """Rates in closed form, rounded down to widths, and the rest of the budget spent greedily.

    Raises:
        AllocationError: there is not exactly one limit, it cannot be kept, a width is no number of
            bits, or a loss is not positive.
    """
    name = _only_limit(problem)
    if problem.reach(name)[0] > loosened(problem.limits[name]):
        raise infeasible(problem)
    bits = _bits(problem)
    each = [list(problem.options(g)) for g in range(len(problem.groups))]
    c = np.array([_factor(bits[o], problem.loss[o]) for o in each])
    n, base = np.array([_line(bits[o], problem.costs[name][o]) for o in each]).T
    lo, hi = (np.array([pick(bits[o]) for o in each]) for pick in (min, max))
    found = rates(c, n, problem.limits[name] - float(base.sum()), lo, hi)
    start = [
        max((k for k in o if bits[k] <= r + 1e-9), key=lambda k: float(bits[k]))
        for o, r in zip(each, np.maximum(found, lo), strict=True)
    ]
    picked = _spend(problem, name, _afford(problem, name, start))
    return Solved(tuple(picked), None, tuple(found.tolist()))


def _only_limit(problem: Problem) -> str:
    if len(problem.limits) != 1:
        raise AllocationError(
            f"solver='closed_form' keeps one limit, got {len(problem.limits)} "
            f"({', '.join(problem.limits) or 'none'}). Use 'ilp' for several."
        )
    return next(iter(problem.limits))


def _bits(problem: Problem) -> Array:
    wrong = [w for w in problem.widths if isinstance(w, bool) or not isinstance(w, int | float)]
    if wrong:
        raise AllocationError(
            f"solver='closed_form' needs widths that are numbers of bits, got {wrong[0]!r}. Use "
            "'ilp'."
        )
    if (problem.loss <= 0).any():
        raise AllocationError(
            "solver='closed_form' models losses as c·4^(-bits), so all must be positive. Use 'ilp'."
        )
    return np.array([float(w) for w in problem.widths])


def _factor(bits: Array, loss: Array) -> float:
    """C of c·4^(-bits), the geometric mean over the widths."""
    return float(2.0 ** np.mean(np.log2(loss) + 2 * bits))


def _line(bits: Array, cost: Array) -> tuple[float, float]:
    """(slope, intercept) of the costs; one width alone costs its cost, whatever the rate."""
    if len(bits) == 1:
        return 1e-12 * max(1.0, float(cost[0])), float(cost[0])
    slope, base = np.polyfit(bits, cost, 1)
    if slope <= 0:
        raise AllocationError(
            "solver='closed_form' needs costs that grow with the bits. Use 'ilp'."
        )
    return float(slope), float(base)


def _afford(problem: Problem, name: str, picked: list[int]) -> list[int]:
    """Takes bits back, the cheapest loss first, while true costs overrun the limit."""
    while not problem.fits(picked):
        g, option = min(
            (
                (g, o)
                for g in range(len(picked))
                for o in problem.options(g)
                if problem.costs[name][o] < problem.costs[name][picked[g]]
            ),
            key=lambda step: _rate(problem, name, picked[step[0]], step[1]),
        )
        picked[g] = option
    return picked


def _spend(problem: Problem, name: str, picked: list[int]) -> list[int]:
    """Gives bits where they save the most loss for their cost, while the limit is kept."""
    while True:
        rest = loosened(problem.limits[name]) - problem.spent(picked)[name]
        steps = [
            (g, o)
            for g in range(len(picked))
            for o in problem.options(g)
            if problem.loss[o] < problem.loss[picked[g]]
            and problem.costs[name][o] - problem.costs[name][picked[g]] <= rest
        ]
        if not steps:
            return picked
        g, option = max(steps, key=lambda step: _rate(problem, name, step[1], picked[step[0]]))
        picked[g] = option


def _rate(problem: Problem, name: str, dearer: int, cheaper: int) -> float:
    """Loss saved by the dearer option for each unit of cost."""
    saved = float(problem.loss[cheaper] - problem.loss[dearer])
    paid = float(problem.costs[name][dearer] - problem.costs[name][cheaper])
    return saved / paid if paid > 0 else np.inf
