"""The public call `nybble.tune`: searches the knobs of a network's kernels and remembers the best.

(The module has another name than the function, which a submodule of its name would replace.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import tvm

from nybble.cache import folder
from nybble.errors import NybbleError
from nybble.latency import refuse_foreign
from nybble.model import Model, QuantizedModel, module_of
from nybble.passes.pipeline import canonicalize, suited
from nybble.runtime import engine
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.cuda.toolkit import load_backend
from nybble.schedules.records import Records
from nybble.schedules.target import resolve
from nybble.tuning.extract import tasks_of
from nybble.tuning.measure import Measurer
from nybble.tuning.pool import LocalPool
from nybble.tuning.session import Session, Watch
from nybble.tuning.state import Budget, Settings, State
from nybble.tuning.tasks import Task
from nybble.walk import Target

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class TuneOptions:
    """How long and how to search.

    Attributes:
        trials: candidates to measure, those of earlier sessions with the same records included;
            None for no end.
        seconds: of this session; None for no end.
        threads: that the library will run with; as many as `nybble.load` takes on this machine
            when omitted.
        seed: of all that is drawn.
        batch: candidates of a layer that are measured together.
        folder: where the layers' operands are kept; in the cache folder when omitted.
    """

    trials: int | None = 1000
    seconds: float | None = None
    threads: int | None = None
    seed: int = 0
    batch: int = 16
    folder: Path | None = None

    def __post_init__(self) -> None:
        """Refuses what is no number of anything."""
        for name in ("trials", "seconds", "threads", "batch"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise NybbleError(f"tune: {name}={value!r} is not positive.")


@dataclass(frozen=True)
class Tuned:
    """What came of a session.

    Attributes:
        state: the tasks, their best decisions, trials and failures.
        correlation: rank correlation within tasks of the cost model's predictions with what was
            measured, each predicted by a model without it; None with too few candidates.
    """

    state: State
    correlation: float | None

    @property
    def speedup(self) -> float | None:
        """Estimated time of the network's kernels by default, by that with what was found."""
        reference, seconds = self.state.reference, self.state.seconds
        return reference / seconds if reference and seconds else None


def tune(  # noqa: PLR0913  (the last three go together)
    model: Model | QuantizedModel,
    records: str | Path,
    target: Target = "native",
    options: TuneOptions | None = None,
    *,
    measurer: Measurer | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Tuned:
    """Searches the knobs of every layer's kernels; ``compile(…, records=…)`` uses what was found.

    The same call goes on where an earlier one ended: what the records hold of these layers is not
    measured again. A Ctrl-C ends it at any time; the running batch is lost at most.

    Args:
        model: quantized, or a float model to be compiled as it is.
        records: the file that measured candidates are added to; made if it is not there.
        target: as for `nybble.compile`; one alone.
        options: how long and how to search.
        measurer: measures candidates; processes of this machine when omitted.
        progress: called with (layers prepared, layers in all) before the search begins.
        watch: called with the session's state after every candidate.

    Raises:
        NybbleError: the records cannot be read or written, an unknown target, no layer has a
            choice, this machine cannot run the target, or it is a GPU and there is no measurer.
        ScheduleError: no kernel can do a layer.
    """
    machine = resolve(target)
    module_of(model)  # before the records are opened, which makes their file
    if isinstance(machine, CudaTarget) and isinstance(measurer, LocalPool | None):
        refuse_foreign(machine)
    options, known = options or TuneOptions(), Records.open(records)
    tasks = prepared(model, target, options, progress)
    with closing(measurer or LocalPool()) as measuring:
        budget = Budget(options.trials, options.seconds)
        settings = Settings(options.seed, options.batch)
        session = Session(tasks, measuring, known, budget, settings)
        return Tuned(session.run(watch), session.correlation())


def prepared(
    model: Model | QuantizedModel,
    target: Target,
    options: TuneOptions,
    progress: Progress | None = None,
) -> list[Task]:
    """A network's tasks, at least one, with their operands on the disk.

    Raises:
        NybbleError: an unknown target, or no layer has a choice.
        ScheduleError: no kernel can do a layer.
    """
    threads = options.threads or engine.default_threads()
    place = options.folder or folder() / "tune"
    machine = resolve(target)
    if isinstance(machine, CudaTarget):
        threads = 1  # of the CPU, which launches
        load_backend()
    tasks = tasks_of(suited(_module(model), machine.arch), machine, threads, place, progress)
    if not tasks:
        raise NybbleError("tune: the network has no layer with a kernel of Nybble's.")
    return tasks


def _module(model: Model | QuantizedModel) -> tvm.IRModule:
    if isinstance(model, QuantizedModel):
        return model.integer
    return canonicalize(module_of(model))
