"""How the kernels were chosen: each measured layer beside its 8-bit and its float form."""

from __future__ import annotations

from collections.abc import Sequence

from nybble.report import units
from nybble.report.data import LayerRow

COLUMNS = ("layer", "widths", "kernel", "weights", "time", "limit", "8-bit", "float", "of")


def cells(rows: Sequence[LayerRow]) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for every layer whose candidates were measured.

    ``limit`` is the share of the machine's multiply-adds that the kernel reaches (table and bit
    kernels, which do not multiply, may pass 100 %); ``of`` counts the candidates. ``8-bit`` and
    ``float`` are the times of the best such kernel for the same layer, in multiples of the chosen
    one's: above 1 the chosen one is faster.
    """
    return [_cells(row) for row in rows if row.chosen is not None]


def _cells(row: LayerRow) -> tuple[str, ...]:
    assert row.chosen is not None
    seconds = row.chosen["seconds"]

    def against(weights: str) -> str:
        other = row.best(weights)
        return f"{other['seconds'] / seconds:.2f}x" if other else units.NONE

    rivals = sum(timed["weights"] != "float32" for timed in row.timed)
    return (
        row.name, row.widths, row.kernel, units.size(row.size), units.duration(seconds),
        units.NONE if row.share is None else f"{100 * row.share:.0f} %",
        against("int8"), against("float32"), str(rivals),
    )  # fmt: skip
