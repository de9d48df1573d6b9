"""Integer convolution and linear layers on tensor cores by ``mma``: one template, four families.

    cuda.int8.mma           weights and activations of 8 bits
    cuda.int4.mma           weights of 4 bits, unpacked in registers, activations of 8
    cuda.int4.levels.mma    the same with weights of 4 bits on two levels     `…mma_levels`
    cuda.int4.s4mma         weights and activations of 4 bits, on tensor cores of 4 bits

A block computes a tile of outputs (`nybble.schedules.cuda.mma_plan`), slab by slab of the depth
(`nybble.schedules.cuda.mma_loop`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as script
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu.buffers import Buffers, declare, product
from nybble.schedules.cuda import levels, matrix, mma_loop, mma_store
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.cuda.fragments import Fragments, lane_of
from nybble.schedules.cuda.mma_levels import LevelChannels, Levels, LevelTile
from nybble.schedules.cuda.mma_moves import divmod_of
from nybble.schedules.cuda.mma_plan import Plan, plan_of
from nybble.schedules.cuda.mma_rows import Rows, halves
from nybble.schedules.cuda.mma_tile import WarpTile
from nybble.schedules.cuda.mma_weights import Channels
from nybble.schedules.cuda.tensor_core import tensor_core
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

NEIGHBOURS = 8  # blocks of rows that run side by side, so that weights are shared in the L2 cache


@dataclass(frozen=True)
class Family:
    """What tells the families apart.

    Attributes:
        name: of the kernels.
        weights: bits of a weight.
        core: bits of the tensor cores' operands.
        ops: that it computes.
    """

    name: str
    weights: int
    core: int
    ops: tuple[str, ...] = ("conv2d", "linear")
    channels: ClassVar[type[Channels]] = Channels
    tile: ClassVar[type[WarpTile]] = WarpTile

    def matrix(self, problem: Problem) -> matrix.Matrix:
        """The layer as a matrix product."""
        return matrix.in_words(matrix.matrix_of(problem, 8 // self.core))

    def fragments(self, problem: Problem) -> Fragments:
        """How a layer is packed."""
        found = self.matrix(problem)
        return Fragments(found, lane_of(found), self.weights)

    def supports(self, problem: Problem, target: Any) -> str | None:
        """Why it cannot compile a problem, None when it can."""
        if target.arch != "cuda":
            return "needs an NVIDIA GPU"
        reason = refuse(problem, self.weights)
        if reason is not None:
            return reason
        if numerics.width(problem.inputs[0].dtype)[1] > self.core:
            return (
                f"multiplies activations of up to {self.core} bits, not {problem.inputs[0].dtype}"
            )
        if self.core == 4 and not target.has("mma_s4"):
            return f"the tensor cores of {target.name} have no 4-bit integers: they are emulated"
        return None

    def pack(self, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
        """The weights by fragments, and the table of per-channel numbers."""
        fragments, weights = self.fragments(problem), np.asarray(constants["w"])
        fragments.check(weights, problem.inputs[0].dtype)
        return [fragments.pack(weights), mma_store.table(problem, fragments, constants)]

    def held(self, problem: Problem, target: CudaTarget) -> int:
        """As of `nybble.schedules.cuda.mma_plan.Plan`."""
        found = self.matrix(problem)
        if halves(found, problem.inputs[0]):
            return 2
        return int(not target.has("cp_async") or found.loose)

    def plan(self, problem: Problem, target: CudaTarget, knobs: Knobs) -> Plan:
        """How a layer is cut."""
        fragments = self.fragments(problem)
        return plan_of(fragments, target, knobs, self.held(problem, target))

    def build(self, problem: Problem, target: CudaTarget, knobs: Knobs) -> tirx.PrimFunc:
        """The function; parameters: input, second branch if any, weights, table, output."""
        fragments, plan = self.fragments(problem), self.plan(problem, target, knobs)
        constants = (fragments.spec, mma_store.table_spec(problem, fragments))
        with IRBuilder() as builder, T.prim_func():
            buffers, total = parameters(problem, constants, fragments.matrix)
            _Block(self, problem, target, plan, buffers).emit(total)
        return builder.get()


class LevelsFamily(Family):
    """Weights on two levels."""

    channels = LevelChannels
    tile = LevelTile

    def fragments(self, problem: Problem) -> Fragments:
        """How a layer is packed."""
        found = self.matrix(problem)
        return Levels(found, lane_of(found), 4, int(problem.attr(levels.ATTR)))

    def supports(self, problem: Problem, target: Any) -> str | None:
        """Why it cannot compile a problem, None when it can."""
        return levels.refuse(problem) or super().supports(problem, target)


def refuse(problem: Problem, bits: int) -> str | None:
    """Why weights packed in so many bits are no product for tensor cores; None when they are."""
    reason = matrix.refuse(problem) or mma_store.refuse(problem)
    if reason is not None:
        return reason
    assert problem.weights is not None
    if numerics.width(problem.weights.dtype)[1] > bits:
        return f"packs weights of up to {bits} bits, not {problem.weights.dtype}"
    return None


def parameters(
    problem: Problem, constants: Sequence[TensorSpec], layer: matrix.Matrix
) -> tuple[Buffers, Any]:
    """Declares the function's parameters, all with one index; also gives the number of rows."""
    symbols: dict[str, Any] = {}
    T.func_attr({"tirx.noalias": True})
    buffers = declare(problem, constants, symbols)
    flat = tuple(flattened(one) for one in buffers.constants)
    return replace(buffers, constants=flat), T.Cast("int32", product(layer.rows, symbols))


