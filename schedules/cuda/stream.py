"""The kernel for products of few rows: weights stream from memory to tensor cores, a warp each.

    block     activations of its rows to shared memory (`Layer.stage`), one barrier
    warp      its share of the depth: run by run, record by record, from a ring of its own
    block     sums of the warps that shared the depth, added in order through shared memory
    splits    partial sums to a workspace, which a second kernel adds in order

What a record means, a `Layer` says. `nybble.schedules.cuda.stream_plan` has the choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.stream_plan import Plan, Work, shared_bytes
from nybble.schedules.cuda.stream_ring import WARP, Source, Words, ring_of

THREADS = 256  # of the kernel that adds partial sums


@dataclass(frozen=True)
class Place:
    """Where a thread is.

    Attributes:
        thread: in the block.
        lane: in the warp.
        row: first row of the block.
        block: of channels, which the warp works on; the last one again beyond the end.
    """

    thread: Any
    lane: Any
    row: Any
    block: Any


class Layer(Protocol):
    """What the template needs to know of a family."""

    dtype: str
    """Of the sums."""

    def stage(self, place: Place, shared: Any, run: Any, count: int) -> None:
        """Emits the load of ``count`` runs of activations, from ``run`` on, to shared memory."""

    def clear(self, place: Place, run: Any) -> None:
        """Emits what precedes the first run: sums of 0."""

    def begin(self, place: Place, run: Any, following: Any) -> None:
        """Emits what precedes the records of a run; the next one's numbers may be fetched."""

    def record(self, place: Place, words: Any, shared: Any, at: Any) -> None:
        """Emits the products of a record.

        Args:
            place: the thread.
            words: its registers.
            shared: the activations.
            at: word of a row where the record's activations begin.
        """

    def end(self) -> None:
        """Emits what follows the records of a run."""

    def sums(self) -> list[tuple[int, int, Any]]:
        """(row - lane's, channel - lane's, value) of every sum of a lane.

        A lane has rows 2·(lane % 4) and channel lane / 4 besides.
        """

    def store(self, row: Any, channel: Any, value: Any) -> None:
        """Emits epilogue and store of one output that is known to exist."""


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
            self._sweep(place, shared, ring, (warp, split))
            self._reduce(place, shared, warp, (column, split, partial))
        if partial is not None:
            self._add_up(partial)

    # ------------------------------------------------------------ the depth

    def _sweep(self, place: Place, shared: Any, ring: int, at: tuple[Any, Any]) -> None:
        work, plan, (warp, split) = self.work, self.plan, at
        along = T.Bind(warp // plan.across)

        def run_of(i: Any) -> Any:
            """The i-th run of a warp; it may be beyond the end."""
            turn = 0 if plan.chunks == 1 else i // plan.chunk
            inside = i if plan.chunks == 1 else i % plan.chunk
            return split * plan.runs + (turn * plan.along + along) * plan.chunk + inside

        def known(i: Any) -> Any:
            return tirx.min(run_of(i), work.runs - 1)

        def address(step: Any) -> Any:
            record = known(step // work.span) * work.span + step % work.span
            first = (place.block * (work.runs * work.span) + record) * (self.source.words * WARP)
            return first + place.lane * self.source.vector

        source = ring_of(self.source, plan.stages, (shared, warp, place.lane), address)
        source.start()
        self.layer.clear(place, known(0))
        line = work.line // 4
        with T.serial(plan.chunks) as turn:
            if plan.chunks > 1:
                T.evaluate(T.cuda.cta_sync())  # all have read what will be overwritten
            first = split * plan.runs + turn * (plan.along * plan.chunk)
            self.layer.stage(place, Words(shared, ring), first, plan.along * plan.chunk)
            T.evaluate(T.cuda.cta_sync())
            with T.serial(plan.chunk) as inside:
                i = T.Bind(turn * plan.chunk + inside)
                self.layer.begin(place, known(i), known(i + 1))
                with T.serial(work.span) as part:
                    source.take(T.Bind(i * work.span + part))
                    begin = (along * plan.chunk + inside) * line + part * (line // work.span)
                    held, begin = Words(shared, ring), T.Bind(begin)
                    with self._guard(run_of(i)):
                        self.layer.record(place, source.registers, held, begin)
                self.layer.end()
        source.finish()  # the copies for steps behind the last one: their place is used again

    @contextmanager
    def _guard(self, run: Any) -> Iterator[None]:
        """Leaves out the runs beyond the end, which a warp may have where the cut is uneven."""
        if self.plan.runs * self.plan.splits == self.work.runs:
            yield
            return
        with T.If(run < self.work.runs), T.Then():
            yield

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
