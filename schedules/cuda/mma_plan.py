"""How a matrix product is cut into blocks, warps and stages, and what each way costs.

    block    ``rows`` × ``channels`` of the output, all of the depth
    warp     ``warp_rows`` × ``warp_channels`` of it, and every ``slices``-th slab of a stage
    stage    ``slabs`` of depth in shared memory; ``stages`` of them are loaded ahead

Slices: where a layer has too few outputs to fill a GPU with blocks, several warps share one tile
and divide its depth; their sums are added up through shared memory. Unlike a depth divided between
blocks it needs no second kernel and no memory, and the result never depends on an order.

The cost of a layer, in cycles of the busiest multiprocessor with b = ceil(blocks / multiprocessors)
blocks, of which r fit side by side:

    busy     b · max(stages of depth · max(products / rate, shared bytes / 128, global bytes / L2
             rate), epilogue)
    waiting  ceil(b / r) · (latency + stages of depth · max(latency / stages ahead, a warp's work)
             + epilogue)
    cost     max(busy, waiting) + min(busy, waiting) / 8

A warp's own work is a barrier, its loads from shared memory, and its products at a quarter of the
rate, since one of the four schedulers issues them. Nothing overlaps perfectly: hence the eighth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

from nybble.errors import ScheduleError
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.cuda.fragments import Fragments
from nybble.schedules.cuda.matrix import SLAB
from nybble.schedules.cuda.mma_moves import Lines
from nybble.schedules.cuda.tensor_core import CHANNELS, ROWS
from nybble.schedules.kernel import Knobs

LATENCY, NEAR = 700, 40  # cycles to global memory and back, and to shared memory
SHARED_RATE, L2_RATE = 128, 40  # bytes a cycle and multiprocessor
MOST_REGISTERS = 255
EPILOGUE = 9  # instructions for each output, as seen in machine code


@dataclass(frozen=True)
class Chip:
    """What the cost model knows of a generation, from NVIDIA's tuning guides and data sheets.

    Attributes:
        processors: multiprocessors of the common large chip (T4, A100, H100).
        rate: products of 8 bits in a cycle of a multiprocessor, by ``mma``.
        shared: bytes of shared memory that a block can have on every architecture.
        registers: of a multiprocessor.
    """

    processors: int
    rate: int
    shared: int
    registers: int = 65536


CHIPS = {
    "turing": Chip(40, 1024, 64 << 10),
    "ampere": Chip(108, 2048, 99 << 10),
    "hopper": Chip(132, 2560, 227 << 10),
}

Size = tuple[int, int, int, int, int]
TILES: tuple[Size, ...] = (
    (256, 128, 64, 64, 1), (128, 256, 64, 64, 1), (128, 128, 64, 64, 1), (128, 128, 64, 32, 1),
    (128, 128, 32, 64, 1), (128, 64, 64, 32, 1), (64, 128, 32, 64, 1), (64, 64, 32, 32, 1),
    (64, 64, 32, 64, 1), (64, 64, 64, 64, 2), (64, 64, 32, 32, 2), (64, 64, 32, 64, 4),
    (128, 32, 32, 32, 1), (64, 32, 32, 32, 2), (32, 64, 32, 32, 4), (32, 64, 32, 64, 8),
    (32, 32, 32, 32, 4), (32, 32, 32, 32, 8), (16, 64, 16, 64, 4), (16, 64, 16, 64, 8),
    (16, 32, 16, 32, 4), (16, 32, 16, 32, 8), (16, 16, 16, 16, 4), (16, 16, 16, 16, 8),
    (64, 16, 32, 16, 2), (128, 16, 32, 16, 1),
)  # fmt: skip
"""rows, channels, rows of a warp, channels of a warp, slices."""


@dataclass(frozen=True)
class Plan:
    """One way of cutting; see above.

    Attributes:
        held: words of a stage that wait in registers for each word of rows in shared memory: none
            where copies are asynchronous, 1, or 2 where two bytes become one.
    """

    rows: int
    channels: int
    warp_rows: int
    warp_channels: int
    slices: int
    slabs: int
    stages: int
    held: int = 0

    @property
    def size(self) -> Size:
        """One of `TILES`."""
        return self.rows, self.channels, self.warp_rows, self.warp_channels, self.slices

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.rows // self.warp_rows * (self.channels // self.warp_channels) * self.slices

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps

    @property
    def units(self) -> tuple[int, int]:
        """Steps of the tensor cores along a warp's rows and channels."""
        return self.warp_rows // ROWS, self.warp_channels // CHANNELS

    @property
    def sums(self) -> int:
        """Registers of a lane for sums."""
        return self.warp_rows * self.warp_channels // 32

    @property
    def lines(self) -> Lines:
        """The rows' part of a stage."""
        return Lines(self.rows, self.slabs, SLAB, self.threads, self.held)

    def weight_words(self, fragments: Fragments) -> int:
        """Words of a stage for weights."""
        return self.slabs * self.channels * SLAB // 4 // (2 if fragments.unpacks else 1)

    def stage_words(self, fragments: Fragments) -> int:
        """Words of a stage, in all."""
        beside = fragments.beside(self.slabs, self.channels)
        return self.lines.words + self.weight_words(fragments) + beside

    def registers(self, fragments: Fragments) -> int:
        """Of a lane, as seen in machine code: sums, fragments of a slab, addresses, what waits."""
        words = self.stage_words(fragments) + self.lines.words * (self.held - 1)
        waiting = ceil(words / self.threads) if self.held else 0
        return self.sums + self.warp_rows // 2 + self.warp_channels // 2 + 40 + waiting

    def shared(self, fragments: Fragments) -> int:
        """Bytes of shared memory: the stages, or the sums of slices, which come later."""
        stage = 4 * self.stage_words(fragments)
        sums = (self.slices - 1) * self.rows * self.channels * 4
        return max(self.stages * stage, sums)

    def refuse(self, fragments: Fragments, chip: Chip) -> str | None:
        """Why it cannot be built, None when it can."""
        if self.warp_channels % (4 * fragments.lane):
            return f"a warp needs a multiple of {4 * fragments.lane} channels"
        if self.slabs % self.slices:
            return f"{self.slices} slices cannot share {self.slabs} slabs"
        words = self.lines.words, self.weight_words(fragments)
        if any(count % (4 * self.threads) for count in words):
            return "a stage is not a whole number of 16 bytes for every thread"
        if self.registers(fragments) > MOST_REGISTERS:
            return f"{self.registers(fragments)} registers"
        if self.shared(fragments) > chip.shared:
            return f"{self.shared(fragments)} bytes of shared memory, {chip.shared} there are"
        return None


