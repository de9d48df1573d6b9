"""What a record of a weight-only layer means: a `nybble.schedules.cuda.stream_sweep.Layer`."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.halves import PAIRS
from nybble.schedules.cuda.stream_plan import ROWS, Plan
from nybble.schedules.cuda.stream_ring import Words
from nybble.schedules.cuda.stream_sweep import Place
from nybble.schedules.cuda.weight_only_layout import DEPTH, Layout
from nybble.schedules.cuda.weight_only_sums import Given, Sums, clear, local
from nybble.schedules.kernel import Epilogue

HALVES = DEPTH // 32
"""Of a record: 32 inputs, of which a lane holds 8."""
WORDS = 4
"""With 8 inputs."""
LINE = DEPTH // 2
"""Words of a record's activations."""


class HalfLayer(Sums):
    """A weight-only layer in half precision.

    Args:
        layout: of the weights.
        plan: the decisions.
        wide: whether an instruction of the tensor cores takes 16 inputs, else 8.
        given: the parameters.
        held: rows of activations in shared memory, and words from one to the next.
        epilogue: second branch and clamp.

    Attributes:
        fetched: registers for activations on their way to shared memory.
        pairs: for weights of half a record.
        x: for activations of half a record.
    """

    dtype = "float32"

    def __init__(
        self, layout: Layout, plan: Plan, wide: bool, given: Given, held: tuple[int, int],
        epilogue: Epilogue,
    ):  # fmt: skip
        super().__init__(layout, plan.operands, given, epilogue)
        self.plan, self.wide, (self.held, self.line) = plan, wide, held
        self.fetched: Any = None
        self.pairs: Any = None
        self.x: Any = None

    # ------------------------------------------------------------ activations

    def _pieces(self, place: Place) -> Iterator[tuple[int, Any, Any]]:
        """Where a thread loads: register, row and column of 8 activations each."""
        columns = self.plan.along * self.plan.chunk * self.layout.span * DEPTH // 8
        total, threads = self.held * columns, self.plan.warps * 32
        for turn in range(ceil(total / threads)):
            i = T.Bind(turn * threads + place.thread)
            with T.If(i < total), T.Then():
                yield turn * 8, T.Bind(i // columns), T.Bind(i % columns)

    def fetch(self, place: Place, run: Any) -> None:
        """Loads a chunk of every row; zeros beyond the ends."""
        start = T.Bind(run * (self.layout.span * DEPTH))
        for at, row, column in self._pieces(place):
            self._fetch(at, T.Bind(place.row + row), T.Bind(start + column * 8))

    def put(self, place: Place, shared: Words) -> None:
        """Rounds them to half precision."""
        for at, row, column in self._pieces(place):
            halves = T.alloc_buffer((8,), "float16", scope="local")
            for lane in range(8):
                value = T.Cast("float16", self.fetched[at + lane])
                T.buffer_store(halves, value, [lane])
            words = T.decl_buffer((4,), "uint32", data=halves.data, scope="local")
            shared.store(row * self.line + column * 4, words.vload([0], "uint32x4"), 4)

    def _fetch(self, at: int, row: Any, first: Any) -> None:
        """Eight activations from position ``first`` of the filled-up row on."""
        layout, k, values = self.layout, self.layout.k, self.fetched
        for lane in range(8):
            T.buffer_store(values, tirx.const(0, "float32"), [at + lane])
        if layout.is_gapless and k % 4 == 0:
            for part in (0, 4):
                with T.If(tirx.all(row < self.given.rows, first + part < k)), T.Then():
                    found = self.given.x.vload([row * k + (first + part)], "float32x4")
                    T.buffer_store(values, found, [T.ramp(at + part, 1, 4)])
            return
        for lane in range(8):
            here, exists = first + lane, row < self.given.rows
            if not layout.is_gapless:
                inside = T.Bind(here % layout.padded)
                exists = tirx.all(exists, inside < layout.group)
                here = T.Bind(here // layout.padded * layout.group + inside)
            with T.If(tirx.all(exists, here < k)), T.Then():
                T.buffer_store(values, self.given.x[row * k + here], [at + lane])

    # ------------------------------------------------------------ runs

    def clear(self, place: Place, run: Any) -> None:
        """Zeros, and the numbers of the first run."""
        columns = self.plan.along * self.plan.chunk * self.layout.span * DEPTH // 8
        self.fetched = local(ceil(self.held * columns / (self.plan.warps * 32)) * 8, "float32")
        self.pairs = local(PAIRS // HALVES, "uint32")
        self.x = local(self.plan.operands * WORDS, "uint32")
        self.allocate()
        self._fetch_numbers(place, run if self.layout.is_grouped else 0)
        if not self.layout.is_grouped:
            self.take_numbers()

    def begin(self, place: Place, run: Any, following: Any) -> None:
        """Takes the run's numbers; the next one's are on their way while it is computed."""
        del run
        if self.layout.is_grouped:
            self.take_numbers()
            self._fetch_numbers(place, following)
            clear(self.part)

    def end(self) -> None:
        """Adds scale·part, unless each part of a record has done so."""
        if self.layout.is_grouped and self.layout.parts == 1:
            self.flush(0)

    def _fetch_numbers(self, place: Place, run: Any) -> None:
        self.fetch_numbers(place.block, place.lane, run // self.layout.pieces)

    # ------------------------------------------------------------ products

    def record(self, place: Place, words: Any, shared: Words, at: Any) -> None:
        """Halves of a record, all channels of each."""
        layout, codes = self.layout, self.layout.codes
        for half in range(HALVES):
            self._load(place, shared, at + half * (LINE // HALVES))
            pairs = range(half * PAIRS // HALVES, (half + 1) * PAIRS // HALVES)
            for tile in range(layout.tiles):
                part = half if layout.parts > 1 else 0

                def word(i: int, tile: int = tile) -> Any:
                    return words[tile * layout.bits + i]

                codes.decode(word, self.pairs, pairs, self.zero(part, tile))
                for step in range(2):
                    self._multiply(tile, step)
            if layout.parts > 1:
                self.flush(half)
                if half + 1 < HALVES:
                    clear(self.part)

    def _load(self, place: Place, shared: Any, at: Any) -> None:
        """A lane's 8 activations of row lane / 4 of each operand; of rows beyond, any."""
        column = T.Bind(at + place.lane % 4 * WORDS)
        for operand in range(self.plan.operands):
            row = operand * ROWS + place.lane // 4
            row = T.Bind(tirx.min(row, self.held - 1) if self.held % ROWS else row)
            found = shared.load(row * self.line + column, WORDS)
            T.buffer_store(self.x, found, [T.ramp(operand * WORDS, 1, WORDS)])

    def _multiply(self, tile: int, step: int) -> None:
        """16 channels by all rows, over 16 inputs."""
        a = [self.pairs[4 * step + i] for i in range(4)]
        for operand in range(self.plan.operands):
            first = (tile * self.plan.operands + operand) * 4
            sums = [self.part[first + i] for i in range(4)]
            b = [self.x[operand * WORDS + 2 * step + i] for i in range(2)]
            name = "mma.sync.aligned.m16n8k{}.row.col.f32.f16.f16.f32"
            if self.wide:
                T.evaluate(T.ptx[name.format(16)](*sums, *a, *b, *sums))
                continue
            for i in range(2):
                T.evaluate(T.ptx[name.format(8)](*sums, *a[2 * i : 2 * i + 2], b[i], *sums))
