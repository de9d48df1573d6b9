"""Everything Nybble raises on purpose. Each message says what, where, why and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
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


def near(name: str, known: Collection[str]) -> str:
    """A hint at names alike, for the end of a clause; "" where there is none."""
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, found))}?)" if found else ""


def near_pattern(pattern: str, names: Collection[str]) -> str:
    """The hint for a shell-style pattern that matched no name: patterns match whole names."""
    part = pattern.strip("*")
    if part and any(part in name for name in names):
        return f" (did you mean '*{part}*'?)"
    return near(pattern, names)
