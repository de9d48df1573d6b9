"""The whole walk on one page: import, quantize, lower, schedule, build.

(It is called ``walk`` and not ``compile`` because a submodule ``nybble.compile`` would take the
place of the public function ``nybble.compile`` as soon as anything imports it.)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nybble import known, samples
from nybble.choices import free_layers
from nybble.describe import describe
from nybble.errors import CalibrationError, NybbleError
from nybble.frontend.onnx import from_onnx
from nybble.ir import graph, specs
from nybble.latency import Ruler, default_cache, refuse_foreign
from nybble.limits import multiply_rates
from nybble.model import Artifact, Model, QuantizedModel, Trial, module_of
from nybble.passes import pipeline
from nybble.passes.calibrate import calibrate
from nybble.passes.pipeline import canonicalize
from nybble.phases import Phases, Progress
from nybble.place import Place
from nybble.recipe import DYNAMIC, Recipe, as_recipe
from nybble.runtime.session import Session, load
from nybble.schedules.build import built
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.lower import lower
from nybble.schedules.outside import INSIDE, OUTSIDE, check_place, lift
from nybble.schedules.select import Planner
from nybble.schedules.target import resolve, resolve_all

Target = str | dict[str, Any]
Shapes = Mapping[str, Sequence[int | str | None]]


def load_onnx(source: Any, shapes: Shapes | None = None) -> Model:
    """Imports an ONNX network, float or already quantized.

    Args:
        source: a path, the bytes of a model, or a ``ModelProto``; external data is found beside
            the file.
        shapes: shapes of inputs whose extents the file leaves open; None marks the batch, a name
            (``"height"``) an extent that stays open, ``"past + length"`` a sum of such extents.
            Keys are names of inputs or patterns (``"past_key_values.*"``).

    Returns:
        The network; a `QuantizedModel`, ready for `compile`, where the file holds quantized
        operators (QDQ or QOperator): it keeps the file's integers, scales and zero points.

    Raises:
        ImportModelError: the source is no readable model, or holds NaN.
        UnsupportedOpError: lists every node that cannot be imported.
        StageError: a quantized layer has no integer form that keeps within its widths.
    """
    return _checked(from_onnx(source, shapes))


def load_torch(
    net: Any, example_inputs: Any, dynamic_batch: bool = True, shapes: Shapes | None = None
) -> Model:
    """Imports a torch network.

    Args:
        net: ``nn.Module``, ``ExportedProgram`` or ``fx.GraphModule``.
        example_inputs: a tensor or a tuple of tensors, used for tracing.
        dynamic_batch: let the first axis of every input vary.
        shapes: what else stays open, as for `load_onnx`, by the names of ``forward``'s arguments
            (those of ``*past`` are ``past_0`` …). An ``ExportedProgram`` says it itself.

    Raises:
        ImportModelError: the network cannot be traced, or holds NaN.
        UnsupportedOpError: lists every node that cannot be imported.
    """
    from nybble.frontend.torch import from_torch  # noqa: PLC0415  (torch takes seconds to load)

    return _checked(from_torch(net, example_inputs, dynamic_batch, shapes))


def _checked(module: Any) -> Model:
    """The imported network; one that is quantized already enters the walk at that stage."""
    stage = graph.stage(module)
    specs.check(module, stage)
    if stage == "float":
        return Model(module)
    recipe = _recipe_of(module)
    canonical = pipeline.canonicalize_quantized(module)
    integer = pipeline.to_integer(canonical, recipe)
    if graph.AT_RUN_TIME in module["main"].attrs or (recipe and recipe.activations == DYNAMIC):
        integer = pipeline.at_run_time(integer)
    return QuantizedModel(canonical, integer, recipe)


def _recipe_of(module: Any) -> Recipe | None:
    """The recipe that Nybble's own export keeps in its files; None for those of other tools."""
    kept = dict(module["main"].attrs).get(graph.RECIPE)
    return Recipe.from_json(str(kept)) if kept else None


