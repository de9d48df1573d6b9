"""Where latency is measured: a target, and what earlier sessions found there."""

from __future__ import annotations

from dataclasses import dataclass, field

from nybble.schedules.records import Records
from nybble.schedules.replay import Replay
from nybble.schedules.target import CpuTarget


@dataclass(frozen=True)
class Place:
    """A target with what is known of it.

    Attributes:
        target: the CPU.
        records: of tuning sessions, on any targets.
    """

    target: CpuTarget
    records: Records = field(default_factory=Records)

    def replay(self, threads: int | None = None) -> Replay:
        """The records as the target sees them, for so many threads."""
        return Replay(self.records, self.target, threads)
