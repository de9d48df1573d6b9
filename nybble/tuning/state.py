"""A session's budget, settings, and how it stands."""

from __future__ import annotations

from dataclasses import dataclass, field

from nybble.tuning.serve import Job


@dataclass(frozen=True)
class Budget:
    """When a session ends.

    Attributes:
        trials: points measured, earlier sessions of the same records included; None for no end.
        seconds: of this session; None for no end.
    """

    trials: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Settings:
    """How a session works.

    Attributes:
        seed: of all that is drawn.
        batch: candidates measured together.
    """

    seed: int = 0
    batch: int = 16


@dataclass
class State:
    """A session as it stands.

    Attributes:
        jobs: the tasks.
        budget: when it ends.
        trials: points measured, earlier sessions included.
        resumed: points of earlier sessions.
        elapsed: seconds of this session.
        failures: points without a time, by the kind of failure.
        interrupted: a Ctrl-C ended it.
        serving: the job that is being measured.
    """

    jobs: list[Job]
    budget: Budget
    trials: int = 0
    resumed: int = 0
    elapsed: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False
    serving: Job | None = None

    @property
    def reference(self) -> float | None:
        """Seconds of the network's kernels by default, None before all were measured."""
        return self._network(tuned=False)

    @property
    def seconds(self) -> float | None:
        """Seconds of the network's kernels with the best decisions so far."""
        return self._network(tuned=True)

    @property
    def left(self) -> float | None:
        """Seconds to the session's end, about; None while that cannot be told."""
        ends = []
        if self.budget.seconds is not None:
            ends.append(self.budget.seconds - self.elapsed)
        done = self.trials - self.resumed
        if self.budget.trials is not None and done:
            ends.append((self.budget.trials - self.trials) * self.elapsed / done)
        return max(0.0, min(ends)) if ends else None

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        trials, seconds = self.budget.trials, self.budget.seconds
        is_late = seconds is not None and self.elapsed >= seconds
        return is_late or (trials is not None and self.trials >= trials)

    def _network(self, tuned: bool) -> float | None:
        total = 0.0
        for job in self.jobs:
            one = job.seconds if tuned else job.search.reference
            if one is None:
                return None
            total += job.calls * one
        return total
