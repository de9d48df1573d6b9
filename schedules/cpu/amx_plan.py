"""How a layer is laid on AMX tiles: 16 rows of pixels by 16 channels, 64 bytes deep.

A block is ``high × wide`` tiles of pixels by ``vectors`` tiles of channels:

            b0       b1            every step loads the tiles of activations and of weights and does
    a0   acc[0,0] acc[0,1]         high·wide·vectors products of tiles; a product takes as many
    a1   acc[1,0] acc[1,1]         cycles as its tile of activations has rows

The pixels of a tile lie at one step in memory: neighbours in an image's row, or, in a matrix
product, any neighbours. So a line of 196 pixels is 14 tiles of 14 rows; no tile is partial, and
the last ones may overlap their predecessors. The bytes of a run are shared out evenly as well: 96
of them are two steps of 48.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from nybble.schedules.cpu.blocking import SERIAL_CYCLES
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.kernel import Knobs

ROWS = 16  # of a tile
NARROW = 12  # pixels across, below which rows are joined
DEPTH = 64  # bytes in a row of a tile
LANES = 16  # channels of a tile of weights
REGISTERS = 8
LATENCY = 52  # cycles from one product to the next on the same accumulators
NEAR_BYTES = 32 * 1024  # most of the first-level cache
FAR_BYTES = 1 << 20  # weights beyond this do not stay in the second-level cache
STAGED_BYTES = 1 << 18
TASKS = 4  # enough for a few threads; each one stages and reads all that it needs anew
AHEAD = 8  # steps
FINISH = 5  # cycles of the epilogue for a vector
LINE = 8  # cycles for writing to a line of the output


@dataclass(frozen=True, order=True)
class Block:
    """Tiles that are accumulated together."""

    high: int
    wide: int
    vectors: int

    def __str__(self) -> str:
        return f"{self.high}x{self.wide}x{self.vectors}"


@dataclass(frozen=True)
class Depth:
    """The reduction: ``taps`` runs of ``count`` steps of ``size`` bytes."""

    taps: int
    count: int
    size: int

    @property
    def steps(self) -> int:
        """Products of tiles behind one tile of outputs."""
        return self.taps * self.count

    @property
    def operand(self) -> int:
        """Bytes of one tile of weights."""
        return self.size * LANES


@dataclass(frozen=True)
class Plan:
    """The decisions for one kernel.

    Attributes:
        block: tiles accumulated together.
        tall: rows of a tile of activations.
        rows: rows of the geometry in a task.
        splits: tasks that share the channels of the same rows.
        parallel: whether tasks run on several threads.
        ahead: steps between the weights that are read and those that are prefetched; 0 for none.
    """

    block: Block
    tall: int
    rows: int
    splits: int
    parallel: bool
    ahead: int


def is_product(geometry: Geometry) -> bool:
    """Whether the geometry's rows are pixels that follow each other in memory."""
    return geometry.width == geometry.cols == geometry.tap_rows == geometry.tap_cols == 1


def depth_of(geometry: Geometry) -> Depth:
    """How runs are cut into steps; the last one may go beyond the run."""
    count = ceil(geometry.run / DEPTH)
    size = 4 * ceil(geometry.run / (4 * count))
    return Depth(geometry.tap_rows * geometry.tap_cols, count, size)


def is_folded(geometry: Geometry) -> bool:
    """Whether rows are so short that tasks read planes (`nybble.schedules.cpu.amx_stage`)."""
    is_small = geometry.cols <= NARROW and (geometry.static_rows or 0) > 1
    return is_small and geometry.groups == 1 and not is_product(geometry)


def lines_of(geometry: Geometry, rows: int) -> tuple[int, int]:
    """(lines, pixels of a line) of ``rows`` rows."""
    if is_product(geometry) or is_folded(geometry):
        return 1, rows * geometry.cols
    return rows, geometry.cols


def tall_of(pixels: int, wide: int) -> int:
    """Rows of each tile when a line is cut into blocks of ``wide`` tiles."""
    return ceil(pixels / (ceil(pixels / (ROWS * wide)) * wide))


def vectors_of(geometry: Geometry) -> int:
    """Tiles of output channels."""
    return ceil(geometry.o / LANES)