def cost(plan: Plan, fragments: Fragments, chip: Chip, products: int = 1) -> float:
    """Cycles for so many layers at once, as above; a symbolic batch counts as one image."""
    matrix = fragments.matrix
    across = ceil(fragments.padded / plan.channels)
    blocks = products * ceil(matrix.static_rows / plan.rows) * across
    steps, turns = ceil(matrix.slabs / plan.slabs), ceil(blocks / chip.processors)
    resident = max(1, min(
        chip.shared // plan.shared(fragments),
        chip.registers // (plan.threads * plan.registers(fragments)),
        1536 // plan.threads,
    ))  # fmt: skip
    rate = chip.rate * matrix.packing
    tile = plan.warp_rows * plan.warp_channels * plan.slabs * SLAB * matrix.packing
    work = tile * (plan.warps // plan.slices)
    stage = 4 * plan.stage_words(fragments)
    weights = plan.warp_channels * SLAB // (2 if fragments.unpacks else 1)
    reads = plan.warps // plan.slices * plan.slabs * (plan.warp_rows * SLAB + weights)
    busy = max(work / rate, (reads + stage) / SHARED_RATE, stage / L2_RATE)
    own = NEAR + plan.slabs / plan.slices * NEAR + tile / plan.slices / (rate / 4)
    ending = plan.rows * plan.channels * EPILOGUE / 128 + NEAR * plan.slices
    waiting = LATENCY + steps * max(LATENCY / max(plan.stages - 1, 1), own) + ending
    return combined(turns * max(steps * busy, ending), ceil(turns / resident) * waiting)


def combined(busy: float, waiting: float) -> float:
    """What both come to: they overlap, but not perfectly."""
    return max(busy, waiting) + min(busy, waiting) / 8


def every_plan(
    fragments: Fragments, target: CudaTarget, held: int, tiles: Sequence[Size] = TILES
) -> list[Plan]:
    """All that can be built of some tiles; ``held`` is as of `Plan`."""
    depths = (2,) if held else (2, 3, 4, 5)
    cuts = product(tiles, (1, 2, 4, 8), depths)
    every = [Plan(*tile, slabs, stages, held) for tile, slabs, stages in cuts]
    return [plan for plan in every if plan.refuse(fragments, CHIPS[target.generation]) is None]


def plan_of(fragments: Fragments, target: CudaTarget, knobs: Knobs, held: int) -> Plan:
    """The plan that the knobs choose, by default the cheapest.

    Args:
        fragments: the packed layer.
        target: the GPUs.
        knobs: ``tile``, ``slabs`` and ``stages``.
        held: as of `Plan`.

    Raises:
        ScheduleError: the choices do not go together.
    """
    chip, legal = CHIPS[target.generation], every_plan(fragments, target, held)
    best = min(legal, key=lambda plan: (round(cost(plan, fragments, chip), -2), -plan.stages))
    return checked(picked(best, legal, knobs), fragments, chip)


def checked(plan: Plan, fragments: Fragments, chip: Chip) -> Plan:
    """The plan itself.

    Raises:
        ScheduleError: it cannot be built.
    """
    reason = plan.refuse(fragments, chip)
    if reason is not None:
        raise ScheduleError(f"{plan.size}, {plan.slabs} slabs, {plan.stages} stages: {reason}")
    return plan


def picked(best: Plan, legal: Sequence[Plan], knobs: Knobs, tiles: Sequence[Size] = TILES) -> Plan:
    """The plan that the knobs choose among the tiles of legal ones, by default the best."""
    choices = sorted({tiles.index(plan.size) for plan in legal})
    tile = tiles[knobs.pick("tile", choices, tiles.index(best.size))]
    slabs = knobs.pick("slabs", (1, 2, 4, 8), best.slabs)
    depths = (2,) if best.held else (2, 3, 4, 5)
    return Plan(*tile, slabs, knobs.pick("stages", depths, best.stages), best.held)
