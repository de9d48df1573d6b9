"""How a matrix product is cut for Hopper's ``wgmma``, and what each way costs.

An instruction multiplies 64 lines of its first operand by up to 224 lines of its second. The first
are rows, the second channels; or the first are channels, whose weights come from registers, and the
second rows.

    block    ``rows`` × ``channels`` of the output, by ``groups`` warpgroups of four warps, each
             with ``units`` times 64 lines of the first and all ``beside`` of the second operand;
             and a warpgroup that loads
    stage    128 bytes of depth of the block's rows and channels, ``stages`` of them in a ring

The cost is that of `nybble.schedules.cuda.mma_plan`, but the tensor cores read shared memory for
themselves and a step's products are the only work that waits:

    busy     b · max(steps · max(products / rate, bytes of a stage / L2 rate), epilogue)
    waiting  ceil(b / r) · (latency + steps · max(latency / stages ahead, products / rate)
             + epilogue)
    cost     max(busy, waiting) + min(busy, waiting) / 8
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from nybble.errors import ScheduleError
from nybble.schedules.cuda.mma_moves import Lines
from nybble.schedules.cuda.mma_plan import CHIPS, EPILOGUE, L2_RATE, LATENCY, combined
from nybble.schedules.cuda.mma_store import Columns
from nybble.schedules.kernel import Knobs

FIRST, LINE = 64, 128
"""Lines of an instruction's first operand; bytes of depth of a stage, which one swizzle covers."""
GROUP = 128  # threads
RATE = 4096  # products of 8 bits in a cycle of a multiprocessor
BESIDE = 1024 + 128  # bytes of shared memory to begin at a multiple of 1024, and for barriers
Tile = tuple[int, int, int]
"""groups, units, beside: TVM knows instructions of up to 224 for integers."""

ROWS_FIRST: tuple[Tile, ...] = (
    (2, 2, 128), (2, 1, 192), (2, 1, 128), (2, 1, 64), (1, 2, 128), (1, 1, 192), (1, 1, 128),
    (1, 1, 64),
)  # fmt: skip
CHANNELS_FIRST: tuple[Tile, ...] = ((2, 2, 128), (2, 2, 64), (1, 2, 128), (1, 2, 64), (1, 2, 32))


@dataclass(frozen=True)
class Plan:
    """One way of cutting; see above.

    Attributes:
        weight: bytes of depth of a channel in a stage: 128, or 64 for weights of 4 bits, whose
            channels are the first operand.
    """

    groups: int
    units: int
    beside: int
    stages: int
    weight: int = LINE

    @property
    def _lines(self) -> tuple[int, int]:
        """Of the first and the second operand of a block."""
        return FIRST * self.groups * self.units, self.beside

    @property
    def rows(self) -> int:
        """Of a block."""
        return self._lines[self.weight < LINE]

    @property
    def channels(self) -> int:
        """Of a block."""
        return self._lines[self.weight == LINE]

    @property
    def threads(self) -> int:
        """Of a block."""
        return GROUP * (self.groups + 1)

    @property
    def sums(self) -> int:
        """Registers of a lane for sums."""
        return self.units * self.beside // 2

    @property
    def registers(self) -> int:
        """Of a thread at the start; two multiplying warpgroups then take some of the loader's."""
        return 168 if self.groups > 1 else self.sums + 64

    @property
    def lines(self) -> Lines:
        """The rows' part of a stage."""
        return Lines(self.rows, 1, LINE, GROUP)

    @property
    def weights(self) -> int:
        """Bytes of a stage's weights."""
        return self.channels * self.weight

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        return self.stages * (self.rows * LINE + self.weights) + BESIDE

    def refuse(self, packed: Columns) -> str | None:
        """Why it cannot be built, None when it can."""
        if packed.padded % self.channels:
            return f"{packed.padded} channels are no multiple of {self.channels}"
        if self.shared > CHIPS["hopper"].shared:
            return f"{self.shared} bytes of shared memory"
        return None


def cost(plan: Plan, packed: Columns) -> float:
    """Cycles for a layer, as above; a symbolic batch counts as one image."""
    chip, matrix = CHIPS["hopper"], packed.matrix
    blocks = ceil(matrix.static_rows / plan.rows) * (packed.padded // plan.channels)
    steps, turns = ceil(matrix.depth / LINE), ceil(blocks / chip.processors)
    resident = max(
        1, min(chip.shared // plan.shared, chip.registers // (plan.threads * plan.registers))
    )
    products = plan.rows * plan.channels * LINE / RATE
    busy = max(products, (plan.rows * LINE + plan.weights) / L2_RATE)
    ending = plan.rows * plan.channels * EPILOGUE / 128
    waiting = LATENCY + steps * max(LATENCY / (plan.stages - 1), products) + ending
    return combined(turns * max(steps * busy, ending), ceil(turns / resident) * waiting)


def plan_of(packed: Columns, tiles: tuple[Tile, ...], weight: int, knobs: Knobs) -> Plan:
    """The plan that the knobs ``tile`` and ``stages`` choose, by default the cheapest.

    Args:
        packed: the packed layer.
        tiles: to choose from.
        weight: as of `Plan`.
        knobs: the choices.

    Raises:
        ScheduleError: the choices do not go together.
    """
    depths = (2, 3, 4, 5, 6)
    every = [Plan(*tile, stages, weight) for tile in tiles for stages in depths]
    legal = [plan for plan in every if plan.refuse(packed) is None]
    best = min(legal, key=lambda plan: (round(cost(plan, packed), -2), -plan.stages))
    allowed = sorted({tiles.index((p.groups, p.units, p.beside)) for p in legal})
    default = tiles.index((best.groups, best.units, best.beside))
    tile = tiles[knobs.pick("tile", allowed, default)]
    plan = Plan(*tile, knobs.pick("stages", depths, best.stages), weight)
    reason = plan.refuse(packed)
    if reason is not None:
        raise ScheduleError(f"tile {tile}, {plan.stages} stages: {reason}")
    return plan
