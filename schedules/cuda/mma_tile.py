"""A warp's part of a block: fragments from shared memory, products, sums of slices.

For a slab of depth and a tile of R × C a warp issues, with u = 1, or 4 on Turing:

    R / 16 · C / 8 · 2 · u    products (IMMA)
    R / 16 · 2                loads of 16 rows × 32 bytes (LDSM.16.M88.4)
    C / 8                     loads of packed weights (LDS.128); C / 16 if they have 4 bits
    C / 8 · 2 · 3             shifts and masks where 4-bit weights are unpacked; · 7 of two levels

so a tile of 64 × 64 does 8 products for each load and at most 0.75 instructions of unpacking.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.fragments import BLOCK, Fragments, Packed
from nybble.schedules.cuda.matrix import SLAB
from nybble.schedules.cuda.mma_moves import divmod_of, ramp, run
from nybble.schedules.cuda.mma_plan import Plan
from nybble.schedules.cuda.tensor_core import CHANNELS, ROWS, TensorCore, load_rows

LANES = 32


class Tile:
    """A warp's sums, as the epilogue sees them.

    Attributes:
        fragments: the packed layer.
        origin: the lane's first row and channel, in the block.
        rows: of the lane's sums, from the first one on.
        groups: how often ``4·fragments.lane`` channels follow one another.
        reach: channels of the block.
        sums: registers.
    """

    fragments: Packed
    origin: tuple[Any, Any]
    rows: list[int]
    groups: int
    reach: int
    sums: Any

    def at(self, row: int, channel: int) -> int:
        """The register with the sum of the lane's nth row and channel."""
        raise NotImplementedError


class Columns(Tile):
    """Sums with channels as columns: ``[row / 2][channels of 8][row % 2][2]``."""

    width: int  # channels of a warp

    def hold(self, fragments: Packed, lane: Any, first: tuple[Any, Any], unit: int) -> None:
        """Sets what follows from the lane, and the warp's first row and channel.

        Args:
            fragments: the packed layer.
            lane: of the warp.
            first: the warp's first row and channel, in the block.
            unit: rows from one 16 of the warp to the next.
        """
        row, column = divmod_of(lane, 4)
        self.fragments, self.groups = fragments, self.width // (4 * fragments.lane)
        self.origin = T.Bind(first[0] + row), T.Bind(first[1] + column * fragments.lane)
        units = int(self.sums.shape[0]) * 2 // self.width
        self.rows = [n * unit + half * 8 for n in range(units) for half in (0, 1)]

    def at(self, row: int, channel: int) -> int:
        """The register with the sum of the lane's nth row and channel."""
        line = row // 2 * (self.width // CHANNELS) + channel // 2
        return line * 4 + row % 2 * 2 + channel % 2


