"""The kernel for products of few rows: weights stream from memory to tensor cores, a warp each.

    warp      its share of the depth: `nybble.schedules.cuda.stream_sweep`
    block     sums of the warps that shared the depth, added in order through shared memory
    splits    partial sums to a workspace, which a second kernel adds in order

What a record means, a `Layer` says. `nybble.schedules.cuda.stream_plan` has the choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.stream_plan import Plan, Work, shared_bytes
from nybble.schedules.cuda.stream_ring import WARP, Source
from nybble.schedules.cuda.stream_sweep import Layer, Place, Sweep

THREADS = 256  # of the kernel that adds partial sums


@dataclass(frozen=True)
class Stream:
    """One kernel under construction.

    Attributes:
        work: what the layer asks for.
        plan: the decisions.
        layer: the family.
        source: the weights.
        rows: of activations, an expression.
        channels: of the output.
    """

    work: Work
    plan: Plan
    layer: Layer
    source: Source
    rows: Any
    channels: int

    def emit(self) -> None:
        """Emits all of it."""
        work, plan = self.work, self.plan
        partial = None
        if plan.splits > 1:
            size = plan.splits * self.rows * self.channels
            partial = T.alloc_buffer((size,), self.layer.dtype)
        tiles = (self.rows + plan.tile - 1) // plan.tile
        columns = ceil(work.blocks / plan.across)
        ring, held, sums = (size // 4 for size in shared_bytes(work, plan))
        with (
            T.launch_thread("blockIdx.x", columns) as column,
            T.launch_thread("blockIdx.y", tiles) as tile,
            T.launch_thread("blockIdx.z", plan.splits) as split,
            T.launch_thread("threadIdx.x", plan.warps * WARP) as thread,
        ):
            shared = T.alloc_buffer((max(ring + held, sums),), "uint32", scope="shared.dyn")
            warp, lane = T.Bind(thread // WARP), T.Bind(thread % WARP)
            block = T.Bind(tirx.min(column * plan.across + warp % plan.across, work.blocks - 1))
            row = T.Bind(_int32(tile) * plan.tile)
            place = Place(thread, lane, row, block)
            Sweep(work, plan, self.layer, self.source, place, (shared, ring, warp, split)).emit()
            self._reduce(place, shared, warp, (column, split, partial))
        if partial is not None:
            self._add_up(partial)

    # ------------------------------------------------------------ the sums

    def _reduce(self, place: Place, shared: Any, warp: Any, at: tuple[Any, Any, Any]) -> None:
        plan, width = self.plan, self.work.width
        (column, split, partial), line = at, width + 4  # 4 more keep lanes in different banks
        view = T.decl_buffer(
            (plan.warps * plan.tile * line,), self.layer.dtype, data=shared.data, scope="shared.dyn"
        )
        T.evaluate(T.cuda.cta_sync())
        mine = T.Bind((warp * plan.tile + place.lane % 4 * 2) * line + place.lane // 4)
        for row, channel, value in self.layer.sums():
            T.buffer_store(view, value, [mine + (row * line + channel)])
        T.evaluate(T.cuda.cta_sync())
        wide, rows = plan.across * width, plan.tile
        if self.work.rows is not None:
            rows = min(rows, self.work.rows)
        count, threads = wide * rows, plan.warps * WARP
        with T.serial(ceil(count / threads)) as turn:
            i = T.Bind(turn * threads + place.thread)
            beside, row = T.Bind(i % wide), T.Bind(i // wide)
            channel, far = T.Bind(column * wide + beside), T.Bind(place.row + row)
            exists = tirx.all(channel < self.channels, far < self.rows)
            with T.If(exists if count % threads == 0 else tirx.all(i < count, exists)), T.Then():
                inner = (beside // width * plan.tile + row) * line + beside % width
                step = plan.across * plan.tile * line
                total = _sum(view, [inner + k * step for k in range(plan.along)])
                if partial is None:
                    self.layer.store(far, channel, total)
                else:
                    first = (split * self.rows + far) * self.channels
                    T.buffer_store(partial, total, [first + channel])

    def _add_up(self, partial: Any) -> None:
        count = self.rows * self.channels
        with (
            T.launch_thread("blockIdx.x", (count + THREADS - 1) // THREADS) as block,
            T.launch_thread("threadIdx.x", THREADS) as thread,
        ):
            i = T.Bind(_int32(block) * THREADS + thread)
            with T.If(i < count), T.Then():
                total = _sum(partial, [i + k * count for k in range(self.plan.splits)])
                self.layer.store(i // self.channels, i % self.channels, total)


def flat(buffer: Any) -> Any:
    """The same memory with one index."""
    return T.decl_buffer((prod(map(int, buffer.shape)),), str(buffer.dtype), data=buffer.data)


def _sum(buffer: Any, at: list[Any]) -> Any:
    total = T.Bind(buffer[at[0]])
    for index in at[1:]:
        total = T.Bind(total + buffer[index])
    return total


def _int32(value: Any) -> Any:
    return value if isinstance(value, int) else T.Cast("int32", value)
