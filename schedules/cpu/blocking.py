"""How a layer is cut: register tiles, tasks of rows, splits of channels; all through the knobs.

A register tile is ``high × wide`` outputs by ``vectors`` of channels:

            w0       w1            every step reads high·wide broadcasts and ``vectors`` weight
    x0   acc[0,0] acc[0,1]         vectors and does high·wide·vectors dot products; the last tile
    x1   acc[1,0] acc[1,1]         of a row, and the last block of channels, overlap their
    ...                            predecessor, so no tile is partial

A task is a run of rows (with its own staging copy) times a run of channel blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.kernel import Knobs

STAGED_BYTES = 24 * 1024  # a task's staging copy should stay in the first-level cache
TASKS = 8  # enough to keep a few threads evenly busy
SERIAL_CYCLES = 100_000  # a parallel launch costs 13-18 µs; below ~40 µs of work it does not pay


@dataclass(frozen=True, order=True)
class Tile:
    """A register tile: ``high × wide`` outputs of ``vectors`` vectors of channels."""

    high: int
    wide: int
    vectors: int

    def __str__(self) -> str:
        return f"{self.high}x{self.wide}x{self.vectors}"


@dataclass(frozen=True)
class Plan:
    """The decisions for one kernel.

    Attributes:
        tile: the register tile.
        single: the tile for the single rows that remain of a symbolic number of rows.
        rows: output rows of a task; None when the number of rows is symbolic.
        splits: tasks that share the channel blocks of the same rows.
        parallel: whether tasks run on several threads.
    """

    tile: Tile
    single: Tile
    rows: int | None
    splits: int
    parallel: bool


def vectors_of(geometry: Geometry, dot: Dot) -> int:
    """Vectors of output channels in one group."""
    return ceil(geometry.o / dot.lanes)


def plan_of(geometry: Geometry, dot: Dot, staged: bool, knobs: Knobs) -> Plan:
    """Asks the knobs for every decision; the defaults come from counting instructions."""
    tiles = {str(tile): tile for tile in register_tiles(geometry, dot)}
    tile = tiles[knobs.pick("tile", tuple(tiles), next(iter(tiles)))]
    single = register_tiles(replace(geometry, rows=(1,)), dot)[0]
    blocks = ceil(vectors_of(geometry, dot) / tile.vectors)
    parallel = knobs.pick("parallel", (False, True), _cycles(geometry, dot, tile) > SERIAL_CYCLES)
    rows, task_rows = geometry.static_rows, None
    missing = TASKS if parallel else 1
    if rows is not None:
        wanted = _rows_wanted(geometry, dot, staged, rows if not parallel else ceil(rows / TASKS))
        choices = _row_choices(rows, tile.high)
        task_rows = knobs.pick(
            "rows", choices, max(r for r in choices if r <= max(wanted, tile.high))
        )
        missing = missing // ceil(rows / task_rows)
    counts = [count for count in range(1, blocks + 1) if count in (1, 2, 4, 8, 16, blocks)]
    splits = knobs.pick("splits", counts, max(c for c in counts if c <= max(missing, 1)))
    return Plan(tile, single, task_rows, splits, parallel)


def _rows_wanted(geometry: Geometry, dot: Dot, staged: bool, most: int) -> int:
    """Rows of a task whose staging copy fits; without a copy, as many as there may be."""
    if not staged:
        return most
    element = {"float32": 4, "int16": 2}.get(dot.x, 1)
    halo = geometry.rows_read(1) - geometry.stride[0]
    row = geometry.reach * geometry.c * element
    weights = geometry.groups * geometry.o * geometry.tap_rows * geometry.tap_cols * geometry.run
    room = max(STAGED_BYTES, weights // 16)  # every task reads all weights: big ones less often
    return min(most, (room // row - halo) // geometry.stride[0])


def register_tiles(geometry: Geometry, dot: Dot) -> list[Tile]:
    """The sixteen cheapest register tiles, cheapest first."""
    rows = geometry.static_rows
    found: list[tuple[float, Tile]] = []
    for vectors in range(1, min(vectors_of(geometry, dot), dot.registers - 2) + 1):
        # Accumulators that fill the register file would be spilled by the epilogue's constants.
        few = min(vectors, 4) + dot.spare + (vectors > 1)
        taken = 4 if dot.registers == 32 else few
        room = (dot.registers - taken) // vectors
        for wide in range(1, min(geometry.cols, room) + 1):
            for high in range(1, min(rows or room, room // wide) + 1):
                tile = Tile(high, wide, vectors)
                found.append((_cycles(geometry, dot, tile), tile))
    found.sort()
    return [tile for _, tile in found[:16]]


def _cycles(geometry: Geometry, dot: Dot, tile: Tile) -> float:
    """Cycles for one image if everything were in the first-level cache."""
    high, wide, vectors = tile.high, tile.wide, tile.vectors
    rows = geometry.static_rows or 4 * high
    tiles = ceil(rows / high) * ceil(geometry.cols / wide)
    blocks = geometry.groups * ceil(vectors_of(geometry, dot) / vectors)
    outputs = high * wide * vectors
    fold = outputs + high * wide + (0 if high * wide > 1 else vectors)
    beyond = max(0, outputs + vectors + 1 + dot.spare - dot.registers)  # weights read again
    loads = (high * wide + vectors + beyond) / 2
    step = max(outputs * dot.cost, loads, dot.latency, fold / 6)
    steps = geometry.tap_rows * geometry.tap_cols * geometry.runs(dot.depth)
    finish = 7 * outputs + 4 * high * wide + 8 * vectors + 20  # stores share lines per pixel
    return tiles * blocks * (steps * step + finish)


def _row_choices(rows: int, high: int) -> list[int]:
    """Rows of a task: everything, and each power of two times the tile below that."""
    choices, size = {rows}, high
    while size < rows:
        choices.add(size)
        size *= 2
    choices.update(r for r in range(high, rows) if rows % r == 0)
    return sorted(choices)
