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
from functools import lru_cache
from math import ceil

from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.kernel import Knobs

STAGED_BYTES = 24 * 1024  # a task's activations should stay in the first-level cache
STREAM = 1.5 / 64  # cycles for a byte of weights from the second-level cache, one stream
REREAD = 0.6 / 64  # of weights for every tile, where a panel does not stay in the first level
PANEL_BYTES = 16 * 1024
FETCH = 1.0 / 64  # of activations, many streams at once
DECODE = 2 / 32  # of packed weights, when it is decoded
COPY = 2 / 32  # of a staging copy
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


@dataclass(frozen=True)
class Storage:
    """Where a layer's operands come from.

    Attributes:
        staged: activations are copied before they are read.
        packed: weights are decoded before they are read.
    """

    staged: bool
    packed: bool


def vectors_of(geometry: Geometry, dot: Dot) -> int:
    """Vectors of output channels in one group."""
    return ceil(geometry.o / dot.lanes)


def plan_of(geometry: Geometry, dot: Dot, storage: Storage, knobs: Knobs) -> Plan:
    """Asks the knobs for every decision; the defaults come from counting instructions."""
    cost = Cost(geometry, dot, storage)
    tiles, best = _named_tiles(cost)
    tile = tiles[knobs.pick("tile", tuple(tiles), str(best))]
    single = register_tiles(replace(geometry, rows=(1,)), dot)[0]
    parallel = knobs.pick("parallel", (False, True), cost.best(tile, 1)[0] > SERIAL_CYCLES)
    _, (rows, splits) = cost.best(tile, TASKS if parallel else 1)
    task_rows = None
    if geometry.static_rows is not None:
        task_rows = knobs.pick("rows", _row_choices(geometry.static_rows, tile.high), rows)
    splits = knobs.pick("splits", _split_choices(geometry, dot, tile), splits)
    return Plan(tile, single, task_rows, splits, parallel)


@lru_cache(1 << 8)
def _named_tiles(cost: Cost) -> tuple[dict[str, Tile], Tile]:
    """The register tiles by name, and the best one; a search asks again and again."""
    tiles = {str(tile): tile for tile in register_tiles(cost.geometry, cost.dot)}
    return tiles, min(tiles.values(), key=lambda tile: cost.best(tile, 1)[0])


@dataclass(frozen=True)
class Cost:
    """Cycles of one image of a layer, for choosing how to cut it."""

    geometry: Geometry
    dot: Dot
    storage: Storage

    @lru_cache(1 << 10)  # noqa: B019  (its keys are small)
    def best(self, tile: Tile, tasks: int) -> tuple[float, tuple[int, int]]:
        """The cheapest (rows of a task, splits) that make at least ``tasks`` tasks."""
        rows, splits = self.geometry.static_rows, _split_choices(self.geometry, self.dot, tile)
        if rows is None:
            return self.cycles(tile, (tile.high, 1)), (tile.high, 1)
        choices = _row_choices(rows, tile.high)
        enough = [(r, s) for r in choices for s in splits if ceil(rows / r) * s >= tasks]
        cuts = enough or [(choices[0], splits[-1])]
        return min((self.cycles(tile, cut), cut) for cut in cuts)

    def cycles(self, tile: Tile, cut: tuple[int, int]) -> float:
        """With tasks of (rows, splits): tiles and tasks overlap where nothing divides."""
        rows, splits = cut
        runs = ceil((self.geometry.static_rows or 4 * rows) / rows)
        blocks = ceil(vectors_of(self.geometry, self.dot) / tile.vectors)
        passes = ceil(blocks / splits)
        tiles = ceil(rows / tile.high) * ceil(self.geometry.cols / tile.wide)
        computed = passes * splits * tiles * tile_cycles(self.geometry, self.dot, tile)
        return runs * (self.geometry.groups * computed + self._moved(rows, splits, passes))

    def _moved(self, rows: int, splits: int, passes: int) -> float:
        """What the tasks of the same rows spend on copies, decoding and the second-level cache."""
        geometry, dot = self.geometry, self.dot
        bytes_of = {"float32": 4, "int16": 2}.get(dot.x, 1)
        steps = geometry.tap_rows * geometry.tap_cols * geometry.runs(dot.depth)
        vectors = geometry.groups * vectors_of(geometry, dot)
        weights = vectors * steps * dot.lanes * dot.depth * (4 if dot.acc == "float32" else 1)
        columns = geometry.reach if self.storage.staged else max(geometry.width, geometry.cols)
        picture = geometry.rows_read(rows) * columns * geometry.c * bytes_of
        cycles = weights * (DECODE if self.storage.packed else STREAM) + splits * 300
        if self.storage.staged:
            cycles += splits * picture * COPY
        if picture > STAGED_BYTES:
            cycles += splits * passes * picture * FETCH
        return cycles


@lru_cache(1 << 8)
def register_tiles(geometry: Geometry, dot: Dot) -> list[Tile]:
    """The sixteen cheapest register tiles, cheapest first."""
    rows, cost = geometry.static_rows, Cost(geometry, dot, Storage(False, False))
    found: list[tuple[float, Tile]] = []
    for vectors in range(1, min(vectors_of(geometry, dot), dot.registers - 2) + 1):
        # Accumulators that fill the register file would be spilled by the epilogue's constants.
        # Sums in 16 bits live beside products in flight: one more, or LLVM spills in the loop.
        few = min(vectors, 4) + dot.spare + (vectors > 1) * (1 + bool(dot.sums))
        taken = 4 if dot.registers == 32 else few
        room = (dot.registers - taken) // vectors
        for wide in range(1, min(geometry.cols, room) + 1):
            for high in range(1, min(rows or room, room // wide) + 1):
                tile = Tile(high, wide, vectors)
                found.append((cost.cycles(tile, (rows or 4 * high, 1)), tile))
    found.sort()
    return [tile for _, tile in found[:16]]


def tile_cycles(geometry: Geometry, dot: Dot, tile: Tile) -> float:
    """Cycles of one register tile if everything is in the first-level cache."""
    high, wide, vectors = tile.high, tile.wide, tile.vectors
    outputs = high * wide * vectors
    beyond = max(0, outputs + vectors + 1 + dot.spare - dot.registers)  # weights read again
    loads = high * wide + vectors + beyond
    issued = outputs * (1 if dot.cost <= 0.5 else 3 * dot.cost) + loads + 3
    step = max(outputs * dot.cost, loads / 2, dot.latency, issued / 5) + loads / 40
    steps = geometry.tap_rows * geometry.tap_cols * geometry.runs(dot.depth)
    finish = 5 * outputs + 4 * high * wide + 8 * vectors + 20  # stores share lines per pixel
    panel = steps * vectors * dot.lanes * dot.depth * (4 if dot.acc == "float32" else 1)
    again = panel * REREAD if panel > PANEL_BYTES else 0
    return steps * step + finish + again


def _split_choices(geometry: Geometry, dot: Dot, tile: Tile) -> list[int]:
    blocks = ceil(vectors_of(geometry, dot) / tile.vectors)
    return [count for count in range(1, blocks + 1) if count in (1, 2, 4, 8, 16, blocks)]


def _row_choices(rows: int, high: int) -> list[int]:
    """Rows of a task: everything, and each power of two times the tile below that."""
    choices, size = {rows}, high
    while size < rows:
        choices.add(size)
        size *= 2
    choices.update(r for r in range(high, rows) if rows % r == 0)
    return sorted(choices)
