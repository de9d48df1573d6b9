"""Which task is served next: where the next trials shorten the whole network's time most.

A task's gradient is what a trial gained lately, or what it may still gain: optimism shrinks with
the trials that were spent, and is bounded by what layers alike have reached (Ansor, Zheng et al.
2020, §6). A task stops when its space is exhausted, it is at the machine's limit, or many trials
brought nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nybble.limits import kind_of
from nybble.tuning.evolve import Search, similarity

ALPHA = 0.5  # weight of what was gained lately, against what may be gained
BETA = 1.0  # how much of what tasks alike have reached is hoped for
OPTIMISM = 0.2  # of a task that was served once, relative to its time
EXPLORE = 0.05  # share of batches that any open task may get
PATIENCE = 96  # trials without a gain
GAIN = 0.01  # a relative gain that counts
AT_LIMIT = 0.97  # share of the machine's limit
WINOGRAD = 2.25  # multiplications that tiles of 2x2 outputs save, for windows of 3x3
TABLES = ("lut", "trits", "bitserial")  # in the names of kernels that do not multiply


@dataclass
class Job:
    """A task in a session.

    Attributes:
        search: its search.
        limit: seconds of a call that no kernel of its space can beat; None if that is not known.
        trials: points measured, in all sessions.
        history: (trials, ratio) after every batch.
        stopped: why it gets no more trials; None while it does.
    """

    search: Search
    limit: float | None = None
    trials: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)
    stopped: str | None = None

    @property
    def calls(self) -> int:
        """How often the network calls the layer."""
        return self.search.task.calls

    @property
    def seconds(self) -> float | None:
        """Of a call of the best kernel so far, None before anything was measured."""
        reference = self.search.reference
        return None if reference is None else reference * self.search.ratio

    @property
    def share(self) -> float | None:
        """How much of the machine's limit the best kernel reaches."""
        return self.limit / self.seconds if self.limit and self.seconds else None

    def note(self) -> None:
        """Enters a batch into the history, and stops where nothing more can be expected."""
        self.history.append((self.trials, self.search.ratio))
        self.stopped = self._reason()

    def _reason(self) -> str | None:
        if self.search.is_exhausted:
            return "all tried"
        if self.share is not None and self.share >= AT_LIMIT:
            return "at the limit"
        if self.trials - self._gained() >= PATIENCE:
            return "no progress"
        return None

    def _gained(self) -> int:
        """Trials at the last gain that counts."""
        at, best = 0, 1.0
        for trials, ratio in self.history:
            if ratio < best * (1 - GAIN):
                at, best = trials, ratio
        return at


def limit_of(search: Search, rates: Mapping[str, float]) -> float | None:
    """Seconds of a call that multiplying alone takes on this machine.

    Args:
        search: of the task.
        rates: of `nybble.limits.multiply_rates`.

    Returns:
        None where that is not known, or some kernel of the space does not multiply.
    """
    problem = search.task.problem
    kinds = {kind_of(weights) for _, weights in search.variants if weights is not None}
    looks_up = any(part in name.split(".") for name, _ in search.variants for part in TABLES)
    if not problem.macs or not kinds <= rates.keys() or looks_up:
        return None
    saved = WINOGRAD if any("winograd" in name for name, _ in search.variants) else 1.0
    return problem.macs / saved / max(rates[kind] for kind in kinds)


def next_job(jobs: Sequence[Job], rng: random.Random) -> Job | None:
    """The job that the next batch goes to, None when all have stopped.

    Every job has one batch first, those that take longest (by the work in them) before others.
    """
    open_ = [job for job in jobs if job.stopped is None]
    if not open_:
        return None
    new = [job for job in open_ if not job.history]
    if new:
        return max(new, key=lambda job: job.calls * (job.search.task.problem.macs + 1))
    if rng.random() < EXPLORE:
        return rng.choice(open_)
    return max(open_, key=lambda job: gradient(job, jobs))


def gradient(job: Job, jobs: Sequence[Job]) -> float:
    """Seconds of the whole network that a trial for a job may save."""
    seconds = job.seconds
    if seconds is None or not job.history:
        return float("inf")
    earlier = job.history[-2] if len(job.history) > 1 else (0, 1.0)
    trials, ratio = job.history[-1]
    lately = (earlier[1] - ratio) / max(trials - earlier[0], 1)
    hoped = OPTIMISM * ratio / max(trials, 1)
    others = [
        1 - BETA * similarity(job.search.task, other.search.task) * (1 - other.search.ratio)
        for other in jobs
        if other is not job
    ]
    lag = max(0.0, ratio - min(others, default=1.0)) / max(trials, 1)
    if job.share is not None:
        hoped = min(hoped, max(0.0, 1 - job.share) * ratio / max(trials, 1) * 2)
    reference = seconds / ratio
    return job.calls * reference * (ALPHA * lately + (1 - ALPHA) * (hoped + lag))
