"""Measures on devices behind TVM's RPC tracker: built here, run there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from nybble.errors import NybbleError
from nybble.executors.interface import Done, Executor
from nybble.executors.local import Processes
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.machine import Machine
from nybble.schedules.target import Target
from nybble.tuning.candidate import Library, attempt, not_built
from nybble.tuning.measure import TURNS, Limits, Outcome
from nybble.tuning.remote import CANDIDATE, Described, Job, Trouble, describe, on_device
from nybble.tuning.tasks import Point, Task
from nybble.tuning.tracker import Tracker

CLIENTS = 16  # at most, one for each server: each is a process of 250 MB
BLAME = 2  # sessions that ended while a candidate ran: then it is its own fault
MISFITS = 3  # sessions in which the reference fails before anything has run
TRIES = 8  # sessions of a candidate, whoever is to blame

Attempt = Callable[[Task, Point], Library]
Work = Callable[[Job], Outcome | Trouble]


class DevicePool:
    """A `nybble.tuning.measure.Measurer` of devices.

    A candidate whose device vanishes or hangs goes to another one; where that happens twice while
    the candidate itself runs, it is counted as a crash or a hang.

    Args:
        tracker: where the devices are registered.
        builders: where candidates are compiled; not closed here.
        limits: seconds for compiling and for every step on a device.
        build: what builders do with a candidate.
        work: what clients do with a candidate.

    Attributes:
        counts: failures of candidates by kind; ``redone``: sessions that ended early.
    """

    def __init__(
        self,
        tracker: Tracker,
        builders: Executor,
        limits: Limits | None = None,
        build: Attempt = attempt,
        work: Work = on_device,
    ):
        self.tracker, self.builders, self._build, self.work = tracker, builders, build, work
        self.limits = limits or Limits()
        self._clients: Processes | None = None
        self.counts: Counter[str] = Counter()

    def measure(self, task: Task, points: Sequence[Point], turns: int = TURNS) -> Iterator[Outcome]:
        """See `nybble.tuning.measure.Measurer.measure`."""
        clients = self._ready(self.tracker.check())
        batch = _Batch(self, clients, task, turns)
        try:
            for outcome in batch.outcomes(points):
                if outcome.failure is not None:
                    self.counts[outcome.failure] += 1
                yield outcome
        finally:
            batch.drop()

    def machine(self, target: Target) -> Machine:
        """What a device says of itself; those of one key are taken to be alike.

        Raises:
            NybbleError: no tracker answers, nobody has the key, or no device says anything.
        """
        clients = self._ready(self.tracker.check())
        for _ in range(TRIES):
            done = clients.submit(describe, (self.tracker,), self.limits.start).result()
            if done.value is not None:
                return self._machine(target, done.value)
        raise NybbleError(
            f"No device with the key '{self.tracker.key}' says what it is: "
            f"{done.failure.detail if done.failure else 'their sessions end at once'}."
        )

    def _machine(self, target: Target, found: Described) -> Machine:
        if not isinstance(target, CudaTarget):
            return Machine.of(target, found.cpu, found.caches)
        if found.gpu is None:
            raise NybbleError(
                f"A device with the key '{self.tracker.key}' has no GPU, which {target.name} needs."
            )
        return Machine.of(target, found.gpu, (), found.capability)

    def close(self) -> None:
        """Ends the clients; devices notice by themselves."""
        if self._clients is not None:
            self._clients.close()

    def built(self, task: Task, point: Point) -> Future[Done[Library]]:
        """A candidate's code, soon."""
        return self.builders.submit(self._build, (task, point), self.limits.start)

    def _ready(self, servers: int) -> Processes:
        """One client for each server."""
        wanted = min(servers, CLIENTS)
        if self._clients is None or self._clients.workers < wanted:
            self.close()
            self._clients = Processes(wanted)
        return self._clients


class _Batch:
    """The candidates of one `DevicePool.measure` on their way."""

    def __init__(self, pool: DevicePool, clients: Processes, task: Task, turns: int):
        self._pool, self._clients = pool, clients
        self._task, self._turns = task, turns
        self._building: dict[Future[Any], Point] = {}
        self._running: dict[Future[Any], tuple[Point, bytes]] = {}
        self._blamed: Counter[Point] = Counter()
        self._tries: Counter[Point] = Counter()
        self._misfits: list[str] = []
        self._ran = False
        self._reference = b""

    def outcomes(self, points: Sequence[Point]) -> Iterator[Outcome]:
        """One for each point."""
        self._reference = self._code_of_reference()
        for point in points:
            self._building[self._pool.built(self._task, point)] = point
        while self._building or self._running:
            ended, _ = wait([*self._building, *self._running], return_when=FIRST_COMPLETED)
            for future in ended:
                built = future in self._building
                outcome = self._after_build(future) if built else self._after_run(future)
                if outcome is not None:
                    yield outcome

    def drop(self) -> None:
        """Ends what is on its way."""
        self._pool.builders.drop(list(self._building))
        self._clients.drop(list(self._running))

    def _code_of_reference(self) -> bytes:
        done = self._pool.built(self._task, self._task.reference).result()
        failed = not_built(self._task.reference, done)
        if failed is not None:
            raise NybbleError(
                f"The default kernel {self._task.reference.kernel} of {self._task.key} cannot be "
                f"built for {self._task.target.name}: {failed.detail}."
            )
        assert done.value is not None
        return done.value.code

    def _after_build(self, future: Future[Done[Library]]) -> Outcome | None:
        point, done = self._building.pop(future), future.result()
        if done.value is not None and done.value.failure is None:
            self._send(point, done.value.code)
        return not_built(point, done)

    def _send(self, point: Point, code: bytes) -> None:
        limits, codes = self._pool.limits, (code, self._reference)
        job = Job(self._pool.tracker, self._task, point, codes, self._turns, limits)
        future = self._clients.submit(self._pool.work, (job,), limits.start)
        self._running[future] = point, code

    def _after_run(self, future: Future[Done[Outcome | Trouble]]) -> Outcome | None:
        (point, code), done = self._running.pop(future), future.result()
        if isinstance(done.value, Outcome):
            self._ran = True
            return done.value
        hung = done.failure is not None and done.failure.kind == "hang"
        trouble = done.value or _of_client(done)
        self._pool.counts["redone"] += 1
        self._tries[point] += 1
        if trouble.where == "reference" and not hung:
            self._misfit(trouble)
        if trouble.where == "candidate":
            self._blamed[point] += 1
            if self._blamed[point] == BLAME:
                return Outcome.failed(point, "hang" if hung else "crash", trouble.detail)
        if trouble.where == "nobody" or self._tries[point] == TRIES:
            return Outcome.failed(point, "lost", trouble.detail)
        self._send(point, code)
        return None

    def _misfit(self, trouble: Trouble) -> None:
        """Where not even the default kernel runs, the code is for other devices."""
        self._misfits.append(trouble.detail)
        if not self._ran and len(self._misfits) == MISFITS:
            raise NybbleError(
                f"The default kernel {self._task.reference.kernel}, compiled for "
                f"{self._task.target.name}, does not run on these devices: "
                f"{'; '.join(sorted(set(self._misfits)))}. Give the --target of the devices."
            )


def _of_client(done: Done[Any]) -> Trouble:
    """What a client's own end says: it was killed because a device did not answer, or crashed."""
    assert done.failure is not None
    detail = done.failure.detail
    if detail.startswith(CANDIDATE):
        return Trouble("candidate", detail)
    return Trouble("reference" if detail.startswith("the reference") else "device", detail)
