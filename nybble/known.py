"""Which records a compilation knows: the user's, then those that ship with Nybble."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from nybble import schedules
from nybble.place import Place
from nybble.schedules.records import Records

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


def notes(records: Records, places: Iterable[Place]) -> tuple[str, ...]:
    """What a person should hear of the records: how many there were, and what was left aside.

    Args:
        records: from `gather`.
        places: what was compiled for, with these records.
    """
    skipped = [f"{count} {what}" for what, count in sorted(records.skipped.items())]
    if not len(records) and not skipped:
        return ()
    left = f"; lines skipped: {', '.join(skipped)}" if skipped else ""
    told = [line for place in places for line in place.notes()]
    return (f"records read: {len(records)}{left}", *told)
