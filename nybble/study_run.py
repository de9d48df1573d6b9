"""The public call `nybble.study`: all that the page about bits shows, measured.

(The module has another name than the function, which a submodule of its name would replace.)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from numpy.typing import NDArray

from nybble import known, samples
from nybble.allocation.result import Allocation
from nybble.budget import MIXED
from nybble.choices import free_layers, uniform
from nybble.errors import NybbleError
from nybble.evaluation import Deployment, Evaluation, Ready, Tried, ready
from nybble.ir import graph
from nybble.mixed import Trade
from nybble.model import Model, QuantizedModel, module_of
from nybble.passes import pipeline
from nybble.passes.fidelity import fidelity
from nybble.passes.plan import plan
from nybble.passes.settle import Settled, rows_of
from nybble.passes.view import View
from nybble.phases import Phases
from nybble.place import Place
from nybble.recipe import Recipe, Widths, as_recipe, with_widths
from nybble.report import tuned
from nybble.report.data import facts, layer_rows
from nybble.report.study import Fidelity, Outcome, Point, Study, bits, in_words
from nybble.runtime.manifest import Manifest
from nybble.schedules.target import resolve
from nybble.sensitivity_table import Sensitivity
from nybble.walk import Target

if TYPE_CHECKING:
    from nybble.passes.correction.spool import Spool
    from nybble.refine import Calibrated

Array = NDArray[Any]
Advance = Callable[[int, int | None], None]
Step = Callable[[str, int | None], AbstractContextManager[Advance]]
CHOICES = (2, 4, 8)
POINTS = 80  # of a front
TOGETHER = 4  # samples whose tensors are held at once


@contextmanager
def _silent(_what: str, _total: int | None) -> Iterator[Advance]:
    yield lambda _done, _of: None


@dataclass(frozen=True)
class StudyOptions:
    """How a study is made.

    Attributes:
        title: the network's name.
        target: what is compiled for; it must run here.
        measure: time the kernels that can compile a layer and take the fastest. Latency is a cost
            of layers where the budget names it, and with ``measure`` where there is no budget.
        prefer: ``speed`` or ``size``, as for `nybble.compile`.
        samples: of the calibration data, on which layers' outputs are compared, and the networks'
            outputs where no other data is given.
        step: ``step(what, steps in all or None)`` is a context for a part of the work; it yields a
            function that is called with (steps done, steps in all or None).
        records: of tuning sessions, as for `nybble.compile`.
    """

    title: str = "Network"
    target: Target = "native"
    measure: bool = False
    prefer: str = "speed"
    samples: int = 16
    step: Step = _silent
    records: known.Given = None

    def __post_init__(self) -> None:
        """Refuses to compare on nothing."""
        if self.samples < 1:
            raise NybbleError(f"StudyOptions: samples={self.samples!r} is not at least 1.")


def study(
    model: Model,
    calibration: Iterable[samples.Batch],
    recipe: Recipe | None = None,
    evaluate: Evaluation | None = None,
    options: StudyOptions | None = None,
) -> Study:
    """Measures what each layer loses and costs at each width, chooses, deploys, compares.

    A recipe of mixed widths is studied as it is; the widths of another are shown among 2, 4 and 8
    bits. Every uniform width is deployed by the same recipe, corrections included.

    Args:
        model: from `load_onnx` or `load_torch`.
        calibration: as for `quantize`.
        recipe: 8-bit min-max when omitted.
        evaluate: inputs, and labels where there are some; calibration samples when omitted.
        options: title, target and the like.

    Returns:
        Plain data; `Study.to_html` draws it.

    Raises:
        CalibrationError: as `quantize` and `sensitivity` do.
        AllocationError: no widths keep the budget.
        NybbleError: the recipe's activations are float, it leaves no width open, torch is missing,
            the target's code does not run here, or ``evaluate`` does not fit the network.
    """
    asked, options = as_recipe(recipe), options or StudyOptions()
    if not asked.is_calibrated:
        raise NybbleError(
            "A study shows widths per output channel, with calibrated activations; the recipe says "
            f"activations='{asked.activations}'. Use activations=8."
        )
    resolve(options.target)
    given = None if evaluate is None else ready(model, evaluate)
    work = _Work(model, asked, options)
    with _torch("nybble.passes.correction.spool").Spool() as kept:
        found: Study = work.study(calibration, given, kept)
    return found


def _torch(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NybbleError("A study needs torch: pip install nybble[torch].") from error


def opened(canonical: tvm.IRModule, recipe: Recipe, timed: bool = False) -> Recipe:
    """A recipe that leaves widths open around the ones that this one names.

    Args:
        canonical: float.
        recipe: one of mixed widths is returned as it is.
        timed: whether latency is a cost.
    """
    if recipe.weights == MIXED:
        return recipe
    named = plan(canonical, recipe).weights
    choices = tuple(sorted({*CHOICES, *named.values()}, key=bits))
    budget = {"size": 1.0} | ({"latency": 1.0} if timed else {})
    kept = tuple((p, Widths(None, w.activations)) for p, w in recipe.overrides if w.activations)
    found = replace(recipe, weights="mixed", layers=kept, choices=choices, budget=budget)
    fixed = set(named) - set(free_layers(canonical, found))  # by first_last
    return with_widths(found, {n: w for n, w in named.items() if n in fixed})


class _Work:
    """A network with its calibration, which is read once, and every form of it."""

    def __init__(self, model: Model, recipe: Recipe, options: StudyOptions):
        self.model, self.recipe, self.options = model, recipe, options
        self.place = Place(resolve(options.target), known.gather(options.records))
        self.deployment = Deployment(
            options.target, options.measure, options.prefer, self.place.records
        )
        self.canonical = pipeline.canonicalize(module_of(model))
        self.open = opened(self.canonical, recipe, options.measure)
        if not free_layers(self.canonical, self.open):
            raise NybbleError(
                "A study needs a layer whose width is open; the recipe fixes them all. Leave some "
                "layers out of `layers`, or set first_last to none."
            )

    def study(
        self, calibration: Iterable[samples.Batch], given: Ready | None, kept: Spool
    ) -> Study:
        """Measures, chooses, deploys; ``kept`` is empty and will hold the calibration data."""
        network = self._calibrated(calibration, kept)
        trade = network.trade
        assert trade is not None
        assert trade.sensitivity is not None
        losses = trade.sensitivity.losses
        allocation = self._allocation(trade, losses)
        chosen = self._settled(network, self.recipe_of(allocation), "chosen")
        alike = self._fidelity(chosen, kept)
        data = given or ready(self.model, Evaluation(self._some(kept)))
        outcomes, manifest = self._outcomes(data, network, allocation, chosen)
        fronts = {
            axis: tuple(Point(p.costs[axis], p.objective) for p in trade.front(axis, POINTS))
            for axis in trade.costs
        }
        return Study(
            self.options.title, allocation, losses, trade.costs, fronts, alike, outcomes,
            trade.sensitivity.measure, self._count(kept), len(data),
            self._facts(trade.sensitivity, manifest, len(kept)),
            tuple(tuned.cells(layer_rows(manifest))),
        )  # fmt: skip

    def recipe_of(self, allocation: Allocation) -> Recipe:
        """What was asked for, with every layer's width."""
        return with_widths(self.recipe, allocation.widths)

    def _calibrated(self, calibration: Iterable[samples.Batch], kept: Spool) -> Calibrated:
        refine = _torch("nybble.refine")
        batches = kept.passing(samples.batches(self.model, calibration))
        what = f"calibrate, and measure by {self.open.sensitivity}"
        with self.options.step(what, samples.count(self.model, calibration)) as advance:
            phases = Phases(advance, refine.phases_of(self.canonical, self.open))
            found: Calibrated = refine.calibrated(
                self.canonical, kept, batches, self.open, self.place, phases
            )
        return found

    def _allocation(self, trade: Trade, losses: Mapping[str, Any]) -> Allocation:
        """The best widths, or those that the recipe names."""
        if self.recipe.weights == MIXED:
            return trade.allocated()
        widths = dict(plan(self.canonical, self.recipe).weights)
        spent = {c: sum(rows[n][w] for n, w in widths.items()) for c, rows in trade.costs.items()}
        return Allocation(widths, sum(losses[n][w] for n, w in widths.items()), None, spent, {})

    def _settled(self, network: Calibrated, recipe: Recipe, name: str) -> Settled:
        if not recipe.correct:
            return network.settled(recipe)
        with self.options.step(f"correct: {name}", None) as advance:
            return network.settled(recipe, advance)

    def _fixed(self) -> int | None:
        """Samples of a batch, where the network fixes that."""
        extents = [graph.shape_of(v)[0] for v in graph.inputs(self.canonical)]
        return next((e for e in extents if isinstance(e, int)), None)

    def _count(self, kept: Spool) -> int:
        """Samples to compare on, in whole batches."""
        wanted, size = min(self.options.samples, len(kept)), self._fixed() or 1
        return -(-wanted // size) * size

    def _some(self, kept: Spool) -> dict[str, Array]:
        """The first calibration samples."""
        parts = list(kept.batches(self._fixed() or TOGETHER, self._count(kept)))
        return {name: np.concatenate([p[name].numpy() for p in parts]) for name in parts[0]}

    def _fidelity(self, settled: Settled, kept: Spool) -> dict[str, Fidelity]:
        """Of every layer, on the first calibration samples."""
        count = self._count(kept)
        parts = kept.batches(self._fixed() or TOGETHER, count)
        batches = ({name: x.numpy() for name, x in part.items()} for part in parts)
        with self.options.step("compare the outputs of every layer", count) as advance:
            sums = fidelity(settled, batches, lambda done: advance(done, count))
        return {layer: Fidelity(s.snr, s.cosine) for layer, s in sums.items()}

    def _outcomes(
        self, data: Ready, network: Calibrated, allocation: Allocation, chosen: Settled
    ) -> tuple[tuple[Outcome, ...], Manifest]:
        """Float, each uniform width, and the choice, deployed; and the choice's manifest."""
        calls = View(self.canonical).calls
        weights = sum(4.0 * rows_of(calls[layer]).size for layer in allocation.widths)
        plain = self._tried("float", self.model, data)
        found = [_outcome("float", "float", weights, plain, (data, plain))]
        assert network.trade is not None
        rows = network.trade.costs["size"].values()
        for width in sorted(self.open.choices, key=bits, reverse=True):
            name = in_words(width)
            settled = self._settled(network, uniform(self.open, width), name)
            tried = self._tried(name, self._quantized(settled), data)
            size = sum(row.get(width, next(iter(row.values()))) for row in rows)
            found.append(_outcome(name, "uniform", size, tried, (data, plain)))
        tried = self._tried("chosen", self._quantized(chosen), data)
        found.append(_outcome("chosen", "chosen", allocation.costs["size"], tried, (data, plain)))
        return tuple(found), tried.manifest

    def _quantized(self, settled: Settled) -> QuantizedModel:
        module = pipeline.insert(settled)
        return QuantizedModel(module, pipeline.to_integer(module, self.recipe), self.recipe)

    def _tried(self, name: str, network: Model | QuantizedModel, data: Ready) -> Tried:
        with self.options.step(f"compile and run: {name}", len(data)) as advance:
            return self.deployment.tried(network, data, advance)

    def _facts(
        self, found: Sensitivity, manifest: Manifest, samples: int
    ) -> tuple[tuple[str, str], ...]:
        """About network, recipe, measurement and machine."""
        told = facts(replace(manifest, recipe=self.recipe.as_dict()))
        kept = ("inputs", "outputs", "recipe", "target", "kernels' decisions", "versions")
        given = tuple(pair for pair in told if pair[0] in kept)
        return (*given, ("sensitivity", f"{found.measure}: {found.effort}"),
                ("calibration", f"{samples:,} samples"))  # fmt: skip


def _outcome(
    name: str, kind: str, weights: float, tried: Tried, against: tuple[Ready, Tried]
) -> Outcome:
    """A row of the table; ``against`` is the data, and what float made of it."""
    data, plain = against
    error = None if tried is plain else tried.error(plain.outputs)
    accuracy = tried.accuracy(data.labels)
    return Outcome(name, kind, weights, tried.size, tried.seconds, accuracy, error)
