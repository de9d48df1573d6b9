"""Where kernels' decisions are from: recorded for the layer or for the nearest one, or defaults."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nybble.report import parts, units
from nybble.report.data import LayerRow

COLUMNS = ("layer", "kernel", "decisions from", "ratio", "noise", "threads", "decisions")
NOTE = (
    "Ratio: the time with these decisions by that of the layer's default kernel with default "
    "decisions, as recorded; below 1 is faster. Exact: recorded for this very layer on such a "
    "machine. Nearest: for a layer like it, so the ratio is that layer's."
)


def cells(rows: Sequence[LayerRow]) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for every layer; none at all where no layer has recorded decisions."""
    return [_cells(row) for row in rows] if any(row.tuned for row in rows) else []


def section(found: Sequence[Sequence[str]]) -> str:
    """A part of a page; nothing without rows.

    Args:
        found: from `cells`.
    """
    if not found:
        return ""
    order = (0, 1, 2, 6, 3, 4, 5)  # numbers at the end
    rows = [tuple(escape(row[i]) for i in order) for row in found]
    table = parts.table([COLUMNS[i] for i in order], rows, 3)
    return parts.section("Decisions of the kernels", table, NOTE)


def _cells(row: LayerRow) -> tuple[str, ...]:
    tuned = row.tuned
    if tuned is None:
        return (row.name, row.kernel, "default", *[units.NONE] * 4)
    decisions = ", ".join(f"{name}={value}" for name, value in tuned["decisions"].items())
    source = "exact" if tuned["kind"] == "exact" else f"nearest: {tuned['layer']}"
    numbers = (f"{tuned['ratio']:.2f}", f"{100 * tuned['noise']:.0f} %", str(tuned["threads"]))
    return (row.name, row.kernel, source, *numbers, decisions or "the defaults")
