"""What was measured: rows, and how they are shown, kept and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

WORSE = 0.9  # of an earlier ratio: what less than this is a regression


@dataclass(frozen=True)
class Row:
    """Nybble beside one peer.

    Attributes:
        case: its name.
        threads: that both ran on.
        isa: that both were held to.
        peer: its name; Nybble's own where it has no such kernel yet, with the reason in ``note``.
        kind: of the peer: float, int8, int4, int2, int1; own: Nybble's 8 bits.
        cpu: its name.
        date: of the measurement.
        nybble_ms: one run of Nybble.
        peer_ms: one run of the peer; None where it could not be had or died.
        ratio: median over the rounds of the peer's time by Nybble's: above 1, Nybble is faster.
        goal: the ratio to reach over the best peer of this kind, None without one.
        gops: Nybble's, two operations a multiply-add.
        share: of the machine's limit that Nybble reaches (roofline), 0 to 1.
        error: of Nybble's output against the float network, relative (L2).
        peer_error: of the peer's.
        note: why a number is missing.
    """

    case: str
    threads: int
    isa: str
    peer: str
    kind: str
    cpu: str
    date: str
    nybble_ms: float | None = None
    peer_ms: float | None = None
    ratio: float | None = None
    goal: float | None = None
    gops: float | None = None
    share: float | None = None
    error: float | None = None
    peer_error: float | None = None
    note: str = ""

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What makes two rows of two runs comparable."""
        return (self.case, self.threads, self.isa, self.peer)


def save(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def load(path: Path) -> list[Row]:
    """Reads what `save` wrote."""
    return [Row(**values) for values in json.loads(path.read_text())]


def merged(before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """The new rows, and the earlier ones of runs that were not repeated."""
    repeated = {row.key[:3] for row in rows}
    return [*(row for row in before if row.key[:3] not in repeated), *rows]


def regressions(
    rows: Sequence[Row], baseline: Sequence[Row]
) -> dict[tuple[str, int, str, str], float]:
    """By row key: the earlier ratio of what is more than 10 % worse now, or is gone."""
    before = {row.key: row.ratio for row in baseline if row.ratio is not None}
    return {
        row.key: before[row.key]
        for row in rows
        if row.key in before and (row.ratio or 0.0) < WORSE * before[row.key]
    }


def by_case(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """(its first row, all its rows) of each case, thread count and level, in order."""
    for _, group in groupby(rows, key=lambda r: r.key[:3]):
        found = list(group)
        yield found[0], found


def best(rows: Sequence[Row]) -> dict[str, Row]:
    """By kind, the row of its fastest peer."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.peer_ms is not None and row.peer_ms < _milliseconds(found.get(row.kind)):
            found[row.kind] = row
    return found


def _milliseconds(row: Row | None) -> float:
    return float("inf") if row is None or row.peer_ms is None else row.peer_ms


NOTES = "## Notes\n"
COLUMNS = ("case", "Nybble ms", "GOPS", "of the limit", "best peer of its kind", "ratio", "goal")


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One line for each case and kind of peer, under `COLUMNS`."""
    lines: list[tuple[str, ...]] = []
    for first, group in by_case(rows):
        left = (
            first.case,
            _number(first.nybble_ms, 2 if (first.nybble_ms or 1) >= 1 else 3),
            _number(first.gops, 0),
            "" if first.share is None else f"{100 * first.share:.0f} %",
        )
        for row in best(group).values():
            peer = f"{row.peer} {row.peer_ms:.3g} ms"
            lines.append((*left, peer, _number(row.ratio, 2), _goal(row)))
            left = ("", "", "", "")
        missing = [row for row in group if row.note]
        if missing:
            notes = "; ".join(sorted({f"{r.peer}: {r.note}" for r in missing}))
            lines.append((left[0], left[1], left[2], left[3], notes, "", ""))
    return lines


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _goal(row: Row) -> str:
    if row.goal is None:
        return ""
    met = row.ratio is not None and row.ratio >= row.goal
    return f"{row.goal:g} {'met' if met else 'missed'}"


def markdown(rows: Sequence[Row], command: str, limits: dict[str, list[str]]) -> str:
    """The page docs/performance.md.

    Args:
        rows: sorted by level and threads.
        command: that measured them.
        limits: lines by "level, threads", as far as they were measured in this run.
    """
    parts = [
        "# Performance\n",
        f"Made by `{command}`; {rows[0].cpu}, {rows[0].date}. Every ratio is the peer's time by"
        " Nybble's: above 1, Nybble is faster. It is the median over interleaved rounds, one"
        " process each; one thread: CPU time, more: wall time. Below `native`, every process runs"
        " under CPUID faulting, which hides the other instructions from it. Linear layers take and"
        " give float32, so quantizing activations counts for everybody; `-cold` rotates copies of"
        " the weights that no cache holds. *Of the limit* is the roofline of the same run:"
        " register-only loops and plain reads.\n",
    ]
    for (isa, threads), group in groupby(rows, key=lambda r: (r.isa, r.threads)):
        plural = "" if threads == 1 else "s"
        parts.append(f"## {isa}, {threads} thread{plural}\n")
        parts.append("".join(f"- {line}\n" for line in limits.get(f"{isa}, {threads}", [])))
        parts.append("| " + " | ".join(COLUMNS) + " |\n|---|--:|--:|--:|---|--:|--:|")
        parts += ["| " + " | ".join(line) + " |" for line in cells(list(group))]
        parts.append("")
    return "\n".join(parts)


def notes(page: Path) -> str:
    """What people have written at the end of an earlier page, from its heading NOTES on."""
    text = page.read_text() if page.exists() else ""
    _, heading, below = text.partition(NOTES)
    return f"\n{heading}{below}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of the ratio over the best peer of each kind, with the goals marked.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  (only this needs it)

    bars: list[Row] = []
    for _, group in by_case(rows):
        bars += [row for row in best(group).values() if row.ratio is not None]
    figure = Figure(figsize=(9, 1.2 + 0.24 * len(bars)), layout="constrained")
    axes: Any = figure.subplots()
    names = [f"{r.case} {r.isa} {r.threads}T, {r.peer}" for r in bars]
    ratios = [r.ratio or 0.0 for r in bars]
    met = [r.goal is None or ratio >= r.goal for r, ratio in zip(bars, ratios, strict=True)]
    axes.barh(range(len(bars)), ratios, color=["#4477aa" if m else "#cc6677" for m in met])
    goals = [(i, r.goal) for i, r in enumerate(bars) if r.goal is not None]
    axes.plot([g for _, g in goals], [i for i, _ in goals], "k|", markersize=9, label="goal")
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(bars)), names, fontsize=7)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlabel("time of the best peer / time of Nybble (above 1: Nybble is faster)")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
