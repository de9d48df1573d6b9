"""Runs the stages of correction that a recipe lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tvm

from nybble import stages
from nybble.passes.calibrate import calibrate
from nybble.passes.correction.adaquant import adaquant
from nybble.passes.correction.adaround import adaround
from nybble.passes.correction.bias_correction import correct_biases
from nybble.passes.correction.equalize import equalize
from nybble.passes.correction.flexround import flexround
from nybble.passes.correction.gptq import gptq
from nybble.passes.correction.low_rank import add_low_rank
from nybble.passes.correction.scales import choose_scales
from nybble.passes.correction.spool import Spool
from nybble.passes.correction.statistics import restore_statistics
from nybble.passes.settle import Settled, settle
from nybble.recipe import Recipe

Report = Callable[[int, int], None]
"""Called with (steps done, steps in all) of a stage."""


@dataclass(frozen=True)
class Work:
    """What every stage may use.

    Attributes:
        samples: the calibration data.
        recipe: widths, calibrator, seed.
        report: progress of the stage.
    """

    samples: Spool
    recipe: Recipe
    report: Report

    def resettled(self, mod: tvm.IRModule, recipe: Recipe | None = None) -> Settled:
        """A changed float module, calibrated anew and rounded to nearest.

        Args:
            mod: canonical.
            recipe: in place of the work's own.
        """
        recipe = recipe or self.recipe
        batches = ({k: v.numpy() for k, v in b.items()} for b in self.samples.batches(1))
        return settle(mod, calibrate(mod, batches, recipe), recipe)


Correction = Callable[[Settled, Any, Work], Settled]
CORRECTIONS: dict[type[Any], Correction] = {
    stages.Equalize: equalize,
    stages.Scales: choose_scales,
    stages.Gptq: gptq,
    stages.AdaRound: adaround,
    stages.AdaQuant: adaquant,
    stages.FlexRound: flexround,
    stages.LowRank: add_low_rank,
    stages.BiasCorrection: correct_biases,
    stages.Statistics: restore_statistics,
}


def correct(settled: Settled, samples: Spool, recipe: Recipe, report: Report) -> Settled:
    """Runs ``recipe.correct`` in order; the same recipe and samples give the same bits.

    Args:
        settled: rounded to nearest; every layer has a bias (`nybble.passes.biases`).
        samples: the calibration data.
        recipe: whose stages to run.
        report: called with (stages done, stages in all), thousandths of a stage included.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        for done, stage in enumerate(recipe.correct):
            within = _within(report, done, len(recipe.correct))
            settled = CORRECTIONS[type(stage)](settled, stage, Work(samples, recipe, within))
    return settled


def _within(report: Report, done: int, stages_in_all: int) -> Report:
    """Progress of one stage as a share of all."""
    return lambda step, steps: report(1000 * done + 1000 * step // steps, 1000 * stages_in_all)
