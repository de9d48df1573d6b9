"""Tuning on other machines: behind an RPC tracker, or by a folder that goes there and returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nybble.errors import NybbleError
from nybble.executors.choose import executor
from nybble.executors.interface import Executor
from nybble.model import Model, QuantizedModel
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.machine import Machine
from nybble.schedules.records import Records
from nybble.schedules.target import Target as Resolved
from nybble.schedules.target import resolve
from nybble.tune_run import TuneOptions, prepared
from nybble.tuning import offline
from nybble.tuning.measure import TURNS, Measurer, Outcome
from nybble.tuning.memory import SURE, Memory
from nybble.tuning.offline import Exported, Progress, Times
from nybble.tuning.pool import LocalPool
from nybble.tuning.rpc import DevicePool
from nybble.tuning.session import Session
from nybble.tuning.state import Budget, Settings
from nybble.tuning.tasks import Point, Task
from nybble.tuning.tracker import Tracker
from nybble.walk import Target

CANDIDATES = 200  # of a batch where no number is given
NOWHERE = "a machine that has not measured yet"


@contextmanager
def measuring(
    tracker: str | None = None, key: str | None = None, workers: str | None = None
) -> Iterator[Measurer]:
    """The measurer that the options of ``nybble tune`` name.

    Args:
        tracker: ``host:port`` of an RPC tracker; None to measure on this machine.
        key: that the devices go by.
        workers: where candidates are built (`nybble.executors.choose.executor`); on this machine
            they are built where they are measured, so it is a number then.

    Raises:
        NybbleError: the options do not go together, or nobody answers.
    """
    if tracker is None:
        if key is not None or (workers is not None and not workers.isdecimal()):
            raise NybbleError(
                "--key and --workers ray belong to --tracker or --export-batch: measured on this "
                "machine, candidates are built by its own processes."
            )
        with closing(LocalPool(int(workers) if workers else None)) as pool:
            yield pool
        return
    devices = Tracker.parse(tracker, key or "")
    devices.check()
    with closing(executor(workers)) as builders, closing(DevicePool(devices, builders)) as far:
        yield far


@dataclass
class Elsewhere:
    """A measurer that can be asked nothing: what its machine measured is in the records."""

    kind: Machine

    def measure(
        self,
        task: Task,
        points: Sequence[Point],  # noqa: ARG002  (the protocol's)
        turns: int = TURNS,  # noqa: ARG002
    ) -> Iterator[Outcome]:
        """Refuses."""
        raise NybbleError(f"{task.key}: nothing can be measured on {self.kind.cpu} from here.")

    def machine(self, target: Resolved) -> Machine:  # noqa: ARG002
        """The kind of machine that it is."""
        return self.kind

    def close(self) -> None:
        """Ends nothing."""


@dataclass(frozen=True)
class Batches:
    """Which batch comes and which goes.

    Attributes:
        back: a folder with times, or None.
        out: a folder to write, or None. With ``back`` its candidates follow from those times.
        workers: where candidates are built (`nybble.executors.choose.executor`).
    """

    back: Path | None
    out: Path | None
    workers: str | None = None


def exchange(
    model: Model | QuantizedModel,
    records: str | Path,
    target: Target,
    options: TuneOptions,
    batches: Batches,
    progress: Progress | None = None,
) -> tuple[Times | None, Exported | None]:
    """Enters the times of a batch into the records, and writes the next batch.

    Args:
        model: as for `nybble.tune`.
        records: the file that times are added to.
        target: of the machine that measures.
        options: ``trials`` is the number of candidates of the batch; ``threads`` is needed, for the
            other machine's are not known here.
        batches: which.
        progress: called with (candidates built, candidates in all).

    Raises:
        NybbleError: a folder that is not one of ours, of another network, or already there.
        ArtifactError: this machine cannot link for the target.
    """
    cpu, known = resolve(target), Records.open(records)
    if options.threads is None and not isinstance(cpu, CudaTarget):
        raise NybbleError("--export-batch and --import-times need --threads: the other machine's.")
    times = offline.import_times(batches.back, cpu) if batches.back else None
    tasks = prepared(model, target, options)
    machine = times.machine if times else Machine.of(cpu, NOWHERE, ())
    if times is not None:
        _enter(times, tasks, Memory(tasks, known, machine))
    if batches.out is None:
        return times, None
    session = Session(
        tasks, Elsewhere(machine), Records.open(records), Budget(), Settings(options.seed)
    )
    asked = session.proposals(options.trials or CANDIDATES)
    with closing(executor(batches.workers)) as builders:
        return times, _exported(batches.out, asked, builders, progress)


def _exported(
    folder: Path,
    asked: offline.Asked,
    builders: Executor,
    progress: Progress | None,
) -> Exported:
    if not asked:
        raise NybbleError("--export-batch: every candidate has been measured already.")
    return offline.export_batch(folder, asked, builders, SURE, progress=progress)


def _enter(times: Times, tasks: Sequence[Task], memory: Memory) -> None:
    """Remembers what came back."""
    by_key = {task.key: task for task in tasks}
    strange = {key for key, _ in times.outcomes} - set(by_key)
    if strange:
        raise NybbleError(
            f"--import-times: {len(strange)} of its layers are not in this network. Give the same "
            "model, recipe, calibration, target and threads as for --export-batch."
        )
    for key, outcome in times.outcomes:
        memory.remember(by_key[key], outcome, times.turns)
