"""Finished units of work on disk, one JSON line each: what a killed run had done is not lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nybble import lines
from nybble.errors import NybbleError


class Journal:
    """Units by name; those of the file are known from the start.

    Args:
        path: one JSON object a line; None keeps nothing.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self._known: dict[str, Any] = dict(_read(path)) if path is not None else {}

    def __contains__(self, unit: object) -> bool:
        return unit in self._known

    def __getitem__(self, unit: str) -> Any:
        """What a unit found; floats come back to the last bit."""
        return self._known[unit]

    def add(self, unit: str, found: Any) -> None:
        """Keeps a unit; it is on the disk when this returns."""
        self._known[unit] = found
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines.append(self._path, [{"unit": unit, "found": found}])
        except OSError as error:
            raise NybbleError(
                f"Cannot keep finished work in {self._path}: {error.strerror}. Set NYBBLE_CACHE to "
                "another folder, or measure with remember=False."
            ) from error


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    """Units of a file; a line of something else is none."""
    if not path.exists():
        return
    for record in lines.read(path):
        if "unit" in record and "found" in record:
            yield str(record["unit"]), record["found"]
