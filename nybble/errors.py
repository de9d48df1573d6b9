"""Everything Nybble raises on purpose. Each message says what, where, why and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class NybbleError(Exception):
    """Base of every error that Nybble raises on purpose."""


class ImportModelError(NybbleError):
    """The file or object is not a model Nybble can read (truncated, NaN weights, no inputs)."""


@dataclass(frozen=True)
class UnsupportedNode:
    """One node that an importer has no translation for."""

    op: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"  {self.op} '{self.name}': {self.reason}"


class UnsupportedOpError(NybbleError):
    """The model holds operators without a translation; ``nodes`` lists every one of them."""

    def __init__(self, nodes: Sequence[UnsupportedNode]):
        self.nodes = tuple(nodes)
        lines = "\n".join(map(str, self.nodes))
        super().__init__(f"{len(self.nodes)} node(s) cannot be imported:\n{lines}")


class CalibrationError(NybbleError):
    """The calibration data is empty, has the wrong shape, or holds NaN or infinity."""


class AllocationError(NybbleError):
    """Widths cannot be allocated: the tables do not go together, or no choice keeps the budget."""


class StageError(NybbleError):
    """A module breaks the spec of the stage it claims to be in."""


class ScheduleError(NybbleError):
    """A kernel was asked for a combination of knobs or shapes that it cannot build."""


class ArtifactError(NybbleError):
    """A ``.so`` cannot be written, read or run here, or was called with the wrong inputs."""