def quantize(  # noqa: PLR0913  (those behind the star are seldom given)
    model: Model,
    calibration: Iterable[samples.Batch] = (),
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    *,
    target: Target = "native",
    max_drop: float | None = None,
    evaluate: Callable[[Session], float] | None = None,
    on_trial: Callable[[Trial], None] | None = None,
    records: known.Given = None,
    threads: int | None = None,
) -> QuantizedModel:
    """Calibrates and quantizes a float network.

    Args:
        model: from `load_onnx` or `load_torch`.
        calibration: representative inputs: an iterable of arrays (with or without the batch
            axis), or of {input: array} for several inputs. It is streamed, never held whole. Where
            the model fixes its batch size, larger arrays are cut to it. Recipes of
            ``activations="float"`` and ``"dynamic"`` read none.
        recipe: widths, calibrator, rounding; 8-bit min-max when omitted.
        progress: called with (samples done, samples in all; None for a stream); for mixed widths
            and corrections with their steps too.
        target: where latency is measured, if ``recipe.budget`` limits it, and what trials are
            compiled for.
        max_drop: by how much the score may lie below the float network's: of the widths that
            ``recipe`` leaves open, the cheapest that keep this are taken.
        evaluate: the score of a deployed network, the larger the better, for ``max_drop``.
        on_trial: called with every network that was compiled and evaluated.
        records: as for `compile`; latencies count with the decisions that they know.
        threads: as for `compile`, of latencies and trials.

    Raises:
        CalibrationError: no data, wrong shape or dtype, NaN or infinity; or the network is
            quantized already.
        AllocationError: no widths keep ``recipe.budget``, or none ``max_drop``.
        NybbleError: a pattern of ``recipe.keep_float`` or ``recipe.layers`` matches no layer.
    """
    if isinstance(model, QuantizedModel):
        raise CalibrationError(
            "The network is quantized already, by its own scales: pass it to nybble.compile as it "
            "is. To choose widths and scales here, import the float network."
        )
    recipe = as_recipe(recipe)
    canonical = canonicalize(module_of(model))
    if not recipe.is_calibrated:
        return QuantizedModel(*pipeline.round_weights(canonical, recipe), recipe)
    batches = samples.batches(model, calibration)
    place = Place(resolve(target), known.gather(records), threads)
    _check_open(bool(free_layers(canonical, recipe)), recipe, max_drop, evaluate)
    made: QuantizedModel
    if max_drop is not None:
        search = _needs_torch("nybble.search")
        goal = search.Goal(
            max_drop, evaluate, partial(_deployed, target=target, place=place), on_trial
        )
        made = search.cheapest(canonical, batches, recipe, place, goal, progress)
        return made
    if recipe.correct or free_layers(canonical, recipe):
        refined = _needs_torch("nybble.refine").refined
        made = refined(canonical, batches, recipe, place, progress)
        return made
    total = samples.count(model, calibration) if progress else None
    report = (lambda done: progress(done, total)) if progress else None
    ranges = calibrate(canonical, batches, recipe, report)
    module = pipeline.quantize(canonical, ranges, recipe)
    return QuantizedModel(module, pipeline.to_integer(module, recipe), recipe)


def _check_open(is_open: bool, recipe: Recipe, max_drop: float | None, evaluate: Any) -> None:
    """Refuses open widths without a goal, and half a goal."""
    if (max_drop is None) != (evaluate is None):
        raise NybbleError("max_drop and evaluate go together: give both, or neither.")
    if is_open and not recipe.budget and max_drop is None:
        raise NybbleError(
            "Recipe: weights='mixed' needs a budget, such as {'size': 0.5}, or max_drop and "
            "evaluate."
        )


def _deployed(model: Model | QuantizedModel, path: Path, target: Target, place: Place) -> Session:
    made = compile(model, target, records=place.records, threads=place.asked)
    return load(made.save(path), place.asked)