class WarpTile(Columns):
    """The sums of one warp by ``mma``.

    Args:
        fragments: the packed layer.
        plan: how it is cut.
        core: the instructions.
        tile: shared memory, in words.
        thread: of the block.
    """

    def __init__(
        self, fragments: Fragments, plan: Plan, core: TensorCore, tile: Any, thread: Any
    ):  # fmt: skip
        self.plan, self.packed, self.core, self.tile = plan, fragments, core, tile
        warp, lane = divmod_of(thread, LANES)
        self.lane, across = T.Bind(lane), plan.channels // plan.warp_channels
        self.slice, self.warp = map(T.Bind, divmod_of(warp, plan.warps // plan.slices))
        down, beside = divmod_of(self.warp, across)
        self.row, self.channel = T.Bind(down * plan.warp_rows), T.Bind(beside * plan.warp_channels)
        row, half = tirx.bitwise_and(self.lane, ROWS - 1), self.lane >> 4
        self._places = [T.Bind(plan.lines.place(row, row, half + 2 * step)) for step in (0, 1)]
        self.width, self.reach = plan.warp_channels, plan.channels
        self.sums = T.alloc_buffer((plan.sums,), "uint32", scope="local", layout=None)
        self.hold(fragments, self.lane, (self.row, self.channel), ROWS)
        with T.unroll(plan.sums) as i:
            T.buffer_store(self.sums, T.uint32(0), [i])

    def multiply(self, stage: Any) -> None:
        """Emits the products of a stage."""
        units = self.plan.units
        a = T.alloc_buffer((2 * units[0] * 4,), "uint32", scope="local", layout=None)
        b = T.alloc_buffer((2 * units[1] * 2,), "uint32", scope="local", layout=None)
        for part in range(self.plan.slabs // self.plan.slices):
            slab = T.Bind(stage * self.plan.slabs + part * self.plan.slices + self.slice)
            self._load_weights(b, stage, slab - stage * self.plan.slabs)
            for step in (0, 1):
                self._load_rows(a, slab, step)
            for step in (0, 1):
                self._products(a, b, step)

    def _load_rows(self, a: Any, slab: Any, step: int) -> None:
        """All rows of a step."""
        down = self.plan.units[0]
        start = (slab * self.plan.rows + self.row) * (SLAB // 4) + self._places[step]
        for unit in range(down):
            first = (step * down + unit) * 4
            into = [a[first + i] for i in range(4)]
            load_rows(into, T.address_of(self.tile[start + unit * ROWS * (SLAB // 4)]))

    def _load_weights(self, b: Any, stage: Any, slab: Any) -> None:
        """All channels of both steps: b[step][unit][2]."""
        held, across = self._packed_words(stage, slab), self.plan.units[1]
        for step in (0, 1):
            for unit in range(across):
                for i, word in enumerate(self.packed.operand(held, unit, step)):
                    T.buffer_store(b, word, [(step * across + unit) * 2 + i])

    def _packed_words(self, stage: Any, slab: Any) -> Any:
        """The lane's words of all blocks of a slab."""
        plan, packed, words = self.plan, self.packed, BLOCK // 4
        blocks = plan.warp_channels // packed.channels
        held = T.alloc_buffer((blocks * 4,), "uint32", scope="local", layout=None)
        first = (
            slab * (plan.channels // packed.channels) + divmod_of(self.channel, packed.channels)[0]
        )
        start = plan.stages * plan.lines.words + stage * plan.weight_words(packed)
        at = T.Bind(start + first * words + self.lane * 4)
        for block in range(blocks):
            value = run(self.tile, at + block * words, 4)
            T.buffer_store(held, value, ramp(block * 4, 4))
        return held

    def _products(self, a: Any, b: Any, step: int) -> None:
        down, across = self.plan.units
        for m in range(down):
            rows = [a[(step * down + m) * 4 + i] for i in range(4)]
            for n in range(across):
                channels = [b[(step * across + n) * 2 + i] for i in (0, 1)]
                first = (m * across + n) * 4
                self.core.step([self.sums[first + i] for i in range(4)], rows, channels)

    def add_slices(self) -> None:
        """Emits the sum over slices, which those of slice 0 get; shared memory must be free."""
        plan = self.plan
        if plan.slices == 1:
            return
        with T.If(self.slice > 0), T.Then():
            for first in range(0, plan.sums, 4):
                value = run(self.sums, first, 4)
                T.buffer_store(self.tile, value, ramp(self._at(self.slice - 1, first), 4))
        T.evaluate(script.cuda.cta_sync())
        given = T.alloc_buffer((4,), "uint32", scope="local", layout=None)
        with T.If(self.slice == 0), T.Then():
            for other in range(plan.slices - 1):
                for first in range(0, plan.sums, 4):
                    value = run(self.tile, self._at(other, first), 4)
                    T.buffer_store(given, value, ramp(0, 4))
                    for i in range(4):
                        T.buffer_store(self.sums, self.sums[first + i] + given[i], [first + i])

    def _at(self, other: Any, first: int) -> Any:
        """Where four sums of a slice lie, those of a warp's lanes side by side."""
        warps = self.plan.warps // self.plan.slices
        return ((other * warps + self.warp) * self.plan.sums + first) * LANES + self.lane * 4
