"""What every layer costs at every width: bytes, bit operations, and time on the target."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import tvm

from nybble.choices import free_layers, uniform
from nybble.ir import numerics
from nybble.latency import Ruler, default_cache
from nybble.passes import pipeline
from nybble.passes.calibrate import Ranges
from nybble.passes.grids import weight_levels
from nybble.passes.settle import rows_of, settle
from nybble.passes.view import View
from nybble.place import Place
from nybble.recipe import Choice, Recipe
from nybble.schedules.lower import Layer, lower
from nybble.schedules.machine import runs_here
from nybble.schedules.select import Planner

Costs = dict[str, dict[str, dict[Choice, float]]]
Report = Callable[[int, int | None], None]


def layer_costs(
    canonical: tvm.IRModule,
    ranges: Ranges,
    recipe: Recipe,
    place: Place | None,
    report: Report | None = None,
) -> Costs:
    """{"size" | "bops" | "latency": {layer: {width: cost}}} for the widths that the recipe allows.

    Size is bytes of the weights in their own width; bops multiply-adds of one image times the bits
    of both operands; latency seconds of the kernel that the planner takes, with what is fused
    behind it, measured and remembered (`nybble.latency`). Where records of tuning sessions know
    faster decisions for it, their ratio counts; of a target that does not run here, records alone
    tell the time.

    Args:
        canonical: float.
        ranges: its calibration.
        recipe: of mixed widths. A layer whose width it fixes has that one only.
        place: to measure on; None leaves latency out.
        report: called with (layers done, layers in all).

    Raises:
        ScheduleError: this machine cannot run the target's code, and the records do not know a
            layer at a width.
    """
    view, found = View(canonical), Costs(size={}, bops={})
    free = set(free_layers(canonical, recipe))
    for index, choice in enumerate(recipe.choices):
        asked = uniform(recipe, choice)
        settled = settle(canonical, ranges, asked)
        seconds: dict[str, float] = {}
        if place is not None:
            phase = _phase(report, index, len(recipe.choices))
            seconds = _seconds(pipeline.to_integer(pipeline.insert(settled), asked), place, phase)
        grids = settled.points()
        for name, width in settled.plan.weights.items():
            given = choice if name in free else width
            bits = numerics.width(weight_levels(width).dtype)[1]
            weights = rows_of(view.calls[name]).size
            pixels = prod(int(extent) for extent in view.shape(name)[1:-1])
            with_bits = bits * numerics.width(grids[view.sources(name)[0]].dtype)[1]
            _put(found, "size", name, given, weights * bits / 8)
            _put(found, "bops", name, given, weights * pixels * with_bits)
            if place is not None:
                _put(found, "latency", name, given, seconds[name])
    return found


def _put(costs: Costs, cost: str, layer: str, width: Choice, value: float) -> None:
    costs.setdefault(cost, {}).setdefault(layer, {})[width] = value


def _seconds(mod: tvm.IRModule, place: Place, report: Report | None) -> dict[str, float]:
    """The time of the kernel that each layer gets."""
    ruler = Ruler(default_cache(), place.threads) if runs_here(place.target) else None
    plan = Planner(ruler=ruler, replay=place.replay, recorded=ruler is None)
    lowered = lower(mod, place.target, plan, report)
    return {layer.name: _taken(layer) for layer in lowered.layers if layer.weights}


def _taken(layer: Layer) -> float:
    taken = (layer.kernel, layer.stored)
    return next(t.seconds for t in layer.timed if (t.kernel, t.weights) == taken)


def _phase(report: Report | None, index: int, phases: int) -> Report | None:
    """Progress of one width among equals."""
    if report is None:
        return None
    return lambda done, of: report(index * (of or done) + done, phases * (of or done))
