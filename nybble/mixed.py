"""Mixed widths: from a recipe that leaves them open to one that names every layer's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import tvm

from nybble.allocation.allocate import allocate
from nybble.allocation.pareto import pareto
from nybble.allocation.result import Allocation
from nybble.budget import MIXED, limit_of
from nybble.costs import Costs, Report, layer_costs, uniform
from nybble.passes.calibrate import Ranges
from nybble.passes.plan import plan
from nybble.recipe import Recipe, with_widths
from nybble.schedules.target import CpuTarget

Losses = Callable[[Recipe], Any]
"""Measures the sensitivity that a recipe names, over its choices."""


@dataclass(frozen=True)
class Trade:
    """What every layer loses and costs at every width.

    Attributes:
        sensitivity: losses, and pairs where measured.
        costs: {cost: {layer: {width: value}}}.
        recipe: of mixed widths.
    """

    sensitivity: Any
    costs: Costs
    recipe: Recipe

    def allocated(self) -> Allocation:
        """The best widths within the recipe's budget.

        Raises:
            AllocationError: none keeps it.
        """
        asked = self.recipe.limits.items()
        limits = {name: limit_of(name, limit, self.reach(name)) for name, limit in asked}
        return allocate(self.sensitivity, self.costs, limits, solver=self.recipe.solver)

    def front(self, axis: str, points: int) -> list[Allocation]:
        """Losses against one cost, at most so many points."""
        return pareto(self.sensitivity, self.costs, axis, points=points)

    def reach(self, name: str) -> tuple[float, float]:
        """What the cheapest and the dearest model cost."""
        each = self.costs[name].values()
        return sum(min(c.values()) for c in each), sum(max(c.values()) for c in each)

    def resolved(self, widths: Mapping[str, Any]) -> Recipe:
        """The recipe with every layer's width."""
        return with_widths(self.recipe, widths)


def is_open(canonical: tvm.IRModule, recipe: Recipe) -> bool:
    """Whether a width is still to be chosen."""
    if recipe.weights != MIXED:
        return False
    one, other = (plan(canonical, uniform(recipe, width)).weights for width in recipe.choices[:2])
    return one != other


def weigh(
    canonical: tvm.IRModule,
    ranges: Ranges,
    recipe: Recipe,
    losses: Losses,
    target: CpuTarget,
    report: Report | None = None,
) -> Trade:
    """Measures losses and costs of every layer at every width.

    Args:
        canonical: float.
        ranges: its calibration.
        recipe: of mixed widths.
        losses: gives {layer: {width: loss}} of the layers whose width is free.
        target: where latency is measured, if the budget limits it.
        report: called with (layers timed, layers in all).

    Raises:
        NybbleError: this machine cannot run the target's code.
    """
    timed = target if "latency" in recipe.limits else None
    costs = layer_costs(canonical, ranges, recipe, timed, report)
    found = losses(recipe)
    fixed = {
        layer: dict.fromkeys(widths, 0.0)  # one width: nothing to lose
        for layer, widths in costs["size"].items()
        if layer not in found.losses
    }
    order = costs["size"]
    together = {layer: {**fixed, **found.losses}[layer] for layer in order}
    return Trade(replace(found, losses=together), costs, recipe)
