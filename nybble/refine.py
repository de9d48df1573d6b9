"""Quantization that reads its samples more than once: widths are chosen, weights are learned.

Imports torch; `nybble.walk` comes here only for recipes that need it.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from typing import Any

import tvm

from nybble.costs import uniform
from nybble.mixed import free_layers, weigh
from nybble.model import QuantizedModel
from nybble.passes import pipeline
from nybble.passes.biases import give_biases
from nybble.passes.calibrate import calibrate
from nybble.passes.correction.run import correct
from nybble.passes.correction.spool import Spool
from nybble.passes.sensitivity.options import Measure
from nybble.passes.sensitivity.run import Subject, measured
from nybble.passes.settle import settle
from nybble.phases import Phases, Progress
from nybble.recipe import Recipe, with_widths
from nybble.schedules.target import CpuTarget


def refined(
    canonical: tvm.IRModule,
    batches: Iterable[Mapping[str, Any]],
    recipe: Recipe,
    target: CpuTarget,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Calibrates, chooses widths where the recipe leaves them open, corrects, quantizes.

    Args:
        canonical: float.
        batches: the calibration data, by input name.
        recipe: of mixed widths, or with stages of correction, or both.
        target: where latency is measured, if the budget limits it.
        progress: called with (steps done, steps in all).

    Raises:
        CalibrationError: no data, wrong shape or dtype, NaN or infinity.
        AllocationError: no widths keep the budget.
    """
    given = free_layers(canonical, recipe)
    if recipe.correct:
        canonical = pipeline.run(canonical, [(give_biases.name, give_biases)], "float", "float")
    timed = bool(given) and "latency" in recipe.limits
    phases = Phases(progress, 1 + timed + bool(given) + bool(recipe.correct))
    with Spool() as kept:
        base = uniform(recipe, recipe.choices[0]) if given else recipe
        seen = phases.begin()
        report = (lambda done: seen(done, None)) if seen else None
        ranges = calibrate(canonical, kept.passing(batches), base, report)
        trade, allocation = None, None
        if given:
            trade = weigh(canonical, ranges, recipe, target, phases.begin() if timed else None)
            measure = Measure(recipe.sensitivity, tuple(map(glob.escape, given)))
            subject = Subject(canonical, kept, base, recipe.choices, ranges)
            trade = trade.with_losses(measured(subject, measure, phases.begin()))
            allocation = trade.allocated()
            recipe = with_widths(recipe, allocation.widths)
        settled = settle(canonical, ranges, recipe)
        if recipe.correct:
            settled = correct(settled, kept, recipe, phases.begin() or _silent)
    module = pipeline.insert(settled)
    integer = pipeline.to_integer(module, recipe)
    return QuantizedModel(module, integer, recipe, allocation, trade)


def _silent(done: int, of: int | None) -> None:
    """Reports to nobody."""
