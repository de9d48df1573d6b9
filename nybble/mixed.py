"""Mixed widths: from a recipe that leaves them open to one that names every layer's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import tvm

from nybble.allocation.allocate import allocate
from nybble.allocation.pareto import pareto
from nybble.allocation.problem import Limit
from nybble.allocation.result import Allocation
from nybble.budget import limit_of
from nybble.choices import tied_layers
from nybble.costs import Costs, Report, layer_costs
from nybble.passes.calibrate import Ranges
from nybble.place import Place
from nybble.recipe import Recipe
from nybble.sensitivity_table import Sensitivity


@dataclass(frozen=True)
class Trade:
    """What every layer loses and costs at every width.

    Attributes:
        sensitivity: losses, and pairs where measured; None until `with_losses`.
        costs: {cost: {layer: {width: value}}}.
        recipe: of mixed widths.
        ties: groups of layers that must agree.
    """

    sensitivity: Sensitivity | None
    costs: Costs
    recipe: Recipe
    ties: tuple[tuple[str, ...], ...] = ()

    def with_losses(self, found: Sensitivity) -> Trade:
        """With what was measured; a layer of one width has nothing to lose."""
        costs = self.costs["size"]
        fixed = {layer: dict.fromkeys(widths, 0.0) for layer, widths in costs.items()}
        losses = {layer: (fixed | found.losses)[layer] for layer in costs}
        return replace(self, sensitivity=replace(found, losses=losses))

    def allocated(self) -> Allocation:
        """The best widths within the recipe's budget.

        Raises:
            AllocationError: none keeps it.
        """
        return allocate(self.sensitivity, self.costs, self.limits(), self.ties, self.recipe.solver)

    def limits(self) -> dict[str, Limit]:
        """The recipe's budget in bytes, bit operations and seconds."""
        asked = self.recipe.limits.items()
        return {name: Limit(limit_of(name, limit, self.reach(name))) for name, limit in asked}

    def front(self, axis: str, points: int) -> list[Allocation]:
        """Losses against one cost, at most so many points."""
        return pareto(self.sensitivity, self.costs, axis, self.ties, points=points)

    def reach(self, name: str) -> tuple[float, float]:
        """What the cheapest and the dearest model cost."""
        each = self.costs[name].values()
        return sum(min(c.values()) for c in each), sum(max(c.values()) for c in each)


def weigh(
    canonical: tvm.IRModule,
    ranges: Ranges,
    recipe: Recipe,
    place: Place,
    report: Report | None = None,
) -> Trade:
    """What every layer costs at every width; nothing is known of losses yet.

    Args:
        canonical: float.
        ranges: its calibration.
        recipe: of mixed widths.
        place: where latency is measured, if the budget limits it.
        report: called with (layers timed, layers in all).

    Raises:
        NybbleError: this machine cannot run the target's code.
    """
    timed = place if "latency" in recipe.limits else None
    costs = layer_costs(canonical, ranges, recipe, timed, report)
    return Trade(None, costs, recipe, tuple(tied_layers(canonical, recipe)))
