"""Measures the sensitivity of a canonical float module, by any of the five measures."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tvm

from nybble.budget import bits_of
from nybble.cache import folder
from nybble.errors import CalibrationError, NybbleError, near_pattern
from nybble.executors.interface import Executor
from nybble.passes.calibrate import Ranges, calibrate
from nybble.passes.correction.spool import Spool
from nybble.passes.plan import plan
from nybble.passes.sensitivity import columns, fingerprint, forward, hessian, influence
from nybble.passes.sensitivity.journal import Journal
from nybble.passes.sensitivity.losses import Judge
from nybble.passes.sensitivity.options import Measure
from nybble.passes.sensitivity.samples import Samples
from nybble.passes.sensitivity.task import Losses, Task, Units, at_width, uniform
from nybble.passes.view import View
from nybble.phases import Phases, Progress
from nybble.recipe import Recipe
from nybble.sensitivity_table import Effort, Sensitivity, Width

RANGES = "ranges"
WITH_ACTIVATIONS = ("perturbation", "pairwise")


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        module: float canonical.
        spool: the calibration data, in parts of any length.
        recipe: what stays float, activations, calibrator, seed; its weights are not looked at.
        widths: of weights, bits or ternary, or both widths of a layer such as ``"w4a8"``.
        ranges: of the activations, where they are known.
    """

    module: tvm.IRModule
    spool: Spool
    recipe: Recipe
    widths: tuple[Width, ...]
    ranges: Ranges | None = None


def measured(
    subject: Subject,
    measure: Measure,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Sensitivity:
    """The loss of every layer at every width.

    Args:
        subject: the network and its data.
        measure: which, and its options.
        progress: called with (steps done, steps in all): samples calibrated, then evaluations.
        executor: where ``perturbation`` and ``pairwise`` evaluate; the others are one walk over the
            layers, and stay here.

    Raises:
        NybbleError: no layer is quantized, a pattern of ``measure.layers`` matches none, a width is
            none, or the recipe quantizes weights only.
        CalibrationError: the data does not fit the model, or a loss is not finite.
        StageError: an op cannot run in torch, or the loss has no derivative.
    """
    layers = _layers(subject, measure)
    size = 1 if measure.name == "influence" else measure.batch  # NumPy is quickest with one
    samples = Samples(subject.spool, subject.module, size)
    journal = Journal(_file(subject, measure, samples))
    ranges, phases = subject.ranges, Phases(progress, 1)
    if ranges is None:
        known = RANGES in journal
        phases = Phases(progress, 1 if known else 2)
        ranges = _ranges(subject, samples, journal, None if known else phases.begin())
    needed = dict.fromkeys((*subject.widths, *_extra(measure)))
    effort, steps = _effort(measure, len(layers), len(subject.widths), len(samples))
    task = Task(
        subject.module, View(subject.module), layers, subject.widths,
        {w: uniform(subject.module, ranges, subject.recipe, w) for w in needed}, samples,
        measure, subject.recipe.seed,
        Units(journal, effort, steps, phases.begin(), measure.announce),
        executor,
    )  # fmt: skip
    losses, pairs = _measure(task)
    return Sensitivity(losses, pairs, measure.name, task.units.taken())


def _measure(task: Task) -> tuple[Losses, forward.Pairs]:
    if task.measure.name == "influence":
        return influence.influence(task), {}
    with Spool() as wanted:
        judge = Judge(task, wanted)
        if task.measure.name == "pairwise":
            return forward.pairwise(task, judge)
        alone: dict[str, Callable[[Task, Judge], Losses]] = {
            "perturbation": forward.perturbation,
            "hessian": hessian.hessian,
            "hessian_proxy": columns.hessian_proxy,
        }
        return alone[task.measure.name](task, judge), {}


def _effort(measure: Measure, layers: int, widths: int, samples: int) -> tuple[Effort, int]:
    """What a measure takes at most, and the steps that progress counts."""
    if measure.name == "influence":
        return influence.influence_effort(samples), samples
    if measure.name == "hessian_proxy":
        return columns.hessian_proxy_effort(samples), samples
    if measure.name == "hessian":
        blocks = -(-measure.most // hessian.BLOCK)
        at_once = 1 if measure.loss is None else layers
        return hessian.hessian_effort(layers, measure, samples), at_once * blocks * hessian.BLOCK
    of = {"perturbation": forward.perturbation_effort, "pairwise": forward.pairwise_effort}
    effort = of[measure.name](layers, widths, samples)
    return effort, effort.forward - 1  # the float outputs come first, and are no unit


def _extra(measure: Measure) -> tuple[Width, ...]:
    """Widths that a measure rounds to beside those asked for."""
    return (columns.UNIFORM,) if measure.name == "hessian_proxy" else ()


def _ranges(
    subject: Subject, samples: Samples, journal: Journal, progress: Progress | None
) -> Ranges:
    """Of the activations: their scales bound those of weights from below."""
    if RANGES not in journal:
        total = len(samples)
        seen = (lambda done: progress(done, total)) if progress else None
        parts = ({name: x.numpy() for name, x in part.items()} for part in samples.parts())
        found = calibrate(subject.module, parts, at_width(subject.recipe, 8), seen)
        journal.add(RANGES, {k: (float(lo), float(hi)) for k, (lo, hi) in found.limits.items()})
    return Ranges({name: (lo, hi) for name, (lo, hi) in journal[RANGES].items()})


def _file(subject: Subject, measure: Measure, samples: Samples) -> Path | None:
    """Where finished units are kept; None where they could not be told from others."""
    if not measure.remember or (measure.loss is not None and not measure.loss_name):
        return None
    module = fingerprint.of_module(subject.module)
    data = fingerprint.of_data(samples.parts())
    key = fingerprint.key(module, data, measure, subject.widths, subject.recipe)
    return (measure.cache or folder() / "sensitivity") / f"{key}.jsonl"


def _layers(subject: Subject, measure: Measure) -> tuple[str, ...]:
    """The quantized layers that the patterns match, in order."""
    if not subject.recipe.is_calibrated:
        raise NybbleError(
            "Sensitivity is measured of widths per output channel, with calibrated activations; "
            f"the recipe says activations='{subject.recipe.activations}'. Use activations=8."
        )
    if len(subject.spool) == 0:
        raise CalibrationError(
            "The calibration data is empty. Give at least one batch; 32 to 512 samples are usual."
        )
    if not subject.widths or len(set(subject.widths)) < len(subject.widths):
        raise NybbleError(f"widths={subject.widths!r}: give different widths such as (2, 4, 8).")
    for width in subject.widths:
        at_width(subject.recipe, width)  # refuses what is no width before anything is measured
    layers = list(plan(subject.module, at_width(subject.recipe, 8)).weights)
    joint = [w for w in subject.widths if bits_of(w)[1] is not None]
    if joint and measure.name not in WITH_ACTIVATIONS:
        raise NybbleError(
            f"measure='{measure.name}' looks at weights only; for the width '{joint[0]}' use one "
            f"of: {', '.join(WITH_ACTIVATIONS)}."
        )
    for pattern in measure.layers:
        if not fnmatch.filter(layers, pattern):
            raise NybbleError(
                f"The pattern '{pattern}' matches no quantized convolution or linear layer"
                f"{near_pattern(pattern, layers)}. These are: {', '.join(layers) or 'none'}."
            )
    return tuple(n for n in layers if any(fnmatch.fnmatchcase(n, p) for p in measure.layers))
