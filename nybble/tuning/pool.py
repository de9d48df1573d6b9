"""Measures on this machine: long-lived processes that compile, one of which runs at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from nybble.executors.interface import each
from nybble.executors.local import Processes
from nybble.latency import refuse_foreign
from nybble.runtime import host
from nybble.schedules.machine import Machine
from nybble.schedules.target import CpuTarget, Target
from nybble.tuning.measure import TURNS, Limits, Outcome
from nybble.tuning.tasks import Point, Task
from nybble.tuning.worker import Measured, measured


class LocalPool:
    """A `nybble.tuning.measure.Measurer` of processes of this machine.

    Nothing starts before the first measurement; a process imports TVM once and stays.

    Args:
        workers: how many; one a core when omitted.
        limits: seconds for compiling and running.
        work: what a process does with a candidate.

    Attributes:
        executor: the processes.
    """

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        work: Measured = measured,
    ):
        self.executor = Processes(workers or len(host.cpus()))
        self._limits, self._work = limits or Limits(), work
        self._failures: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """Failures of candidates by kind; ``started``: processes, replacements included."""
        return {**self._failures, "started": self.executor.counts["start"]}

    def measure(self, task: Task, points: Sequence[Point], turns: int = TURNS) -> Iterator[Outcome]:
        """See `nybble.tuning.measure.Measurer.measure`."""
        refuse_foreign(task.target)
        arguments = [(task, point, turns, self._limits) for point in points]
        for index, done in each(self.executor, self._work, arguments, self._limits.start):
            outcome = done.value
            if done.failure is not None:
                failure = done.failure
                outcome = Outcome.failed(points[index], failure.kind, failure.detail)
            assert outcome is not None
            if outcome.failure is not None:
                self._failures[outcome.failure] += 1
            yield outcome

    def machine(self, target: Target) -> Machine:
        """This one.

        Raises:
            NybbleError: the target is a GPU's: processes of this machine do not measure those.
        """
        if not isinstance(target, CpuTarget):
            refuse_foreign(target)
        return Machine.here(target)

    def close(self) -> None:
        """Ends the processes."""
        self.executor.close()