def _needs_torch(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NybbleError(
            "Recipe: mixed widths and corrections need torch: pip install nybble[torch]."
        ) from error


def compile(  # noqa: A001, PLR0913  (the last four say how kernels are chosen)
    model: Model | QuantizedModel,
    target: Target | Sequence[Target] = "native",
    progress: Progress | None = None,
    *,
    measure: bool = False,
    prefer: str = "speed",
    records: known.Given = None,
    threads: int | None = None,
    parameters: str = INSIDE,
) -> Artifact:
    """Compiles a network for a CPU, GPUs, or several: one file that picks its code when loaded.

    Args:
        model: quantized, or a float model to be compiled as it is.
        target: ``"native"``, a level such as ``"x86-64-v3"`` or ``"aarch64"``, GPUs such as
            ``"cuda:sm_90"``, or a TVM target dict; a list of them for one file with several
            variants.
        progress: called with (steps done, steps in all): layers measured, then kernels compiled.
        measure: time the kernels that can compile a layer and take the fastest; this machine must
            be able to run the target. Times are remembered (`nybble.latency.default_cache`).
            Without it the kernels' order of preference decides.
        prefer: ``speed`` may store weights of fewer than 8 bits in 8 where that is faster; ``size``
            takes the kernels whose constants are smallest.
        records: files that `nybble.tune` wrote, or what `nybble.schedules.records.Records` read of
            them; those of NYBBLE_RECORDS when omitted. Layers that they know, or that are near one
            that they know, get the decisions that were fastest; behind them stand the records that
            ship with Nybble. The manifest says which layer got what, ``notes`` what was left aside.
        threads: that the library will run with, and kernels are timed with: records of as many
            count. None takes the number that all of ``records`` for a target have, if there is
            one; kernels are timed on one thread then where there is none.
        parameters: ``inside`` the library, or ``outside``, in a file beside it that is mapped when
            the network is loaded, which then takes their size in memory once and not twice. For
            CPUs.

    Raises:
        NybbleError: an unknown target or preference, a list with several architectures, records
            that cannot be read, or ``measure`` for another kind of machine.
        ScheduleError: no kernel can do a layer.
    """
    given: Any = target if isinstance(target, list | tuple) else [target]
    cpus = resolve_all(given)
    check_place(parameters, cpus)
    if isinstance(model, QuantizedModel):
        module, recipe = model.integer, model.recipe
    else:
        module, recipe = canonicalize(module_of(model)), None
    tuned = known.gather(records)
    places = [Place(cpu, tuned, threads) for cpu in cpus]
    phases = Phases(progress, len(cpus) * (2 if measure else 1))
    lowered = [
        lower(
            suited(module, place.target),
            place.target,
            _plan(place, measure, prefer),
            phases.begin() if measure else None,
        )
        for place in places
    ]
    split = [lift(one.module) if parameters == OUTSIDE else (one.module, ()) for one in lowered]
    made = [
        built(scheduled, cpu, phases.begin())
        for (scheduled, _), cpu in zip(split, cpus, strict=True)
    ]
    limits = [multiply_rates(cpu.features) if measure else None for cpu in cpus]
    variants = zip(made, lowered, cpus, limits, split, strict=True)
    first, *higher = (
        Artifact(
            code.executable,
            describe(module, scheduled.layers, cpu, recipe, rates, code),
            outside=lifted,
        )
        for code, scheduled, cpu, rates, (_, lifted) in variants
    )
    return replace(first, higher=tuple(higher), notes=known.notes(tuned, places))


def suited(module: Any, target: Any) -> Any:
    """The module as a kind of target computes it: differs for weight-only layers alone."""
    return pipeline.suited(module, target.arch)


def _plan(place: Place, measure: bool, prefer: str) -> Planner:
    if measure and isinstance(place.target, CudaTarget):
        refuse_foreign(place.target)
    ruler = Ruler(default_cache(), place.threads) if measure else None
    return Planner(prefer=prefer, ruler=ruler, replay=place.replay)
