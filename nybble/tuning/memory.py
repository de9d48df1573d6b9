"""What a session remembers on disk: records, points that failed, the network's time over time.

``net.records`` holds the measured points, ``net.records.progress`` beside it the estimates, and a
task's folder the points that failed, which are not tried again with the same sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from nybble import lines
from nybble.schedules import problems, sources
from nybble.schedules.kernel import Problem
from nybble.schedules.machine import Machine
from nybble.schedules.records import Record, Records
from nybble.tuning.measure import Outcome
from nybble.tuning.state import State
from nybble.tuning.tasks import Point, Task

FAILED = "failed.jsonl"
SURE = 41  # turns of a race that decides


def progress_of(records: Path) -> Path:
    """The file beside the records that keeps the network's estimated time over time."""
    return records.with_name(f"{records.name}.progress")


class Memory:
    """The files of a session.

    Args:
        tasks: of the network, all for one target.
        records: the measured points.
        machine: that measures.
    """

    def __init__(self, tasks: Sequence[Task], records: Records, machine: Machine):
        self._records, self._machine = records, machine
        keys = "".join(f"{task.key} {task.calls} {task.threads}" for task in tasks)
        self._network = hashlib.sha256(keys.encode()).hexdigest()[:16]
        self._progress = progress_of(records.path) if records.path else None
        self._before = self._elapsed()
        self._known: dict[Problem, list[Record]] = {}
        for record in records.settled():
            if record.machine.is_like(self._machine) and record.is_current:
                self._known.setdefault(problems.renamed(record.problem), []).append(record)

    def remember(self, task: Task, outcome: Outcome, turns: int) -> None:
        """Keeps an outcome; one of a lost device says nothing.

        Raises:
            NybbleError: the records cannot be written.
        """
        if outcome.failure is not None:
            if outcome.failure != "lost":
                failed = {"failure": outcome.failure, "detail": outcome.detail}
                made = sources.digest(task.problem.op, outcome.point.kernel)
                found = {**outcome.point.as_dict(), **failed, "sources": made}
                lines.append(task.folder / FAILED, [found])
            return
        assert outcome.seconds is not None
        assert outcome.ratio is not None
        point, default = outcome.point, task.reference
        self._records.append(
            Record(
                task.problem, point.kernel, point.weights, point.decisions,
                outcome.seconds, outcome.ratio, outcome.noise, task.threads, self._machine,
                (default.kernel, default.weights), turns,
            )
        )  # fmt: skip

    def recall(self, task: Task) -> Iterator[tuple[Outcome, bool]]:
        """What is known of a task, and whether it was raced until it was sure."""
        default = task.reference.kernel, task.reference.weights
        for record in self._known.get(problems.renamed(task.problem), ()):
            if record.threads == task.threads and record.reference == default:
                point = Point(record.kernel, record.weights, record.decisions)
                outcome = Outcome(point, record.seconds, record.ratio, record.noise)
                yield outcome, record.turns >= SURE
        failed = task.folder / FAILED
        for data in lines.read(failed) if failed.exists() else ():
            if data.get("sources") == sources.digest(task.problem.op, str(data.get("kernel"))):
                yield (
                    Outcome.failed(Point.from_dict(data), data["failure"], data["detail"]),
                    False,
                )

    def enter(self, state: State) -> None:
        """Writes how the network stands, once all of its tasks were measured."""
        if self._progress is None or state.seconds is None:
            return
        found = {
            "network": self._network, "elapsed": self._before + state.elapsed,
            "trials": state.trials, "reference": state.reference, "seconds": state.seconds,
        }  # fmt: skip
        lines.append(self._progress, [found])

    def _elapsed(self) -> float:
        """Seconds of earlier sessions with this network."""
        if self._progress is None or not self._progress.exists():
            return 0.0
        ours = [x for x in lines.read(self._progress) if x.get("network") == self._network]
        return float(ours[-1]["elapsed"]) if ours else 0.0