class _Block:
    """The code of a block."""

    def __init__(
        self, family: Family, problem: Problem, target: CudaTarget, plan: Plan, buffers: Buffers
    ):
        assert problem.weights is not None
        self.family, self.problem, self.plan, self.buffers = family, problem, plan, buffers
        self.fragments = family.fragments(problem)
        given = problem.inputs[0].dtype, problem.weights.dtype
        self.core = tensor_core(target, *given, family.core)

    def emit(self, total: Any) -> None:
        """Emits the kernel's body; ``total`` is the number of rows."""
        plan, fragments = self.plan, self.fragments
        down = tirx.ceildiv(total, plan.rows)
        across = -(-fragments.padded // plan.channels)
        T.device_entry()
        block = T.cta_id([down * across])
        thread = T.thread_id([plan.threads])
        pool = script.SMEMPool()
        tile = pool.alloc((plan.shared(fragments) // 4,), "uint32", align=128)
        pool.commit()
        first = first_of(block, down, across, (plan.rows, plan.channels))
        rows = Rows(fragments.matrix, plan.lines, self.problem.inputs[0], self.buffers.x, tile)
        channels = self.family.channels(fragments, plan, self.buffers.constants[0], tile)
        rows.begin(first[0], total, thread)
        channels.begin(first[1], thread)
        sums = self.family.tile(fragments, plan, self.core, tile, thread)
        store = mma_store.Store(self.problem, sums, self.buffers, first, total)
        store.prepare()
        mma_loop.multiply(rows, channels, sums, -(-fragments.matrix.slabs // plan.slabs))
        mma_loop.finish(sums, store)


def flattened(buffer: Any) -> Any:
    """The same memory with one index."""
    size = prod(int(extent) for extent in buffer.shape)
    return T.decl_buffer((size,), str(buffer.dtype), data=buffer.data, layout=None)


def first_of(block: Any, down: Any, across: int, size: tuple[int, int]) -> tuple[Any, Any]:
    """The first row and channel of a block: neighbours in time share rows and channels.

    Args:
        block: its number.
        down: blocks along the rows.
        across: blocks along the channels.
        size: rows and channels of a block.
    """
    if across == 1:
        return T.Bind(block * size[0]), T.Bind(tirx.const(0, "int32"))
    band, inside = divmod_of(block, NEIGHBOURS * across)
    band = T.Bind(band * NEIGHBOURS)
    high = T.Bind(tirx.min(down - band, NEIGHBOURS))
    row, channel = band + tirx.truncmod(inside, high), tirx.truncdiv(inside, high)
    return T.Bind(row * size[0]), T.Bind(channel * size[1])


FAMILIES = (
    Family("cuda.int4.s4mma", 4, 4),
    Family("cuda.int4.mma", 4, 8),
    LevelsFamily("cuda.int4.levels.mma", 8, 8, ops=("linear",)),
    Family("cuda.int8.mma", 8, 8),
)

KERNELS = tuple(
    Kernel(
        family.name,
        op,
        partial(type(family).supports, family),
        partial(Family.pack, family),
        partial(Family.build, family),
        forms=frozenset({"values", "packed"} if family.core == 4 else {"values"}),
        arch="cuda",
        plan=partial(Family.plan, family),
    )
    for family in FAMILIES
    for op in family.ops
)
"""By preference: the fewest bits first."""