def plan_of(geometry: Geometry, staged: bool, packed: bool, knobs: Knobs) -> Plan:
    """Asks the knobs for every decision; the geometry's rows are static.

    Args:
        geometry: of the layer, as `nybble.schedules.cpu.amx_stage.laid_out` gives it.
        staged: whether tasks read a copy of their input.
        packed: whether every task decodes the weights that it reads.
        knobs: the decisions.
    """
    all_rows = geometry.static_rows
    assert all_rows is not None
    found = sorted((cycles(geometry, all_rows, block), block) for block in _blocks(geometry))
    blocks = {str(block): block for _, block in found[:12]}
    block = blocks[knobs.pick("block", tuple(blocks), next(iter(blocks)))]
    parallel = knobs.pick("parallel", (False, True), found[0][0] > SERIAL_CYCLES)
    missing = TASKS if parallel else 1
    chunks = ceil(vectors_of(geometry) / block.vectors)
    shared = packed or weight_bytes(geometry) > geometry.height * geometry.width * geometry.c
    most = ceil(all_rows / (ceil(missing / chunks) if shared else missing))
    rows_choices = _row_choices(geometry, all_rows, block)
    wanted = _rows_wanted(geometry, block, most, _room(geometry, staged, packed, block))
    fitting = [r for r in rows_choices if r <= wanted] or [min(rows_choices)]
    best = min(fitting, key=lambda r: (_cut(geometry, all_rows, r, block), -r))
    rows = knobs.pick("rows", rows_choices, best)
    counts = [count for count in range(1, chunks + 1) if count in (1, 2, 4, 8, 16, chunks)]
    rest = max(missing // ceil(all_rows / rows), 1)
    splits = knobs.pick("splits", counts, max(c for c in counts if c <= rest))
    tall = tall_of(lines_of(geometry, rows)[1], block.wide)
    ahead = knobs.pick("ahead", (0, AHEAD), AHEAD if weight_bytes(geometry) >= FAR_BYTES else 0)
    return Plan(block, tall, rows, splits, parallel, ahead)


def weight_bytes(geometry: Geometry) -> int:
    """Bytes of the decoded weights."""
    depth = depth_of(geometry)
    return vectors_of(geometry) * depth.steps * depth.operand


def _room(geometry: Geometry, staged: bool, packed: bool, block: Block) -> int:
    """Bytes of activations that a task may read.

    Within a task every block of weights meets all pixels. That reads (and decodes) weights once;
    but where a block of plain weights is too big for the first-level cache, and all of them fit
    the second, the activations of a task should be what stays in the first.
    """
    depth = depth_of(geometry)
    near = block.vectors * depth.steps * depth.operand
    if not packed and near > NEAR_BYTES and weight_bytes(geometry) < FAR_BYTES:
        return NEAR_BYTES
    return STAGED_BYTES if staged else FAR_BYTES


def _rows_wanted(geometry: Geometry, block: Block, most: int, room: int) -> int:
    """Rows of a task whose activations have room, ``most`` at most."""
    row = geometry.c if is_product(geometry) else geometry.reach * geometry.c
    halo = geometry.rows_read(1) - geometry.stride[0]
    return min(most, max((room // row - halo) // geometry.stride[0], block.high))


def _cut(geometry: Geometry, all_rows: int, rows: int, block: Block) -> int:
    """Cycles of all products of one step and one tile of channels, for tasks of ``rows`` rows."""
    lines, pixels = lines_of(geometry, rows)
    tall = tall_of(pixels, block.wide)
    tiles = ceil(pixels / (tall * block.wide)) * block.wide * ceil(lines / block.high) * block.high
    return ceil(all_rows / rows) * tiles * (tall + 4)


def _row_choices(geometry: Geometry, rows: int, block: Block) -> tuple[int, ...]:
    """Rows of a task: even shares of all rows, each of at least a tile or the lines of a block."""
    least = block.high
    if is_product(geometry) or is_folded(geometry):
        least = min(ceil(ROWS / geometry.cols), rows)
    shares = {ceil(rows / count) for count in range(1, rows + 1)}
    return tuple(sorted(share for share in shares if share >= least))


def _blocks(geometry: Geometry) -> Iterator[Block]:
    """The blocks whose tiles fit the eight registers."""
    rows = geometry.static_rows
    assert rows is not None
    lines, pixels = lines_of(geometry, rows)
    for vectors in (v for v in (1, 2, 4) if v <= vectors_of(geometry)):  # outputs pack by fours
        for wide in range(1, min(ceil(pixels / ROWS), 6) + 1):
            for high in range(1, min(lines, 6) + 1):
                tiles = high * wide
                if tiles * vectors + min(tiles, vectors) + 1 <= REGISTERS:
                    yield Block(high, wide, vectors)


def cycles(geometry: Geometry, rows: int, block: Block) -> float:
    """Cycles for one image."""
    lines, pixels = lines_of(geometry, rows)
    depth, tiles = depth_of(geometry), block.high * block.wide
    tall = tall_of(pixels, block.wide)
    count = ceil(pixels / (tall * block.wide)) * ceil(lines / block.high)
    count *= ceil(vectors_of(geometry) / block.vectors)
    near = block.vectors * depth.steps * depth.operand < NEAR_BYTES
    loads = tiles * (4 + tall / 2) + block.vectors * (4 + depth.size / 8) * (1 if near else 2)
    step = max(tiles * block.vectors * (tall + 4) + loads, LATENCY)
    finish = tiles * tall * (FINISH * block.vectors + LINE * ceil(block.vectors / 4))
    return count * (depth.steps * step + finish + 100)
