"""What a warpgroup of `nybble.schedules.cuda.weight_only_wgmma` multiplies.

A warp has two tiles of 16 channels, one of each of two instructions' 64 lines:

    record    codes from the stage; when the products before are done: halves, fence, products
    group     when its products are done: total += scale·part

While a warpgroup decodes, the other one, or another block, has the tensor cores.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.halves import PAIRS
from nybble.schedules.cuda.mma_moves import divmod_of, ramp, run
from nybble.schedules.cuda.mma_tile import LANES
from nybble.schedules.cuda.stream_plan import ROWS
from nybble.schedules.cuda.weight_only_layout import DEPTH, Layout
from nybble.schedules.cuda.weight_only_sums import Given, Sums, local
from nybble.schedules.cuda.wgmma_plan import Plan
from nybble.schedules.cuda.wgmma_ring import Ring
from nybble.schedules.cuda.wgmma_tile import commit, descriptor, fence, wait
from nybble.schedules.kernel import Epilogue

STEPS = DEPTH // 16
"""Instructions that go through a record, 16 inputs each."""
WORDS = 8  # of a row, for each


class HalfTile(Sums):
    """The sums of a warp and how they come about.

    Args:
        layout: of the weights, two tiles to a record.
        plan: how the layer is cut.
        given: the parameters.
        epilogue: second branch and clamp.
        thread: of the block.
    """

    def __init__(
        self, layout: Layout, plan: Plan, given: Given, epilogue: Epilogue, thread: Any
    ):  # fmt: skip
        super().__init__(layout, plan.beside // ROWS, given, epilogue, apart=True)
        self.plan = plan
        warp, lane = divmod_of(thread, LANES)
        self.warp, self.lane = T.Bind(warp), T.Bind(lane)
        self.name = f"wgmma.mma_async.sync.aligned.m64n{plan.beside}k16.f32.f16.f16"
        self.block: Any = None
        self.held: Any = None
        self.a: Any = None

    @property
    def records(self) -> int:
        """Records until sums are scaled."""
        layout = self.layout
        return layout.span * layout.pieces if layout.is_grouped else layout.records

    def multiply(self, ring: Ring, channel: Any) -> None:
        """Emits the loop over the depth, for the block's channels from ``channel`` on."""
        layout, groups = self.layout, self.layout.records // self.records
        self.block = T.Bind(channel // layout.width + self.warp)
        self.held = local(layout.words, "uint32")
        self.a = local(layout.tiles * PAIRS, "uint32")
        self.allocate()
        known = T.Bind(tirx.min(self.block, layout.blocks - 1))  # of those filled up, any numbers
        self.fetch_numbers(known, self.lane, 0)
        with T.serial(groups) as group:
            self.take_numbers()
            if layout.is_grouped:
                self.fetch_numbers(known, self.lane, T.Bind(tirx.min(group + 1, groups - 1)))
            with T.serial(self.records) as i:
                self._record(ring, T.Bind(group * self.records + i), i)
            if layout.parts == 1:
                wait(0)
                self._add()

    def _add(self) -> None:
        """Emits what follows the products of a group, or all of them."""
        if self.layout.is_grouped:
            self.flush(0)
            return
        one = tirx.const(1.0, "float32")
        for i in range(int(self.total.shape[0])):  # in order behind the wait, unlike a plain copy
            T.evaluate(T.ptx["fma.rn.f32"](self.total[i], self.part[i], one, self.total[i]))

    def _record(self, ring: Ring, step: Any, i: Any) -> None:
        """Emits the products of one record, the ``i``-th of its group."""
        stage = ring.wait_full(step)
        self._load(ring, stage)
        wait(0)
        with T.If(step > 0), T.Then():
            ring.tell_empty(T.Bind(step - 1))
        parts, alone = self.layout.parts, self.records == 1
        begins = tirx.const(False, "bool") if alone else i > 0
        for part in range(parts):
            steps = range(part * STEPS // parts, (part + 1) * STEPS // parts)
            self._decode(part, steps)
            fence()
            for piece in steps:
                keeps = begins if piece == steps.start else tirx.const(True, "bool")
                self._product(ring, stage, piece, keeps)
            commit()
            if parts > 1:
                wait(0)
                self.flush(part)

    def _load(self, ring: Ring, stage: Any) -> None:
        """Emits the loads of the warp's codes."""
        words, vector = self.layout.words, self.layout.vector
        start = ring.weights(stage) + self.warp * (words * LANES) + self.lane * vector
        start = T.Bind(start)
        for n in range(words // vector):
            found = run(ring.tile, start + n * (LANES * vector), vector)
            T.buffer_store(self.held, found, ramp(n * vector, vector))

    def _decode(self, part: int, steps: range) -> None:
        """Emits codes to halves."""
        pairs = range(steps.start * 4, steps.stop * 4)
        for tile in range(self.layout.tiles):

            def word(i: int, tile: int = tile) -> Any:
                return self.held[tile * self.layout.bits + i]

            into = [self.a[tile * PAIRS + pair] for pair in pairs]
            self.layout.codes.decode(word, into, pairs, self.zero(part, tile))

    def _product(self, ring: Ring, stage: Any, piece: int, keeps: Any) -> None:
        """Emits the instructions for 16 inputs; sums begin anew unless ``keeps``."""
        rows = descriptor(ring.tile[stage * self.plan.lines.words + piece * WORDS])
        each, yes, no = self.operands * 4, tirx.const(1, "int32"), tirx.const(0, "int32")
        for tile in range(self.layout.tiles):
            sums = [self.part[tile * each + i] for i in range(each)]
            first = tile * PAIRS + piece * 4
            a = [self.a[first + i] for i in range(4)]
            T.evaluate(script.ptx[self.name](*sums, *a, rows, keeps, yes, yes, no))

    def finish(self, first: Any) -> None:
        """Emits the stores of the block's rows from ``first`` on."""
        row = T.Bind(first + self.lane % 4 * 2)
        channel = T.Bind(self.block * self.layout.width + self.lane // 4)
        for down, beside, value in self.sums():
            here, there = T.Bind(row + down), T.Bind(channel + beside)
            with T.If(tirx.all(here < self.given.rows, there < self.layout.o)), T.Then():
                self.store(here, there, value)
