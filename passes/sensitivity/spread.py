"""Evaluations that do not depend on each other, worked out by an executor."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import tvm
from numpy.typing import NDArray

from nybble.errors import NybbleError
from nybble.executors.interface import Executor, Shared, each
from nybble.passes.correction.spool import Spool
from nybble.passes.sensitivity.journal import Journal
from nybble.passes.sensitivity.losses import Judge
from nybble.passes.sensitivity.options import Measure
from nybble.passes.sensitivity.samples import Samples
from nybble.passes.sensitivity.task import Task, Uniform, Units
from nybble.passes.view import View
from nybble.sensitivity_table import Effort, Option, Width

if TYPE_CHECKING:
    from nybble.passes.sensitivity.forward import Evaluation


@dataclass(frozen=True)
class Unit:
    """Evaluations that are made, and kept, together.

    Attributes:
        name: in the journal.
        fixed: a layer that is quantized in all of them, or None.
        others: what each quantizes beside it, in order of layers.
    """

    name: str
    fixed: Option | None
    others: tuple[Option, ...]


def single(task: Task, layer: str) -> Unit:
    """One layer at every width."""
    return Unit(f"one {layer}", None, tuple((layer, w) for w in task.widths))


def double(task: Task, option: Option, later: Sequence[str]) -> Unit:
    """A layer at one width, with every later one at every width."""
    others = tuple((layer, w) for layer in later for w in task.widths)
    return Unit(f"two {option[0]} {option[1]}", option, others)


def singles(task: Task) -> list[Unit]:
    """Every layer."""
    return [single(task, layer) for layer in task.layers]


def doubles(task: Task) -> list[Unit]:
    """Every pair."""
    return [
        double(task, (layer, width), task.layers[index + 1 :])
        for index, layer in enumerate(task.layers)
        for width in task.widths
    ]


@dataclass(frozen=True)
class Sent:
    """What a worker needs of a task.

    Attributes:
        module: float canonical.
        layers: the layers.
        widths: their widths.
        rounded: all layers at each of them.
        parts: the samples.
        measure: without what only tells.
    """

    module: tvm.IRModule
    layers: tuple[str, ...]
    widths: tuple[Width, ...]
    rounded: Mapping[Width, Uniform]
    parts: tuple[dict[str, NDArray[Any]], ...]
    measure: Measure


def spread(task: Task, executor: Executor, units: Sequence[Unit]) -> None:
    """Works out units and enters them into the task's journal; known ones are left alone.

    Args:
        task: what is measured.
        executor: where.
        units: of `singles` and `doubles`.

    Raises:
        NybbleError: a worker was lost for good, or the loss cannot be sent.
        CalibrationError: a loss is not finite.
    """
    wanted = [unit for unit in units if unit.others and not task.units.has(unit.name)]
    if not wanted:
        return
    shared = executor.share(_pickled(task))
    calls = [(shared, unit.fixed, unit.others) for unit in wanted]
    since = time.perf_counter()
    for index, done in each(executor, evaluated, calls):
        if done.failure is not None:
            raise NybbleError(
                f"{wanted[index].name}: a worker gave no result ({done.failure.kind}): "
                f"{done.failure.detail}. What was finished is kept: the same call goes on."
            )
        now, steps = time.perf_counter(), len(wanted[index].others)
        task.units.enter(wanted[index].name, steps, done.value, now - since)
        since = now


def evaluated(shared: Shared, fixed: Option | None, others: Sequence[Option]) -> list[float]:
    """A unit's losses, in a worker."""
    return _network(shared).evaluated(fixed, others)


@lru_cache(maxsize=1)
def _network(shared: Shared) -> Evaluation:
    from nybble.passes.sensitivity.forward import Evaluation  # noqa: PLC0415  (it imports this)

    sent: Sent = pickle.loads(shared.read())
    spool = Spool()
    for part in sent.parts:
        spool.add(part)
    samples = Samples(spool, sent.module, sent.measure.batch)
    units = Units(Journal(None), Effort(len(samples), forward=0), 0)
    task = Task(
        sent.module, View(sent.module), sent.layers, sent.widths, sent.rounded, samples,
        sent.measure, 0, units,
    )  # fmt: skip
    return Evaluation(task, Judge(task, Spool()))


def _pickled(task: Task) -> bytes:
    parts = tuple({name: x.numpy() for name, x in part.items()} for part in task.samples.parts())
    rounded = {width: task.rounded[width] for width in task.widths}
    measure = replace(task.measure, announce=None)
    sent = Sent(task.module, task.layers, task.widths, rounded, parts, measure)
    try:
        return pickle.dumps(sent)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NybbleError(
            f"The loss cannot be sent to workers: {error}. Make it a function at the top level of "
            "a module that they can import, or measure without workers."
        ) from error
