"""A tuning session: batches of candidates, measured, remembered, and the winners raced again.

Every outcome is on the disk as soon as it is known. So a session that is stopped, by its budget or
by Ctrl-C, loses the running batch at most, and the next one goes on: what the records hold of these
tasks, measured on this kind of machine with these sources, is not measured again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from math import ceil

from nybble.errors import ArtifactError
from nybble.limits import multiply_rates
from nybble.schedules.machine import runs_here
from nybble.schedules.records import Records
from nybble.tuning.evolve import Search, similarity
from nybble.tuning.measure import TURNS, Measurer, Outcome
from nybble.tuning.memory import SURE, Memory
from nybble.tuning.model import CostModel, Sample
from nybble.tuning.serve import Job, limit_of, next_job
from nybble.tuning.state import Budget, Settings, State
from nybble.tuning.tasks import Point, Task

CHALLENGERS = 2  # that are raced again after a batch
ALIKE = 0.5  # similarity of tasks that learn from each other's best
SEEDS = 3  # tasks, and points of each

Watch = Callable[[State], None]


class Session:
    """Tunes tasks within a budget.

    Args:
        tasks: of one network, all for one target; at least one.
        measurer: measures candidates.
        records: where outcomes go, and what is known already.
        budget: when it ends.
        settings: how it works.

    Attributes:
        state: as it stands.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        measurer: Measurer,
        records: Records,
        budget: Budget,
        settings: Settings | None = None,
    ):
        self._settings = settings or Settings()
        self._measurer = measurer
        self._memory = Memory(tasks, records, measurer.machine(tasks[0].target))
        self._random = random.Random(self._settings.seed)
        self._model = CostModel(self._settings.seed)
        rates = _rates(tasks[0])
        jobs = [Job(search, limit_of(search, rates)) for search in map(Search, tasks)]
        self.state = State(jobs, budget)
        for job in jobs:
            self._take_over(job)
        self.state.resumed = self.state.trials
        self._model.fit(self.samples())

    def run(self, watch: Watch | None = None) -> State:
        """Searches until the budget is spent, every task has stopped, or a Ctrl-C.

        Args:
            watch: called after every outcome.

        Raises:
            NybbleError: nothing can be measured here, or the records cannot be written.
        """
        start, earlier = time.monotonic(), self.state.elapsed

        def tick() -> None:
            self.state.elapsed = earlier + time.monotonic() - start
            if watch is not None:
                watch(self.state)

        try:
            while not self.state.is_over:
                job = next_job(self.state.jobs, self._random)
                if job is None:
                    break
                self._serve(job, tick)
        except KeyboardInterrupt:
            self.state.interrupted = True
        self.state.serving = None
        tick()
        return self.state

    def proposals(self, count: int) -> list[tuple[Task, list[Point]]]:
        """Candidates to be measured elsewhere, ``count`` in all, as many for every task."""
        share, more = divmod(count, len(self.state.jobs))
        found = []
        for index, job in enumerate(self.state.jobs):
            wanted = share + (index < more)
            points = job.search.propose(self._model, wanted, self._random, self._seeds(job))
            found.append((job.search.task, points[:wanted]))
        return [(task, points) for task, points in found if points]

    def samples(self) -> list[Sample]:
        """All that was measured, as the cost model sees it."""
        return [sample for job in self.state.jobs for sample in job.search.samples()]

    def correlation(self) -> float | None:
        """Of the cost model's held-out predictions with what was measured, within tasks."""
        return CostModel(self._settings.seed).correlation(self.samples())

    def _serve(self, job: Job, tick: Callable[[], None]) -> None:
        """One batch."""
        state, count = self.state, self._settings.batch
        state.serving = job
        seeds = [] if job.history else self._seeds(job)
        if seeds:  # what suits a layer like it is known
            count = ceil(count / 2)
        if state.budget.trials is not None:
            count = min(count, state.budget.trials - state.trials)
        points = job.search.propose(self._model, count, self._random, seeds)[:count]
        for outcome in self._measured(job.search.task, points, TURNS):
            job.trials += 1
            state.trials += 1
            job.search.tell(outcome)
            tick()
        self._race_again(job, tick)
        job.note()
        self._model.fit(self.samples())
        self._memory.enter(state)
        tick()

    def _race_again(self, job: Job, tick: Callable[[], None]) -> None:
        """Races what seems fastest in many turns, so that luck does not win."""
        for _ in range(CHALLENGERS):
            challenger = job.search.challenger()
            if challenger is None:
                return
            for outcome in self._measured(job.search.task, [challenger.point], SURE):
                job.search.confirm(outcome)
                tick()

    def _measured(self, task: Task, points: Sequence[Point], turns: int) -> Iterable[Outcome]:
        """The outcomes of points, each remembered before it is handed on."""
        for outcome in self._measurer.measure(task, points, turns) if points else ():
            failure = outcome.failure
            if failure is not None:
                self.state.failures[failure] = self.state.failures.get(failure, 0) + 1
            self._memory.remember(task, outcome, turns)
            yield outcome

    def _seeds(self, job: Job) -> list[Point]:
        """The best points of the tasks most alike; none if no task is much like it."""
        found = [
            (similarity(job.search.task, other.search.task), other.search)
            for other in self.state.jobs
            if other is not job and other.search.outcomes
        ]
        found.sort(key=lambda one: -one[0])
        alike = [search for likeness, search in found if likeness >= ALIKE][:SEEDS]
        return [outcome.point for search in alike for outcome in search.measured[:SEEDS]]

    def _take_over(self, job: Job) -> None:
        """Enters what earlier sessions found of a task."""
        for outcome, is_sure in self._memory.recall(job.search.task):
            (job.search.confirm if is_sure else job.search.tell)(outcome)
        job.trials = len(job.search.outcomes)
        self.state.trials += job.trials
        if job.trials:
            job.history = [(job.trials, job.search.ratio)]


def _rates(task: Task) -> dict[str, float]:
    """What this machine multiplies in a second; empty where that is not known."""
    if not runs_here(task.target):
        return {}
    try:
        return multiply_rates(task.target.features)
    except ArtifactError:  # no C compiler: then no task stops at its limit
        return {}
