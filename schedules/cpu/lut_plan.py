"""How a look-up layer is cut: register tiles and tasks; all through the knobs.

A tile is ``high × wide`` pixels by ``vectors`` blocks of channels; every pair of block and pixel
has a byte accumulator for each weight plane and each table, and these must stay in registers. The
word sums behind them go to memory where bytes can be summed long enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from nybble.ir import numerics
from nybble.schedules.cpu.blocking import SERIAL_CYCLES, TASKS, Plan, Tile
from nybble.schedules.cpu.epilogue import Scaling
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.lut_scheme import Lookup, pshufb
from nybble.schedules.cpu.lut_stage import Staging
from nybble.schedules.kernel import Knobs, Problem

STAGED_BYTES = 128 * 1024  # tables are read once for each block of channels, from L2 at the latest
WORD_FLUSHES = 256  # bytes of 255 that fit 16 bits when summed
UNROLLED = 4  # groups between two flushes from which the look-ups become a loop


@dataclass(frozen=True)
class Isa:
    """A vector width.

    Attributes:
        name: as in the kernel's name.
        features: CPU features that the code needs.
        lanes: bytes of a vector, which is also the channels of a block.
        registers: vector registers.
        ports: vector instructions in a cycle.
        lookup: looks up in 16 bytes.
        arch: of the machines that have it.
        scaling: of the epilogue, where not as on x86.
        products: whether whole weights of two bits are looked up.
    """

    name: str
    features: tuple[str, ...]
    lanes: int
    registers: int
    ports: float
    lookup: Lookup = pshufb
    arch: str = "x86_64"
    scaling: Scaling | None = None
    products: bool = False


def blocks_of(geometry: Geometry, isa: Isa) -> int:
    """Blocks of output channels in one group; the last one overlaps its predecessor."""
    return ceil(geometry.o / isa.lanes)


def starts_of(geometry: Geometry, isa: Isa) -> list[int]:
    """First channel, within its group, of every block."""
    last = max(geometry.o - isa.lanes, 0)
    return [min(b * isa.lanes, last) for b in range(blocks_of(geometry, isa))]


def plan_of(staging: Staging, isa: Isa, knobs: Knobs) -> Plan:
    """The plan of a look-up layer."""
    alone = replace(staging, geometry=replace(staging.geometry, rows=(1,)))
    row = staging.pitch * staging.scheme.bytes
    tiles = tiles_of(staging, isa), tiles_of(alone, isa)[0][1]
    return cut_plan(staging.geometry, isa, tiles, row, knobs)


def cut_plan(
    geometry: Geometry, isa: Isa, tiles: tuple[list[tuple[float, Tile]], Tile], row: int,
    knobs: Knobs,
) -> Plan:  # fmt: skip
    """Asks the knobs for every decision; the defaults come from counting instructions.

    Args:
        geometry: of the layer.
        isa: the vector width.
        tiles: (register tiles with the cycles for one image, cheapest first; the one for the single
            rows of a symbolic number).
        row: bytes of the staging copy of one input row.
        knobs: the decisions.
    """
    named = {str(tile): (cycles, tile) for cycles, tile in tiles[0]}
    cycles, tile = named[knobs.pick("tile", tuple(named), next(iter(named)))]
    parallel = knobs.pick("parallel", (False, True), cycles > SERIAL_CYCLES)
    rows, task_rows = geometry.static_rows, None
    missing = TASKS if parallel else 1
    if rows is not None:
        wanted = _rows_wanted(geometry, row, rows if not parallel else ceil(rows / TASKS))
        choices = _row_choices(rows, tile.high)
        task_rows = knobs.pick(
            "rows", choices, max(r for r in choices if r <= max(wanted, tile.high))
        )
        missing = missing // ceil(rows / task_rows)
    blocks = ceil(blocks_of(geometry, isa) / tile.vectors)
    counts = [count for count in range(1, blocks + 1) if count in (1, 2, 4, 8, 16, blocks)]
    splits = knobs.pick("splits", counts, max(c for c in counts if c <= max(missing, 1)))
    return Plan(tile, tiles[1], task_rows, splits, parallel)


def tiles_of(staging: Staging, isa: Isa) -> list[tuple[float, Tile]]:
    """The twelve cheapest register tiles with their cycles, cheapest first."""
    geometry, scheme = staging.geometry, staging.scheme
    found = []
    for vectors in range(1, min(blocks_of(geometry, isa), isa.registers) + 1):
        # Indices as loaded and as taken apart, one table, what it gives, and the mask.
        free = isa.registers - 3 - 2 * vectors * scheme.planes
        room = max(free // (vectors * scheme.planes * scheme.tables), vectors == 1)
        for wide in range(1, min(geometry.cols, room) + 1):
            for high in range(1, min(geometry.static_rows or room, room // wide) + 1):
                tile = Tile(high, wide, vectors)
                found.append((_cycles(staging, isa, tile), tile))
    return sorted(found)[:12]


def _cycles(staging: Staging, isa: Isa, tile: Tile) -> float:
    """Cycles for one image without memory's share, from counting instructions."""
    geometry, scheme = staging.geometry, staging.scheme
    pixels = tile.high * tile.wide
    slots = pixels * tile.vectors * scheme.planes * scheme.tables
    columns = tile.vectors * scheme.planes
    spilled = 3 * slots + 2 * columns + 2 > isa.registers  # word sums live in memory
    group = 2 * slots + 1.5 * columns + (6 if spilled else 3) * slots / scheme.flush
    loads = pixels * scheme.tables + columns / 2
    step = max(group / isa.ports, loads / 2, 2)
    groups = geometry.tap_rows * geometry.tap_cols * staging.run
    finish = (5 * slots + 60 * pixels * tile.vectors) / isa.ports + 20
    rows = geometry.static_rows or 4 * tile.high
    tiles = ceil(rows / tile.high) * ceil(geometry.cols / tile.wide)
    blocks = geometry.groups * ceil(blocks_of(geometry, isa) / tile.vectors)
    return tiles * blocks * (groups * step + finish)


