"""The stages between the warpgroup that loads and those that multiply, in `…cuda.wgmma`.

A stage has two barriers in shared memory, ``full`` and ``empty``, which count arrivals in phases:
the loader's threads and the bulk copy's bytes make it full, one lane of each multiplying warp makes
it empty.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.mma_moves import divmod_of
from nybble.schedules.cuda.mma_rows import Rows
from nybble.schedules.cuda.mma_tile import LANES
from nybble.schedules.cuda.wgmma_plan import GROUP, Plan

SWIZZLED = 1024  # bytes; stages begin at a multiple, which CUDA does not promise
LAG = 2  # steps that the loader's copies are on their way


class Ring:
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
        size = plan.stages * (plan.lines.words + plan.weights // 4)
        raw = pool.alloc((size + SWIZZLED // 4,), "uint32", align=SWIZZLED)
        self._full = pool.alloc((plan.stages,), "uint64", align=8)
        self._empty = pool.alloc((plan.stages,), "uint64", align=8)
        pool.commit()
        address = script.cuda.cvta_generic_to_shared(T.address_of(raw[0]))
        # Dynamic shared memory begins at a multiple of 16 bytes at least; so do vectors then.
        spare = tirx.bitwise_and(T.uint32(0) - address, T.uint32(SWIZZLED - 1)) >> T.uint32(4)
        self.tile = T.decl_buffer(
            (size,), "uint32", data=raw.data, elem_offset=T.Bind(T.Cast("int32", spare) * 4),
            scope="shared.dyn", layout=None,
        )  # fmt: skip
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
        return self.plan.stages * self.plan.lines.words + stage * (self.plan.weights // 4)

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
        full, size = T.address_of(self._full[stage]), T.uint32(self.plan.weights)
        with T.If(self.thread == self.first), T.Then():
            T.evaluate(script.ptx["mbarrier.arrive.expect_tx.shared.b64"](full, size))
            bulk = script.ptx["cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"]
            into = T.address_of(self.tile[self.weights(stage)])
            T.evaluate(bulk(into, T.address_of(source), size, full))


def load(ring: Ring, rows: Rows, weights: Any, channels: tuple[Any, int]) -> None:
    """Emits the loader's loop; ``channels`` are the block's first and all there are."""
    commit, wait = script.ptx["cp.async.commit_group"], script.ptx["cp.async.wait_group"]
    # A stage is told empty when the next one's products run: that one must have been told full.
    lag = max(0, min(LAG, ring.plan.stages - 2, ring.steps - 1))
    with T.serial(ring.steps) as step:
        stage = ring.wait_empty(step)
        ring.copy(stage, weights[(step * channels[1] + channels[0]) * (ring.plan.weight // 4)])
        rows.copy(step, stage)
        T.evaluate(commit())
        with T.If(step >= lag), T.Then():
            T.evaluate(wait(lag))
            ring.tell_full(T.Bind(step - lag))
    for left in range(lag - 1, -1, -1):
        T.evaluate(wait(left))
        ring.tell_full(tirx.const(ring.steps - 1 - left, "int32"))
