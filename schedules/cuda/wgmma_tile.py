"""What a warpgroup multiplies: products of 64 lines by up to 224, sums in registers."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.fragments import BLOCK, unpacked
from nybble.schedules.cuda.mma_moves import divmod_of, ramp, run
from nybble.schedules.cuda.mma_tile import LANES, Columns, Tile
from nybble.schedules.cuda.wgmma_pack import Halves, Panels
from nybble.schedules.cuda.wgmma_plan import FIRST, LINE, Plan
from nybble.schedules.cuda.wgmma_ring import Ring

STEPS = LINE // 32  # of the tensor cores in a stage
SWIZZLE = 3  # CUtensorMapSwizzle of 128 bytes
WORDS = LINE // 4


class Warpgroup(Tile):
    """A warp's sums, a quarter of its warpgroup's.

    Args:
        packed: the packed layer.
        plan: how it is cut.
        thread: of the block.
        types: of the first and the second operand, as PTX spells them.
    """

    def __init__(self, packed: Panels, plan: Plan, thread: Any, types: tuple[str, str]):
        self.plan, self.fragments, self.reach = plan, packed, plan.channels
        self.name = f"wgmma.mma_async.sync.aligned.m64n{plan.beside}k32.s32.{'.'.join(types)}"
        warp, lane = divmod_of(thread, LANES)
        self.lane = T.Bind(lane)
        self.group, self.inside = map(T.Bind, divmod_of(warp, 4))
        self.acc, self.sums = (
            T.alloc_buffer((plan.sums,), "uint32", scope="local", layout=None) for _ in range(2)
        )

    def start(self) -> None:
        """Emits sums of 0."""
        with T.unroll(self.plan.sums) as i:
            T.buffer_store(self.acc, T.uint32(0), [i])

    def product(self, unit: int, first: list[Any], second: Any) -> None:
        """Emits one instruction; the first operand is a descriptor or four registers."""
        each = self.plan.beside // 2
        sums = [self.acc[unit * each + i] for i in range(each)]
        T.evaluate(script.ptx[self.name](*sums, *first, second, tirx.const(True, "bool")))

    def finish(self) -> None:
        """Emits the wait for all products."""
        wait(0)
        for i in range(self.plan.sums):  # in order behind the wait, which a plain copy is not
            T.evaluate(script.ptx["mov.b32"](self.sums[i], self.acc[i]))


class RowsFirst(Warpgroup, Columns):
    """Rows and channels from shared memory: ``4·units`` instructions a step.

    The products of a step run while the next one's are started; then its stage is told empty.
    """

    def multiply(self, ring: Ring) -> None:
        """Emits the loop over the depth."""
        self.width = self.plan.channels
        first = T.Bind(self.group * (FIRST * self.plan.units))
        here = T.Bind(first + self.inside * 16), tirx.const(0, "int32")
        self.hold(self.fragments, self.lane, here, FIRST)
        self.start()
        with T.serial(ring.steps) as step:
            stage = ring.wait_full(step)
            fence()
            rows = stage * self.plan.lines.words + first * WORDS
            for piece in range(STEPS):
                for unit in range(self.plan.units):
                    a = descriptor(ring.tile[rows + unit * FIRST * WORDS + piece * 8])
                    b = descriptor(ring.tile[ring.weights(stage) + piece * 8])
                    self.product(unit, [a], b)
            commit()
            wait(1)
            with T.If(step > 0), T.Then():
                ring.tell_empty(T.Bind(step - 1))
        self.finish()


class ChannelsFirst(Warpgroup):
    """Channels of 4 bits from registers, rows from shared memory.

    A step's weights are loaded while the products of the one before run, and unpacked behind them:
    12 shifts and masks for 64 channels and 32 bytes of depth of a warpgroup. Meanwhile the other
    warpgroup, or another block, has the tensor cores.
    """

    fragments: Halves

    def at(self, row: int, channel: int) -> int:
        """The register with the sum of the lane's nth row and channel."""
        unit, half = divmod(channel, 2)
        return unit * (self.plan.beside // 2) + row // 2 * 4 + half * 2 + row % 2

    def multiply(self, ring: Ring) -> None:
        """Emits the loop over the depth."""
        units, (g, t) = self.plan.units, divmod_of(self.lane, 4)
        self.warp = T.Bind(self.group * 4 + self.inside)
        self.origin = T.Bind(t * 2), T.Bind(self.warp * (16 * units) + g * (2 * units))
        self.rows = [column * 8 + i for column in range(self.plan.beside // 8) for i in (0, 1)]
        self.groups = 1
        held = T.alloc_buffer((units * 8,), "uint32", scope="local", layout=None)
        a = T.alloc_buffer((units * STEPS * 4,), "uint32", scope="local", layout=None)
        self.start()
        with T.serial(ring.steps) as step:
            stage = ring.wait_full(step)
            self._load(held, ring, stage)
            wait(0)
            with T.If(step > 0), T.Then():
                ring.tell_empty(T.Bind(step - 1))
            self._unpack(a, held)
            fence()
            for piece in range(STEPS):
                b = descriptor(ring.tile[stage * self.plan.lines.words + piece * 8])
                for unit in range(units):
                    first = (unit * STEPS + piece) * 4
                    self.product(unit, [a[first + i] for i in range(4)], b)
            commit()
        self.finish()

    def _load(self, held: Any, ring: Ring, stage: Any) -> None:
        """Two blocks for each unit."""
        start = ring.weights(stage) + self.warp * (self.plan.units * 2 * BLOCK // 4)
        at = T.Bind(start + self.lane * 4)
        for block in range(2 * self.plan.units):
            value = run(ring.tile, at + block * (BLOCK // 4), 4)
            T.buffer_store(held, value, ramp(block * 4, 4))

    def _unpack(self, a: Any, held: Any) -> None:
        for unit in range(self.plan.units):
            for piece in range(STEPS):
                slab, step = divmod(piece, 2)
                for half in (0, 1):  # channels g and g + 8
                    word = held[(unit * 2 + slab) * 4 + half * 2 + step]
                    for upper, value in enumerate(unpacked(word)):
                        at = (unit * STEPS + piece) * 4 + half + 2 * upper
                        T.buffer_store(a, value, [at])


def descriptor(start: Any) -> Any:
    """Emits what says where lines of 128 swizzled bytes begin, eight in every 1024."""
    made = T.alloc_buffer((1,), "uint64", scope="local", layout=None)
    encode = script.cuda.wgmma.encode_matrix_descriptor
    T.evaluate(encode(T.address_of(made[0]), T.address_of(start), 1, 8 * LINE // 16, SWIZZLE))
    return made[0]


def fence() -> None:
    """Emits that registers written so far are seen by the products that follow."""
    T.evaluate(script.ptx["wgmma.fence.sync.aligned"]())


def commit() -> None:
    """Emits the end of a group of products."""
    T.evaluate(script.ptx["wgmma.commit_group.sync.aligned"]())


def wait(left: int) -> None:
    """Emits the wait for all groups of products but the last ``left``."""
    T.evaluate(script.ptx["wgmma.wait_group.sync.aligned"](left))
