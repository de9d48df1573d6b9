"""How a matrix product is cut for Hopper's ``wgmma``, and what each way costs.

    block    ``rows`` × ``channels`` of the output, by ``groups`` warpgroups of four warps, each
             ``units`` times 64 rows, and a warpgroup that loads
    stage    128 bytes of depth of the block's rows and channels, ``stages`` of them in a ring

The cost, in cycles of the busiest multiprocessor with b blocks, of which r fit side by side:

    busy     b · steps · max(products / rate, bytes of a stage / L2 rate)
    waiting  ceil(b / r) · (latency + steps · max(latency / stages ahead, a step's products))
    cost     max(busy, waiting) + min(busy, waiting) / 8 + epilogue
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from nybble.errors import ScheduleError
from nybble.schedules.cuda.fragments import Packed
from nybble.schedules.cuda.mma_moves import Lines
from nybble.schedules.cuda.mma_plan import CHIPS, EPILOGUE, L2_RATE, LATENCY
from nybble.schedules.kernel import Knobs

ROWS, LINE = 64, 128
"""Rows of an instruction, and bytes of depth of a stage: what a swizzle of 128 bytes covers."""
GROUP = 128  # threads
RATE = 4096  # products of 8 bits in a cycle of a multiprocessor
BARRIERS = 128  # bytes of shared memory

TILES = (
    (2, 2, 128), (2, 1, 192), (2, 1, 128), (2, 1, 64), (1, 2, 128), (1, 1, 192), (1, 1, 128),
    (1, 1, 64),
)  # fmt: skip
"""groups, units, channels: of the latter TVM knows up to 224 for integers."""


@dataclass(frozen=True)
class Plan:
    """One way of cutting; see above."""

    groups: int
    units: int
    channels: int
    stages: int

    @property
    def rows(self) -> int:
        """Of a block."""
        return ROWS * self.groups * self.units

    @property
    def threads(self) -> int:
        """Of a block."""
        return GROUP * (self.groups + 1)

    @property
    def sums(self) -> int:
        """Registers of a lane for sums."""
        return self.units * self.channels // 2

    @property
    def lines(self) -> Lines:
        """The rows' part of a stage."""
        return Lines(self.rows, 1, LINE, GROUP)

    @property
    def stage(self) -> int:
        """Bytes of a stage."""
        return (self.rows + self.channels) * LINE

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        return self.stages * self.stage + BARRIERS

    def refuse(self, packed: Packed) -> str | None:
        """Why it cannot be built, None when it can."""
        if packed.padded % self.channels:
            return f"{packed.padded} channels are no multiple of {self.channels}"
        if self.shared > CHIPS["hopper"].shared:
            return f"{self.shared} bytes of shared memory"
        return None


def cost(plan: Plan, packed: Packed) -> float:
    """Cycles for a layer, as above; a symbolic batch counts as one image."""
    chip, matrix = CHIPS["hopper"], packed.matrix
    blocks = ceil(matrix.static_rows / plan.rows) * (packed.padded // plan.channels)
    steps, turns = ceil(matrix.depth / LINE), ceil(blocks / chip.processors)
    resident = max(1, min(chip.shared // plan.shared, chip.registers // (plan.threads * 168)))
    products = plan.rows * plan.channels * LINE / RATE
    busy = max(products, plan.stage / L2_RATE)
    waiting = LATENCY + steps * max(LATENCY / (plan.stages - 1), products)
    ending = plan.rows * plan.channels * EPILOGUE / 128
    most, least = sorted((turns * steps * busy, ceil(turns / resident) * waiting))[::-1]
    return most + least / 8 + turns * ending


def plan_of(packed: Packed, knobs: Knobs) -> Plan:
    """The plan that the knobs ``tile`` and ``stages`` choose, by default the cheapest.

    Raises:
        ScheduleError: the choices do not go together.
    """
    depths = (2, 3, 4, 5, 6)
    every = [Plan(*tile, stages) for tile in TILES for stages in depths]
    legal = [plan for plan in every if plan.refuse(packed) is None]
    best = min(legal, key=lambda plan: (round(cost(plan, packed), -2), -plan.stages))
    tiles = sorted({TILES.index((p.groups, p.units, p.channels)) for p in legal})
    default = TILES.index((best.groups, best.units, best.channels))
    tile = TILES[knobs.pick("tile", tiles, default)]
    plan = Plan(*tile, knobs.pick("stages", depths, best.stages))
    reason = plan.refuse(packed)
    if reason is not None:
        raise ScheduleError(f"tile {tile}, {plan.stages} stages: {reason}")
    return plan
