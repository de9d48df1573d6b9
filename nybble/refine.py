"""Quantization that reads its samples more than once: widths are chosen, weights are learned.

Imports torch; `nybble.walk` comes here only for recipes that need it.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm

from nybble.allocation.result import Allocation
from nybble.choices import free_layers, uniform
from nybble.mixed import Trade, weigh
from nybble.model import QuantizedModel
from nybble.passes import pipeline
from nybble.passes.biases import give_biases
from nybble.passes.calibrate import Ranges, calibrate
from nybble.passes.correction.run import correct
from nybble.passes.correction.spool import Spool
from nybble.passes.sensitivity.options import Measure
from nybble.passes.sensitivity.run import Subject, measured
from nybble.passes.settle import Settled, settle
from nybble.phases import Phases, Progress
from nybble.place import Place
from nybble.recipe import Recipe, with_widths


@dataclass(frozen=True)
class Calibrated:
    """A network with its samples, ready to be quantized any number of times.

    Attributes:
        module: float canonical; with a bias behind every layer where the recipe corrects.
        samples: the calibration data.
        ranges: its calibration.
        recipe: what was asked for.
        trade: what widths are chosen from; None where none is open.
    """

    module: tvm.IRModule
    samples: Spool
    ranges: Ranges
    recipe: Recipe
    trade: Trade | None

    def quantized(
        self, allocation: Allocation | None = None, progress: Progress | None = None
    ) -> QuantizedModel:
        """Quantizes, with the widths of an allocation where the recipe leaves them open.

        Args:
            allocation: from ``trade``.
            progress: called with (steps done, steps in all) of the corrections.
        """
        recipe = with_widths(self.recipe, allocation.widths) if allocation else self.recipe
        module = pipeline.insert(self.settled(recipe, progress))
        integer = pipeline.to_integer(module, recipe)
        return QuantizedModel(module, integer, recipe, allocation, self.trade)

    def settled(self, recipe: Recipe, progress: Progress | None = None) -> Settled:
        """Rounds, and corrects.

        Args:
            recipe: of this network, with every layer's width.
            progress: called with (steps done, steps in all) of the corrections.
        """
        settled = settle(self.module, self.ranges, recipe)
        if not recipe.correct:
            return settled
        return correct(settled, self.samples, recipe, progress or _silent)


def refined(
    canonical: tvm.IRModule,
    batches: Iterable[Mapping[str, Any]],
    recipe: Recipe,
    place: Place,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Calibrates, chooses widths where the recipe leaves them open, corrects, quantizes.

    Args:
        canonical: float.
        batches: the calibration data, by input name.
        recipe: of mixed widths, or with stages of correction, or both.
        place: where latency is measured, if the budget limits it.
        progress: called with (steps done, steps in all).

    Raises:
        CalibrationError: no data, wrong shape or dtype, NaN or infinity.
        AllocationError: no widths keep the budget.
    """
    phases = Phases(progress, phases_of(canonical, recipe) + bool(recipe.correct))
    with Spool() as samples:
        network = calibrated(canonical, samples, samples.passing(batches), recipe, place, phases)
        allocation = network.trade.allocated() if network.trade else None
        learning = phases.begin() if recipe.correct else None
        return network.quantized(allocation, learning)


def phases_of(canonical: tvm.IRModule, recipe: Recipe) -> int:
    """How many phases `calibrated` reports."""
    is_open = bool(free_layers(canonical, recipe))
    return 1 + is_open + (is_open and "latency" in recipe.limits)


def calibrated(
    canonical: tvm.IRModule,
    samples: Spool,
    batches: Iterable[Mapping[str, Any]],
    recipe: Recipe,
    place: Place,
    phases: Phases,
) -> Calibrated:
    """Calibrates, and weighs the widths that the recipe leaves open.

    Args:
        canonical: float.
        samples: holds the calibration data once ``batches`` has been read.
        batches: the calibration data, by input name.
        recipe: what is asked for.
        place: where latency is measured, if the budget limits it.
        phases: of `phases_of`.
    """
    given = free_layers(canonical, recipe)
    if recipe.correct:
        canonical = pipeline.run(canonical, [(give_biases.name, give_biases)], "float", "float")
    base = uniform(recipe, recipe.choices[0]) if given else recipe
    seen = phases.begin()
    ranges = calibrate(canonical, batches, base, (lambda n: seen(n, None)) if seen else None)
    trade = None
    if given:
        timing = phases.begin() if "latency" in recipe.limits else None
        trade = weigh(canonical, ranges, recipe, place, timing)
        measure = Measure(recipe.sensitivity, tuple(map(glob.escape, given)))
        subject = Subject(canonical, samples, base, recipe.choices, ranges)
        trade = trade.with_losses(measured(subject, measure, phases.begin()))
    return Calibrated(canonical, samples, ranges, recipe, trade)


def _silent(done: int, of: int | None) -> None:
    """Reports to nobody."""
