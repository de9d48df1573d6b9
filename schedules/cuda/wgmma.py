"""``cuda.int8.wgmma``: integer convolution and linear layers on Hopper's tensor cores.

A warpgroup loads, one or two multiply, and they meet at barriers in shared memory:

    loader       for each step: wait until the stage is empty
                                one thread: bulk copy of the weights (the engine counts its bytes)
                                all: asynchronous copies of the rows, as `…mma_rows`
                                when those of an earlier step are there: fence, tell ``full``
    multipliers  for each step: wait until the stage is full
                                ``wgmma``: 4 · units instructions of 64 rows and 32 bytes
                                when those of the step before are done: tell ``empty``
                 epilogue, stores                                          `…mma_store`

Shared memory holds lines of 128 bytes, eight of which are 1024 bytes; a line's pieces of 16 bytes
are exchanged by its number modulo 8, the *128-byte swizzle* of the instructions' descriptors.
Weights are packed as that image, so a tile of a step is one run of memory and needs no tensor map;
rows are gathered like those of ``mma``, so convolutions need none either.

The loader's writes are of the generic proxy, the products read through the asynchronous one: hence
the fence between. (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions", "Async proxy".)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as script
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cuda import matrix, mma_store
from nybble.schedules.cuda.fragments import Packed
from nybble.schedules.cuda.mma import first_of, parameters
from nybble.schedules.cuda.mma_moves import PIECE, divmod_of
from nybble.schedules.cuda.mma_rows import Rows, unit_of
from nybble.schedules.cuda.mma_tile import LANES, Columns
from nybble.schedules.cuda.wgmma_plan import GROUP, LINE, ROWS, Plan, plan_of
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

LANE = 16  # channels side by side in a lane: blocks have at least 64 anyway
FEW = 132 * 128 * 64
"""Outputs below which a GPU has more multiprocessors than there are good tiles."""
LAG = 2  # steps that the loader's copies are on their way
SWIZZLE = 3  # CUtensorMapSwizzle of 128 bytes
LOADER, MULTIPLIER = 40, 232  # registers of a thread: 128 · 40 + 256 · 232 fit


class Panels(Packed):
    """Weights packed for ``wgmma``: for each 128 bytes of depth a line for each channel."""

    @property
    def spec(self) -> TensorSpec:
        """The packed weights."""
        return TensorSpec((-(-self.matrix.depth // LINE), self.padded * LINE // 4), "uint32")

    def pack(self, weights: NDArray[Any]) -> NDArray[np.uint32]:
        """The packed weights from unpacked ones of 8 bits, (O, K) or OHWI."""
        lines = self.lines(weights, LINE)
        lines = lines.reshape(-1, 8, lines.shape[1] // LINE, LINE // PIECE, PIECE)
        exchanged = np.empty_like(lines)
        for line in range(8):
            for piece in range(8):
                exchanged[:, line, :, piece ^ line] = lines[:, line, :, piece]
        ordered = np.ascontiguousarray(exchanged.transpose(2, 0, 1, 3, 4))
        return ordered.reshape(len(ordered), -1).view(np.uint32)


def _panels(problem: Problem) -> Panels:
    return Panels(matrix.matrix_of(problem), LANE)


def _supports(problem: Problem, target: Any) -> str | None:
    if target.arch != "cuda" or not target.has("wgmma"):
        return "needs Hopper's wgmma"
    reason = matrix.refuse(problem) or mma_store.refuse(problem)
    if reason is None and unit_of(matrix.matrix_of(problem), problem.inputs[0]) == 1:
        reason = "a tap of a row is no multiple of 4 bytes"
    return reason


def _slow(problem: Problem) -> str | None:
    found = matrix.matrix_of(problem)
    if found.static_rows * found.channels < FEW:
        return "too few outputs for tiles of 64 rows and more; mma divides the depth among warps"
    return None


def _pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    panels = _panels(problem)
    table = mma_store.table(problem, panels, constants)
    return [panels.pack(np.asarray(constants["w"])), table]


def _plan(problem: Problem, _target: Any, knobs: Knobs) -> Plan:
    return plan_of(_panels(problem), knobs)


def _build(problem: Problem, _target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The function; parameters: input, second branch if any, weights, table, output."""
    panels, plan = _panels(problem), plan_of(_panels(problem), knobs)
    constants = panels.spec, mma_store.table_spec(problem, panels)
    with IRBuilder() as builder, T.prim_func():
        buffers, total = parameters(problem, constants, panels.matrix)
        down, across = tirx.ceildiv(total, plan.rows), panels.padded // plan.channels
        T.device_entry()
        block = T.cta_id([down * across])
        thread = T.thread_id([plan.threads])
        ring = _Ring(plan, -(-panels.matrix.depth // LINE), thread)
        first = first_of(block, down, across, (plan.rows, plan.channels))
        with T.If(thread >= GROUP * plan.groups):
            with T.Then():
                ring.registers("dec", LOADER)
                rows = Rows(panels.matrix, plan.lines, problem.inputs[0], buffers.x, ring.tile)
                rows.begin(first[0], total, T.Bind(thread - GROUP * plan.groups))
                _load(ring, rows, buffers.constants[0], (first[1], panels.padded))
            with T.Else():
                ring.registers("inc", MULTIPLIER)
                tile = WarpgroupTile(panels, plan, thread)
                tile.multiply(ring, problem)
                mma_store.Store(problem, tile, buffers, first, total).emit()
    return builder.get()


class _Ring:
    """The stages in shared memory and their barriers.

    Args:
        plan: how the layer is cut.
        steps: of the depth.
        thread: of the block.
    """

    def __init__(self, plan: Plan, steps: int, thread: Any):
        self.plan, self.steps, self.thread = plan, steps, thread
        self.first = GROUP * plan.groups  # of the loader's threads
        pool = script.SMEMPool()
        self.tile = pool.alloc((plan.stages * plan.stage // 4,), "uint32", align=1024)
        self._full = pool.alloc((plan.stages,), "uint64", align=8)
        self._empty = pool.alloc((plan.stages,), "uint64", align=8)
        pool.commit()
        init = script.ptx["mbarrier.init.shared.b64"]
        with T.If(thread == 0), T.Then():
            for stage in range(plan.stages):
                T.evaluate(init(T.address_of(self._full[stage]), T.uint32(GROUP + 1)))
                T.evaluate(init(T.address_of(self._empty[stage]), T.uint32(plan.groups * 4)))
        T.evaluate(script.ptx["fence.proxy.async.shared::cta"]())
        T.evaluate(script.cuda.cta_sync())

    def registers(self, what: str, count: int) -> None:
        """Emits the transfer of registers from the loader, where they are short."""
        if self.plan.groups > 1:
            T.evaluate(script.ptx[f"setmaxnreg.{what}.sync.aligned.u32"](count))

    def weights(self, stage: Any) -> Any:
        """The word where a stage's weights begin."""
        return self.plan.stages * self.plan.lines.words + stage * (self.plan.channels * LINE // 4)

    def at(self, step: Any) -> tuple[Any, Any]:
        """Stage and phase of a step."""
        turn, stage = divmod_of(step, self.plan.stages)
        return T.Bind(stage), T.Bind(tirx.bitwise_and(turn, 1))

    def wait_empty(self, step: Any) -> Any:
        """Emits the wait for a step's stage to be read; returns the stage."""
        stage, phase = self.at(step)
        T.evaluate(script.cuda.mbarrier_wait(T.address_of(self._empty[stage]), phase ^ 1))
        return stage

    def wait_full(self, step: Any) -> Any:
        """Emits the wait for a step's stage to be there; returns the stage."""
        stage, phase = self.at(step)
        T.evaluate(script.cuda.mbarrier_wait(T.address_of(self._full[stage]), phase))
        return stage

    def tell_full(self, step: Any) -> None:
        """Emits the news that the thread's rows of a step are there."""
        T.evaluate(script.ptx["fence.proxy.async.shared::cta"]())
        at = T.address_of(self._full[self.at(step)[0]])
        T.evaluate(script.ptx["mbarrier.arrive.shared.b64"](at))

    def tell_empty(self, step: Any) -> None:
        """Emits the news that a warp has read a step's stage."""
        at = T.address_of(self._empty[self.at(step)[0]])
        with T.If(tirx.bitwise_and(self.thread, LANES - 1) == 0), T.Then():
            T.evaluate(script.ptx["mbarrier.arrive.shared.b64"](at))

    def copy(self, stage: Any, source: Any) -> None:
        """Emits a bulk copy of a stage's weights, by one thread."""
        full, size = T.address_of(self._full[stage]), T.uint32(self.plan.channels * LINE)
        with T.If(self.thread == self.first), T.Then():
            T.evaluate(script.ptx["mbarrier.arrive.expect_tx.shared.b64"](full, size))
            bulk = script.ptx["cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"]
            into = T.address_of(self.tile[self.weights(stage)])
            T.evaluate(bulk(into, T.address_of(source), size, full))


def _load(ring: _Ring, rows: Rows, weights: Any, channels: tuple[Any, int]) -> None:
    """The loader's loop; ``channels`` are the block's first and all there are."""
    commit, wait = script.ptx["cp.async.commit_group"], script.ptx["cp.async.wait_group"]
    lag = min(LAG, ring.plan.stages - 1, ring.steps - 1)
    with T.serial(ring.steps) as step:
        stage = ring.wait_empty(step)
        ring.copy(stage, weights[(step * channels[1] + channels[0]) * (LINE // 4)])
        rows.copy(step, stage)
        T.evaluate(commit())
        with T.If(step >= lag), T.Then():
            T.evaluate(wait(lag))
            ring.tell_full(T.Bind(step - lag))
    for left in range(lag - 1, -1, -1):
        T.evaluate(wait(left))
        ring.tell_full(tirx.const(ring.steps - 1 - left, "int32"))


class WarpgroupTile(Columns):
    """The sums of a warp, a quarter of its warpgroup's.

    Args:
        panels: the packed layer.
        plan: how it is cut.
        thread: of the block.
    """

    def __init__(self, panels: Panels, plan: Plan, thread: Any):
        self.plan = plan
        warp, lane = divmod_of(thread, LANES)
        group, inside = divmod_of(warp, 4)
        self.first = T.Bind(group * (ROWS * plan.units))
        self.width = self.reach = plan.channels
        self.sums = T.alloc_buffer((plan.sums,), "uint32", scope="local", layout=None)
        first = T.Bind(self.first + inside * 16), tirx.const(0, "int32")
        self.hold(panels, T.Bind(lane), first, ROWS)

    def multiply(self, ring: _Ring, problem: Problem) -> None:
        """Emits the loop over the depth."""
        acc = T.alloc_buffer((self.plan.sums,), "uint32", scope="local", layout=None)
        with T.unroll(self.plan.sums) as i:
            T.buffer_store(acc, T.uint32(0), [i])
        with T.serial(ring.steps) as step:
            stage = ring.wait_full(step)
            T.evaluate(script.ptx["wgmma.fence.sync.aligned"]())
            self._products(acc, ring, stage, _types(problem))
            T.evaluate(script.ptx["wgmma.commit_group.sync.aligned"]())
            T.evaluate(script.ptx["wgmma.wait_group.sync.aligned"](1))
            with T.If(step > 0), T.Then():
                ring.tell_empty(T.Bind(step - 1))
        T.evaluate(script.ptx["wgmma.wait_group.sync.aligned"](0))
        for i in range(self.plan.sums):  # in order behind the wait, which a plain copy is not
            T.evaluate(script.ptx["mov.b32"](self.sums[i], acc[i]))

    def _products(self, acc: Any, ring: _Ring, stage: Any, types: str) -> None:
        plan = self.plan
        name = f"wgmma.mma_async.sync.aligned.m64n{plan.channels}k32.s32.{types}"
        each, line = plan.sums // plan.units, LINE // 4
        rows, weights = stage * plan.lines.words + self.first * line, ring.weights(stage)
        for piece in range(4):
            for unit in range(plan.units):
                a = _descriptor(ring.tile[rows + unit * ROWS * line + piece * 8])
                b = _descriptor(ring.tile[weights + piece * 8])
                sums = [acc[unit * each + i] for i in range(each)]
                T.evaluate(script.ptx[name](*sums, a, b, tirx.const(True, "bool")))


def _types(problem: Problem) -> str:
    """The operands' types as PTX spells them."""
    assert problem.weights is not None
    given = problem.inputs[0].dtype, problem.weights.dtype
    return ".".join("us"[numerics.width(dtype)[0]] + "8" for dtype in given)


def _descriptor(start: Any) -> Any:
    """What tells the tensor cores where lines of 128 swizzled bytes begin, eight every 1024."""
    made = T.alloc_buffer((1,), "uint64", scope="local", layout=None)
    encode = script.cuda.wgmma.encode_matrix_descriptor
    T.evaluate(encode(T.address_of(made[0]), T.address_of(start), 1, 8 * LINE // 16, SWIZZLE))
    return made[0]


KERNELS = tuple(
    Kernel("cuda.int8.wgmma", op, _supports, _pack, _build, arch="cuda", plan=_plan, slow=_slow)
    for op in ("conv2d", "linear")
)
