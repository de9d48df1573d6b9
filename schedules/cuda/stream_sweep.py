"""A warp's way through the depth: run by run, record by record.

before    the first records of weights and the first chunk of activations are asked for
chunk     the next chunk is asked for; the runs of this one are computed; the next one is put
          into the other half of shared memory; a barrier
record    weights from the warp's own ring, activations from shared memory, products
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.stream_plan import Plan, Work, shared_bytes
from nybble.schedules.cuda.stream_ring import WARP, Ring, Source, Words, ring_of


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

    def fetch(self, place: Place, run: Any) -> None:
        """Emits the load of a chunk of activations, from ``run`` on, to registers."""

    def put(self, place: Place, shared: Words) -> None:
        """Emits the store of those registers to shared memory."""

    def clear(self, place: Place, run: Any) -> None:
        """Emits what precedes the first run: sums of 0."""

    def begin(self, place: Place, run: Any, following: Any) -> None:
        """Emits what precedes the records of a run; the next one's numbers may be fetched."""

    def record(self, place: Place, words: Any, shared: Words, at: Any) -> None:
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
class Sweep:
    """The code of one warp.

    Attributes:
        work: what the layer asks for.
        plan: the decisions.
        layer: the family.
        source: the weights.
        place: the thread.
        at: shared memory; where activations begin in it; the warp; which split of the depth.
    """

    work: Work
    plan: Plan
    layer: Layer
    source: Source
    place: Place
    at: tuple[Any, int, Any, Any]

    def emit(self) -> None:
        """Emits all of it."""
        plan, (shared, _, warp, split) = self.plan, self.at
        along, chunk = T.Bind(warp // plan.across), plan.along * plan.chunk
        lane = self.place.lane
        source = ring_of(
            self.source, plan.stages, (shared, warp, lane), lambda step: self._address(along, step)
        )
        source.start()
        self.layer.clear(self.place, self._known(along, 0))
        self.layer.fetch(self.place, split * plan.runs)
        self.layer.put(self.place, self._half(0))
        T.evaluate(T.cuda.cta_sync())
        with T.serial(plan.chunks) as turn:
            with self._unless_last(turn):
                self.layer.fetch(self.place, split * plan.runs + (turn + 1) * chunk)
            self._chunk(source, along, turn)
            with self._unless_last(turn):
                self.layer.put(self.place, self._half(turn + 1))
            if plan.chunks > 1:
                T.evaluate(T.cuda.cta_sync())
        source.finish()  # the copies for steps behind the last one: their place is used again

    def _half(self, turn: Any) -> Words:
        """The place of a chunk's activations."""
        size = shared_bytes(self.work, self.plan)[1] // 4 // self.plan.buffers
        return Words(self.at[0], self.at[1] + turn % self.plan.buffers * size)

    @contextmanager
    def _unless_last(self, turn: Any) -> Iterator[None]:
        """There is no chunk behind the last one (of one chunk, this code is dropped)."""
        with T.If(turn + 1 < self.plan.chunks), T.Then():
            yield

    def _chunk(self, source: Ring, along: Any, turn: Any) -> None:
        work, plan, line = self.work, self.plan, self.work.line // 4
        with T.serial(plan.chunk) as inside:
            i = T.Bind(turn * plan.chunk + inside)
            self.layer.begin(self.place, self._known(along, i), self._known(along, i + 1))
            with T.serial(work.span) as part:
                source.take(T.Bind(i * work.span + part))
                begin = (along * plan.chunk + inside) * line + part * (line // work.span)
                with self._unless_beyond(self._run(along, i)):
                    held = self._half(turn)
                    self.layer.record(self.place, source.registers, held, T.Bind(begin))
            self.layer.end()

    @contextmanager
    def _unless_beyond(self, run: Any) -> Iterator[None]:
        """Leaves out the runs beyond the end, which a warp may have where the cut is uneven."""
        if self.plan.runs * self.plan.splits == self.work.runs:
            yield
            return
        with T.If(run < self.work.runs), T.Then():
            yield

    def _run(self, along: Any, i: Any) -> Any:
        """The i-th run of a warp; it may be beyond the end."""
        plan = self.plan
        turn = 0 if plan.chunks == 1 else i // plan.chunk
        inside = i if plan.chunks == 1 else i % plan.chunk
        return self.at[3] * plan.runs + (turn * plan.along + along) * plan.chunk + inside

    def _known(self, along: Any, i: Any) -> Any:
        return tirx.min(self._run(along, i), self.work.runs - 1)

    def _address(self, along: Any, step: Any) -> Any:
        """A lane's first word of the record of a step."""
        work, span = self.work, self.work.span
        record = self._known(along, step // span) * span + step % span
        first = (self.place.block * (work.runs * span) + record) * (self.source.words * WARP)
        return first + self.place.lane * self.source.vector
