"""Integer convolution and linear layers on tensor cores by ``mma``: one template, three families.

    cuda.int8.mma      weights and activations of 8 bits
    cuda.int4.mma      weights of 4 bits, unpacked in registers, activations of 8
    cuda.int4.s4mma    weights and activations of 4 bits, on tensor cores of 4 bits

A block computes a tile of outputs (`nybble.schedules.cuda.mma_plan`):

    for step of the depth: wait for its stage; barrier
        start the copies for a later stage              `…mma_rows`, `…mma_weights`
        fragments from shared memory, products          `nybble.schedules.cuda.mma_tile`
    sum of the slices; epilogue; stores                 `nybble.schedules.cuda.mma_store`

One barrier a step: whoever passes it has read the stage that the new copies overwrite. Where copies
are not asynchronous, loads into registers are started before the products and stored behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as script
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu.buffers import Buffers, declare, product
from nybble.schedules.cuda import matrix, mma_store
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.cuda.fragments import Fragments, lane_of
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
        weights: bits of a packed weight.
        core: bits of the tensor cores' operands.
    """

    name: str
    weights: int
    core: int

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
        self.problem, self.plan, self.buffers = problem, plan, buffers
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
        channels = Channels(fragments, plan, self.buffers.constants[0], tile)
        rows.begin(first[0], total, thread)
        channels.begin(first[1], thread)
        sums = WarpTile(fragments, plan, self.core, tile, thread)
        store = mma_store.Store(self.problem, sums, self.buffers, first, total)
        store.prepare()
        multiply(rows, channels, sums, -(-fragments.matrix.slabs // plan.slabs))
        finish(sums, store)


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


class Loads(Protocol):
    """What brings an operand's part of a stage to shared memory; methods as of `Channels`."""

    def copy(self, step: Any, stage: Any) -> None:
        """Emits the asynchronous copies of a step of the depth."""

    def fetch(self, step: Any) -> Any:
        """Emits the loads of a step of the depth; returns the registers."""

    def put(self, held: Any, stage: Any) -> None:
        """Emits the stores of what `fetch` gave."""


def multiply(rows: Rows, channels: Loads, sums: WarpTile, steps: int) -> None:
    """Emits the loop over the depth, of so many stages."""
    (_staged if sums.plan.held else _copied)(rows, channels, sums, steps)


def finish(sums: WarpTile, store: mma_store.Store) -> None:
    """Emits the sum of the slices and the epilogue."""
    if sums.plan.slices == 1:
        store.emit()
        return
    T.evaluate(script.cuda.cta_sync())
    sums.add_slices()
    with T.If(sums.slice == 0), T.Then():
        store.emit()


def _copied(rows: Rows, channels: Loads, sums: WarpTile, steps: int) -> None:
    """The loop over the depth with asynchronous copies."""
    stages = sums.plan.stages
    commit = script.ptx["cp.async.commit_group"]

    def load(step: Any, stage: Any) -> None:
        rows.copy(step, stage)
        channels.copy(step, stage)

    for step in range(stages - 1):
        if step < steps:
            load(tirx.const(step, "int32"), step)
        T.evaluate(commit())
    with T.serial(steps) as step:
        T.evaluate(script.ptx["cp.async.wait_group"](stages - 2))
        T.evaluate(script.cuda.cta_sync())
        ahead = T.Bind(step + (stages - 1))
        with T.If(ahead < steps), T.Then():
            load(ahead, T.Bind(divmod_of(ahead, stages)[1]))
        T.evaluate(commit())
        sums.multiply(T.Bind(divmod_of(step, stages)[1]))


def _staged(rows: Rows, channels: Loads, sums: WarpTile, steps: int) -> None:
    """The loop over the depth with loads through registers."""

    def store(held: tuple[Any, Any], step: Any, stage: Any) -> None:
        rows.put(held[0], step, stage)
        channels.put(held[1], stage)

    start = tirx.const(0, "int32")
    store((rows.fetch(start), channels.fetch(start)), start, 0)
    T.evaluate(script.cuda.cta_sync())
    with T.serial(steps - 1) as step:
        ahead = T.Bind(step + 1)
        held = rows.fetch(ahead), channels.fetch(ahead)
        sums.multiply(T.Bind(tirx.bitwise_and(step, 1)))
        store(held, ahead, T.Bind(tirx.bitwise_and(ahead, 1)))
        T.evaluate(script.cuda.cta_sync())
    sums.multiply((steps - 1) % 2)


FAMILIES = (
    Family("cuda.int4.s4mma", 4, 4),
    Family("cuda.int4.mma", 4, 8),
    Family("cuda.int8.mma", 8, 8),
)

KERNELS = tuple(
    Kernel(
        family.name,
        op,
        partial(Family.supports, family),
        partial(Family.pack, family),
        partial(Family.build, family),
        forms=frozenset({"values", "packed"} if family.core == 4 else {"values"}),
        arch="cuda",
        plan=partial(Family.plan, family),
    )
    for family in FAMILIES
    for op in ("conv2d", "linear")
)
"""By preference: the fewest bits first."""
