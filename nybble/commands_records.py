"""What the commands about records do, once their arguments are read."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from nybble import lines
from nybble.report import units
from nybble.report.progress import console
from nybble.schedules import problems
from nybble.schedules.records import Record, Records, parse, writing


@dataclass(frozen=True)
class Kept:
    """Which records survive a pruning.

    Attributes:
        current: only those of today's kernel sources.
        won: only those that are surely faster than the default kernel.
    """

    current: bool = False
    won: bool = False

    def holds(self, record: Record) -> bool:
        """Whether a record is one of them."""
        return (record.is_current or not self.current) and (record.wins or not self.won)


def show(files: Sequence[Path], as_json: bool) -> None:
    """Prints one row for each machine and number of threads; records of other sources apart.

    Raises:
        NybbleError: a file cannot be read.
    """
    records = Records.read(files)
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.machine, record.threads, record.is_current].append(record)
    won = {id(record) for record in records.settled() if record.wins}
    rows = [_group(found, won) for found in groups.values()]
    if as_json:
        _print({"groups": rows, "skipped": dict(records.skipped)})
        return
    table = Table("machine", "code for", "threads", "layers", "candidates", "won", "from", "to", "")
    for row in rows:
        numbers = (str(row[name]) for name in ("threads", "layers", "candidates", "won"))
        old = "" if row["current"] else "of other kernel sources"
        code = f"{row['arch']}, {len(row['features'])} features"
        table.add_row(row["cpu"], code, *numbers, row["first"], row["last"], old)
    console.print(table)
    _told(records)


def best(files: Sequence[Path], layer: str, as_json: bool) -> None:
    """Prints the fastest record of every layer that matches a pattern.

    Raises:
        NybbleError: a file cannot be read.
    """
    records = Records.read(files)
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records.settled():
        if fnmatchcase(problems.words(record.problem), layer):
            groups[problems.renamed(record.problem), record.machine, record.threads].append(record)
    found = [min(several, key=_rank) for several in groups.values()]
    if as_json:
        _print([record.to_dict() for record in found])
        return
    columns = ("layer", "kernel", "ratio", "noise", "turns", "decisions", "threads", "machine")
    table = Table(*columns, "date")
    for record in found:
        table.add_row(
            Text(problems.words(record.problem)), record.kernel, f"{record.ratio:.2f}",
            f"{100 * record.noise:.0f} %", str(record.turns), Text(_decided(record)),
            str(record.threads), record.machine.cpu, record.date,
        )  # fmt: skip
    table.caption = "ratio: of the time to that of the layer's default kernel and decisions"
    console.print(table)
    _told(records)


def merge(files: Sequence[Path], output: Path) -> None:
    """Adds what ``output`` does not hold yet.

    Raises:
        NybbleError: a file cannot be read, or ``output`` not be written.
    """
    given = Records.read(files)
    target = Records.open(output)
    known = set(target)
    fresh = [record for record in dict.fromkeys(given) if record not in known]
    target.append(*fresh)
    console.print(Text(f"{output}: {len(fresh)} records added to {len(target) - len(fresh)}"))
    _told(given)


def prune(file: Path, output: Path | None, keep: int, kept: Kept) -> None:
    """Keeps the ``keep`` best of each kernel for a layer, machine and number of threads.

    Raises:
        NybbleError: the file cannot be read, or what is kept not be written.
    """
    records = Records.read([file])
    left: list[Record] = []

    def change(objects: Iterable[Any], skipped: Any) -> list[Any]:
        left.extend(shortened(Records(parse(objects, skipped)), keep, kept))
        return [record.to_dict() for record in left]

    with writing(output or file):
        if output is None:
            lines.rewrite(file, change)  # with what others have added meanwhile
        else:
            lines.replace(output, change((r.to_dict() for r in records), records.skipped))
    size = units.size((output or file).stat().st_size)
    console.print(Text(f"{output or file}: {len(left)} of {len(records)} records kept, {size}"))
    _told(records)


def shortened(records: Records, keep: int, kept: Kept) -> list[Record]:
    """The best records of each kernel for a layer, machine and number of threads, in order.

    Args:
        records: of any machines.
        keep: how many of each.
        kept: which ones count.
    """
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records.settled():
        if kept.holds(record):
            kernel = record.kernel, record.weights, record.threads, record.sources
            groups[record.problem, record.machine, kernel].append(record)
    best = {id(r) for found in groups.values() for r in sorted(found, key=_rank)[:keep]}
    return [record for record in records if id(record) in best]


def _rank(record: Record) -> tuple[bool, float]:
    """Best first; what was raced for long stands before what may be luck."""
    return not record.is_sure, record.upper


def _group(found: Sequence[Record], winners: Collection[int]) -> dict[str, Any]:
    first, dates = found[0], [record.date for record in found]
    layers = {problems.renamed(record.problem) for record in found}
    won = {problems.renamed(record.problem) for record in found if id(record) in winners}
    return {
        "cpu": first.machine.cpu, "arch": first.machine.arch, "features": first.machine.features,
        "caches": first.machine.caches, "threads": first.threads, "current": first.is_current,
        "layers": len(layers), "candidates": len(found),
        "won": len(won), "first": min(dates), "last": max(dates),
    }  # fmt: skip


def _decided(record: Record) -> str:
    return ", ".join(f"{name}={value}" for name, value in record.decisions) or "none"


def _print(found: Any) -> None:
    print(json.dumps(found, indent=1))  # noqa: T201


def _told(records: Records) -> None:
    """Says what was skipped."""
    if records.skipped:
        what = ", ".join(f"{count} {why}" for why, count in sorted(records.skipped.items()))
        console.print(Text(f"lines skipped: {what}", style="yellow"))
