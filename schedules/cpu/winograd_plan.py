"""How a Winograd layer is cut: tasks, blocks of channels, groups of tiles; all through the knobs.

parallel task = (image, band of output rows, share of the channel blocks)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

from tvm import tirx

from nybble.schedules.cpu import panels
from nybble.schedules.cpu.blocking import SERIAL_CYCLES
from nybble.schedules.cpu.buffers import Buffers
from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.winograd_range import SPOTS
from nybble.schedules.kernel import Knobs, Problem

TAPS = 9
V_BYTES = 420 * 1024  # the transformed inputs of a task should stay in the second-level cache
# Cycles, fitted to the ratios of 1,049 measured candidates for ResNet-18's layers (AVX2, Sapphire
# Rapids, November 2026), which they predict to 3 % in the median.
INPUT, WEIGHTS, OUTPUT = 60, 37, 100  # of the transforms, for a vector
LOAD, SPOT = 0.3, 18  # of an operand beside the products that wait for it; of a position
TASKS = 4  # every task transforms its inputs and weights: twice as many cost 4 to 10 %
PORTS = 3  # vector instructions in a cycle


@dataclass(frozen=True)
class Cut:
    """The decisions for one kernel.

    Attributes:
        rows: output rows of a task's band.
        splits: tasks that share the channel blocks of a band.
        wide: tiles that are multiplied together.
        vectors: vectors of channels in a block.
        parallel: whether tasks run on several threads.
    """

    rows: int
    splits: int
    wide: int
    vectors: int
    parallel: bool


@dataclass(frozen=True)
class Shape:
    """A layer as the dot product sees it.

    Attributes:
        problem: the layer.
        geometry: of the problem.
        dot: on s16 operands, or on bytes.
    """

    problem: Problem
    geometry: Geometry
    dot: Dot

    @property
    def total(self) -> int:
        """Output rows of an image."""
        return int(self.geometry.static_rows or 2)

    @property
    def across(self) -> int:
        """Tiles in a row; the last one overlaps its predecessor where the width is odd."""
        return ceil(self.geometry.cols / 2)

    @property
    def chunk(self) -> int:
        """Elements of a vector of operands."""
        return self.dot.lanes * self.dot.depth

    @property
    def steps(self) -> int:
        """Dot products over all input channels."""
        return ceil(self.geometry.c / self.dot.depth)

    @property
    def window(self) -> int:
        """Steps that are added up before they are widened."""
        return self.problem.tile_flush if self.dot.sums else self.steps

    @property
    def columns(self) -> int:
        """Vectors of output channels."""
        return ceil(self.geometry.o / self.dot.lanes)

    @property
    def layout(self) -> panels.Panels | None:
        """How the weights of a vector of channels are packed; None for 8 bits."""
        assert self.problem.weights is not None
        length = self.steps * TAPS * self.chunk
        padded = self.geometry.c % self.dot.depth != 0
        return panels.panels_of(self.problem.weights.dtype, length, self.chunk, padded)


@dataclass(frozen=True)
class Layer(Shape):
    """Everything that the emitting functions share.

    Attributes:
        cut: the decisions.
        buffers: the parameters.
    """

    cut: Cut
    buffers: Buffers

    @property
    def tiles(self) -> int:
        """Tiles of a band."""
        return ceil(self.cut.rows / 2) * self.across

    @property
    def groups(self) -> int:
        """Groups of tiles; the last one overlaps its predecessor."""
        return ceil(self.tiles / self.cut.wide)

    @property
    def spot(self) -> int:
        """Elements between two positions of U; without the spare line they would share sets."""
        return self.steps * self.chunk + 4 * self.dot.lanes

    @property
    def held(self) -> str:
        """Dtype of a vector of sums in memory, before the inverse transform."""
        whole = self.dot.sums and self.window >= self.steps
        return self.dot.sums if whole else self.dot.vector

    def first(self, group: Any) -> Any:
        """The first tile of a group."""
        return tirx.min(group * self.cut.wide, self.tiles - self.cut.wide)

    def place(self, tile: Any) -> tuple[Any, Any]:
        """First output row (in the band) and column of a tile."""
        row = tirx.min(tirx.floordiv(tile, self.across) * 2, self.cut.rows - 2)
        return row, tirx.min(tirx.floormod(tile, self.across) * 2, self.geometry.cols - 2)


# ---------------------------------------------------------------- choosing


def cut_of(shape: Shape, knobs: Knobs) -> Cut:
    """Asks the knobs for every decision; the defaults come from counting instructions."""
    whole = _ranked(shape, shape.total, 1)[0][0]
    parallel = knobs.pick("parallel", (False, True), whole > SERIAL_CYCLES)
    rows, splits = _best_cut(shape, parallel)
    rows = knobs.pick("rows", _row_choices(shape.total), rows)
    splits = knobs.pick("splits", _split_choices(shape), splits)
    tiles = {
        f"{wide}x{vectors}": (wide, vectors) for _, (wide, vectors) in _ranked(shape, rows, splits)
    }
    wide, vectors = tiles[knobs.pick("tile", tuple(tiles), next(iter(tiles)))]
    return Cut(rows, splits, wide, vectors, parallel)


@lru_cache(1 << 8)
def _best_cut(shape: Shape, parallel: bool) -> tuple[int, int]:
    """(rows, splits) by default."""
    choices = [rows for rows in _row_choices(shape.total) if _fits(shape, rows)] or [2]
    cuts = [(rows, splits) for rows in choices for splits in _split_choices(shape)]
    enough = [cut for cut in cuts if ceil(shape.total / cut[0]) * cut[1] >= TASKS]
    wanted = (enough or cuts[-1:]) if parallel else cuts
    return min(wanted, key=lambda cut: _ranked(shape, *cut)[0])


def _row_choices(total: int) -> list[int]:
    """Rows of a band: all, or an even number."""
    return sorted({total, *range(2, total, 2)})


def _fits(shape: Shape, rows: int) -> bool:
    """Whether the transformed inputs of a band stay in the second-level cache."""
    held = ceil(rows / 2) * shape.across * SPOTS * shape.geometry.c
    return held * (2 if shape.dot.depth == 2 else 1) <= V_BYTES


def _split_choices(shape: Shape) -> list[int]:
    return [count for count in range(1, shape.columns + 1) if count in (1, 2, 4, 8, shape.columns)]


def _tiles(shape: Shape, rows: int) -> list[tuple[int, int]]:
    """(wide, vectors) whose sums, weights, activations and products fit the registers."""
    most, found = ceil(rows / 2) * shape.across, []
    for vectors in range(1, min(4, shape.columns) + 1):
        room = (shape.dot.registers - vectors - 2) // vectors
        found += [(wide, vectors) for wide in range(1, min(room, most) + 1)]
    return found


@lru_cache(1 << 10)
def _ranked(shape: Shape, rows: int, splits: int) -> list[tuple[float, tuple[int, int]]]:
    """The eight fastest tiles for bands of ``rows`` with their cycles for one image."""
    geometry, dot = shape.geometry, shape.dot
    tiles, bands = ceil(rows / 2) * shape.across, ceil(shape.total / rows)
    pace = dot.paced(max(shape.window, 3)).cost

    def cycles(tile: tuple[int, int]) -> float:
        wide, vectors = tile
        slots, loads = wide * vectors, wide + vectors
        step = max(slots * pace, loads / 2, (slots * PORTS * pace + loads + 3) / 6, dot.latency)
        one = SPOTS * (shape.steps * (step + LOAD * loads) + SPOT) + slots * OUTPUT
        share = ceil(ceil(shape.columns / vectors) / splits)
        each = ceil(tiles / wide) * one + vectors * shape.steps * WEIGHTS
        inputs = ceil(tiles / wide) * wide * ceil(geometry.c / shape.chunk) * INPUT
        return bands * splits * (inputs + share * each)

    return sorted((cycles(tile), tile) for tile in _tiles(shape, rows))[:8]
