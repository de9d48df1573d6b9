"""Which records a compilation knows: the user's, then those that ship with Nybble."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from nybble import schedules
from nybble.errors import NybbleError
from nybble.schedules.records import Records
from nybble.schedules.replay import Replay
from nybble.schedules.target import CpuTarget

RECORDS = "NYBBLE_RECORDS"
FOLDER = Path(schedules.__file__).parent / "shipped"
Given = Records | str | Path | Sequence[str | Path] | None
"""Records; or files of them; or None for those that NYBBLE_RECORDS names."""


def gather(given: Given = None) -> Records:
    """The records that count.

    Args:
        given: records are taken as they are. Behind those of files stand the ones that ship with
            Nybble; an empty sequence of files leaves only these.

    Raises:
        NybbleError: a file is not there or cannot be read.
    """
    if isinstance(given, Records):
        return given
    if given is None:
        given = [part for part in os.environ.get(RECORDS, "").split(os.pathsep) if part]
    found = Records.read([given] if isinstance(given, str | Path) else given)
    found.behind = shipped()
    return found


@cache
def shipped() -> Records:
    """The records of the package."""
    return Records.read(sorted(FOLDER.glob("*.jsonl")))


def replays(
    records: Records, targets: Iterable[CpuTarget], threads: int | None = None
) -> list[Replay]:
    """The records as each target sees them.

    Args:
        records: from `gather`.
        targets: that are compiled for.
        threads: that the library will run with; None if that is not known.

    Raises:
        NybbleError: ``threads`` is no number of threads.
    """
    if threads is not None and threads < 1:
        raise NybbleError(f"threads={threads!r} is not at least 1.")
    return [Replay(records, target, threads) for target in targets]


def notes(records: Records, seen: Iterable[Replay]) -> tuple[str, ...]:
    """What a person should hear of the records: how many there were, and what was left aside.

    Args:
        records: from `gather`.
        seen: what compilations made of them.
    """
    skipped = [f"{count} {what}" for what, count in sorted(records.skipped.items())]
    if not len(records) and not skipped:
        return ()
    lines = f"; lines skipped: {', '.join(skipped)}" if skipped else ""
    found = [f"{len(records)} records read{lines}"]
    for replay in seen:
        left = ", ".join(replay.notes())
        if left:
            found.append(f"records left aside for {replay.target.name}: {left}")
    return tuple(found)
