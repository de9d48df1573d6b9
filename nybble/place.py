"""Where code will run: a target, so many threads, and what earlier sessions measured there."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from nybble.errors import NybbleError
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.records import Records
from nybble.schedules.replay import Replay
from nybble.schedules.target import Target


@dataclass(frozen=True)
class Place:
    """A target with what is known of it.

    Attributes:
        target: the CPU.
        records: of tuning sessions, on any targets.
        asked: threads that the library will run with; None for what the user's records say.
    """

    target: Target
    records: Records = field(default_factory=Records)
    asked: int | None = None

    def __post_init__(self) -> None:
        """Refuses what is no number of threads."""
        if self.asked is not None and self.asked < 1:
            raise NybbleError(f"threads={self.asked!r} is not at least 1.")

    @cached_property
    def threads(self) -> int | None:
        """As asked, else the number that all records for the target were measured with, if one.

        A GPU's kernels do not depend on it: 1.
        """
        if isinstance(self.target, CudaTarget):
            return 1
        if self.asked is not None:
            return self.asked
        return self._recorded[0] if len(self._recorded) == 1 else None

    @cached_property
    def _recorded(self) -> list[int]:
        """The numbers of threads of the records for the target."""
        return sorted({one.threads for one in self.records if one.machine.fits(self.target)})

    @cached_property
    def replay(self) -> Replay:
        """The records as the target sees them."""
        return Replay(self.records, self.target, self.threads)

    def notes(self) -> list[str]:
        """What was assumed, and what was left aside of the records so far, in words."""
        found = []
        is_cpu = not isinstance(self.target, CudaTarget)
        if self.asked is None and self.threads is not None and is_cpu:
            found.append(
                f"kernels for {self.target.name} are decided for {self.threads} thread(s), like "
                "the records (threads=…, or --threads, for another number)"
            )
        if self.threads is None and self._recorded:
            counts = ", ".join(map(str, self._recorded))
            found.append(
                f"the records for {self.target.name} are of {counts} threads: say for how many "
                "the library is (threads=…, or --threads)"
            )
        left = ", ".join(self.replay.notes())
        return [*found, f"records left aside for {self.target.name}: {left}"] if left else found