def _rows_wanted(geometry: Geometry, row: int, most: int) -> int:
    """Rows of a task whose copy fits, at least twice its halo."""
    halo = geometry.rows_read(1) - geometry.stride[0]
    return min(most, max((STAGED_BYTES // row - halo) // geometry.stride[0], 2 * halo, 1))


def _row_choices(rows: int, high: int) -> list[int]:
    """Rows of a task: everything, and each power of two times the tile below that."""
    choices, size = {rows}, high
    while size < rows:
        choices.add(size)
        size *= 2
    choices.update(r for r in range(high, rows) if rows % r == 0)
    return sorted(choices)


@dataclass(frozen=True)
class Cut:
    """How a run of groups is cut: ``whole`` blocks of ``block`` groups, and ``rest`` groups."""

    block: int
    whole: int
    rest: int


def cut_of(run: int, most: int, unit: int) -> Cut:
    """Blocks as equal as may be, of at most ``most`` groups and a multiple of ``unit``."""
    count = ceil(run / most)
    block = unit * ceil(run / count / unit)
    return Cut(block, run // block, run % block)


def offset(staging: Staging) -> int:
    """What the sum of all look-ups of an output lacks."""
    geometry = staging.geometry
    return staging.scheme.offset(geometry.tap_rows * geometry.tap_cols * staging.run)


def fits_words(problem: Problem, staging: Staging) -> bool:
    """Whether sums, before the bias, fit 16 bits throughout; then `offset` is added to them."""
    assert problem.weights is not None
    dtypes = problem.inputs[0].dtype, problem.weights.dtype
    largest = [max(map(abs, numerics.limits(dtype))) for dtype in dtypes]
    geometry = staging.geometry
    depth = geometry.tap_rows * geometry.tap_cols * geometry.run
    return flushed(staging) <= WORD_FLUSHES and depth * largest[0] * largest[1] < 1 << 15


def flushed(staging: Staging) -> int:
    """How often one output's bytes are added to its word sums."""
    cut = cut_of(staging.run, staging.scheme.flush, 2)
    return staging.geometry.tap_rows * staging.geometry.tap_cols * (cut.whole + (cut.rest > 0))
