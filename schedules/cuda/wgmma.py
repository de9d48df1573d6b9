"""Integer convolution and linear layers on Hopper's tensor cores by ``wgmma``: two families.

    cuda.int8.wgmma    rows times channels, both from shared memory
    cuda.int4.wgmma    channels of 4 bits, unpacked in registers, times rows
    cuda.int4.levels.wgmma    the same with weights of 4 bits on two levels     `…wgmma_levels`

A warpgroup loads, one or two multiply, and they meet at barriers in shared memory:

    loader       for each step: wait until the stage is empty
                                one thread: bulk copy of the weights (the engine counts its bytes)
                                all: asynchronous copies of the rows, as `…mma_rows`
                                when those of an earlier step are there: fence, tell ``full``
    multipliers  for each step: wait until the stage is full
                                products, of 32 bytes of depth each         `…wgmma_tile`
                                when those of the step before are done: tell ``empty``
                 epilogue, stores                                          `…mma_store`

Shared memory holds lines of 128 bytes, eight of which are 1024 bytes; a line's pieces of 16 bytes
are exchanged by its number modulo 8, the *128-byte swizzle* of the instructions' descriptors.
Weights are packed as they lie in a stage, so a step's are one run of memory and need no tensor map;
rows are gathered like those of ``mma``, so convolutions need none either.

The loader's writes are of the generic proxy, the products read through the asynchronous one: hence
the fence between. (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions", "Async proxy".)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cuda import levels, matrix, mma_store
from nybble.schedules.cuda.mma import first_of, parameters, refuse
from nybble.schedules.cuda.mma_rows import Rows
from nybble.schedules.cuda.wgmma_levels import Levels, LevelsFirst
from nybble.schedules.cuda.wgmma_pack import Halves, Panels
from nybble.schedules.cuda.wgmma_plan import (
    CHANNELS_FIRST,
    GROUP,
    LINE,
    ROWS_FIRST,
    Plan,
    plan_of,
)
from nybble.schedules.cuda.wgmma_plan import Tile as Size
from nybble.schedules.cuda.wgmma_ring import Ring, load
from nybble.schedules.cuda.wgmma_tile import ChannelsFirst, RowsFirst
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem

LOADER, MULTIPLIER = 40, 232  # registers of a thread: 128 · 40 + 256 · 232 fit


@dataclass(frozen=True)
class Family:
    """What tells the families apart.

    Attributes:
        name: of the kernels.
        bits: of a packed weight.
        few: outputs below which ``mma`` is preferred.
        panels: how weights are packed.
        lane: channels side by side in a lane.
        tile: what a warpgroup does.
        sizes: to choose from.
        ops: that it computes.
    """

    name: str
    bits: int
    few: int
    panels: type[Panels]
    lane: int
    tile: type[RowsFirst] | type[ChannelsFirst]
    sizes: tuple[Size, ...]
    ops: tuple[str, ...] = ("conv2d", "linear")

    def packed(self, problem: Problem) -> Panels:
        """How a layer is packed."""
        return self.panels(matrix.matrix_of(problem), self.lane)

    def supports(self, problem: Problem, target: Any) -> str | None:
        """Why it cannot compile a problem, None when it can."""
        if target.arch != "cuda" or not target.has("wgmma"):
            return "needs Hopper's wgmma"
        reason = refuse(problem, self.bits)
        if reason is not None:
            return reason
        if matrix.in_words(matrix.matrix_of(problem)).loose:
            return "a tap of a row is no whole number of words, which asynchronous copies move"
        return None

    def slow(self, problem: Problem) -> str | None:
        """Why ``mma`` is faster, None when it is not."""
        found = matrix.matrix_of(problem)
        if found.static_rows * found.channels < self.few:
            return "too few outputs for tiles of 64 and more; mma divides the depth among warps"
        return None

    def pack(self, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
        """The weights, and the table of per-channel numbers."""
        packed, weights = self.packed(problem), np.asarray(constants["w"])
        packed.check(weights, problem.inputs[0].dtype)
        return [packed.pack(weights), mma_store.table(problem, packed, constants)]

    def plan(self, problem: Problem, _target: Any, knobs: Knobs) -> Plan:
        """How a layer is cut."""
        packed = self.packed(problem)
        return plan_of(packed, self.sizes, packed.weight, knobs)

    def build(self, problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
        """The function; parameters: input, second branch if any, weights, table, output."""
        packed, plan = self.packed(problem), self.plan(problem, target, knobs)
        constants = packed.spec, mma_store.table_spec(problem, packed)
        with IRBuilder() as builder, T.prim_func():
            buffers, total = parameters(problem, constants, packed.matrix)
            down, across = tirx.ceildiv(total, plan.rows), packed.padded // plan.channels
            T.device_entry()
            block = T.cta_id([down * across])
            thread = T.thread_id([plan.threads])
            ring = Ring(plan, -(-packed.matrix.depth // LINE), thread)
            first = first_of(block, down, across, (plan.rows, plan.channels))
            with T.If(thread >= GROUP * plan.groups):
                with T.Then():
                    ring.registers("dec", LOADER)
                    rows = Rows(packed.matrix, plan.lines, problem.inputs[0], buffers.x, ring.tile)
                    rows.begin(first[0], total, T.Bind(thread - GROUP * plan.groups))
                    load(ring, rows, buffers.constants[0], (first[1], packed.padded))
                with T.Else():
                    ring.registers("inc", MULTIPLIER)
                    tile = self.tile(packed, plan, thread, self.types(problem))
                    tile.multiply(ring)
                    mma_store.Store(problem, tile, buffers, first, total).emit()
        return builder.get()

    def types(self, problem: Problem) -> tuple[str, str]:
        """Of the first and the second operand, as PTX spells them."""
        assert problem.weights is not None
        given = [problem.inputs[0].dtype, problem.weights.dtype]
        names = ["us"[numerics.width(dtype)[0]] + "8" for dtype in given]
        rows, channels = names
        return (channels, rows) if issubclass(self.tile, ChannelsFirst) else (rows, channels)


@dataclass(frozen=True)
class LevelsFamily(Family):
    """Weights on two levels."""

    def packed(self, problem: Problem) -> Panels:
        """How a layer is packed."""
        return Levels(matrix.matrix_of(problem), self.lane, int(problem.attr(levels.ATTR)))

    def supports(self, problem: Problem, target: Any) -> str | None:
        """Why it cannot compile a problem, None when it can."""
        return levels.refuse(problem) or super().supports(problem, target)


FAMILIES = (
    LevelsFamily(
        "cuda.int4.levels.wgmma",
        bits=8,
        few=96 * 64 * 128,
        panels=Levels,
        lane=4,
        tile=LevelsFirst,
        sizes=CHANNELS_FIRST,
        ops=("linear",),
    ),
    Family("cuda.int4.wgmma", 4, 96 * 64 * 128, Halves, 4, ChannelsFirst, CHANNELS_FIRST),
    Family("cuda.int8.wgmma", 8, 132 * 128 * 64, Panels, 16, RowsFirst, ROWS_FIRST),
)

KERNELS = tuple(
    Kernel(
        family.name,
        op,
        partial(type(family).supports, family),
        partial(Family.pack, family),
        partial(Family.build, family),
        arch="cuda",
        plan=partial(Family.plan, family),
        slow=partial(Family.slow, family),
    )
    for family in FAMILIES
    for op in family.ops
)
"""By preference: the fewest bits first."""
