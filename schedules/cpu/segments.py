"""How a layer's rows become tasks: all alike, or full tiles and the single rows that remain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from tvm import tirx

from nybble.schedules.cpu.blocking import Plan, Tile


@dataclass(frozen=True)
class Segment:
    """Tasks of the same shape: ``count`` runs of ``rows`` output rows, cut into ``tile``s."""

    tile: Tile
    rows: int
    count: Any
    first: Callable[[Any], Any]


def segments(plan: Plan, rows: Any) -> Iterator[Segment]:
    """All rows; a symbolic number of rows is cut into full tiles and single rows."""
    if plan.rows is not None:
        last = rows - plan.rows
        size = plan.rows
        yield Segment(plan.tile, size, ceil(rows / size), lambda i: tirx.min(i * size, last))
        return
    high = plan.tile.high
    full = tirx.floordiv(rows, high)
    yield Segment(plan.tile, high, full, lambda i: i * high)
    if high > 1:
        yield Segment(plan.single, 1, rows - full * high, lambda i: full * high + i)
