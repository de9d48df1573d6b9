"""What a record of a weight-only layer means: a `nybble.schedules.cuda.stream_sweep.Layer`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.halves import PAIRS, Decoded
from nybble.schedules.cuda.stream_plan import ROWS, Plan
from nybble.schedules.cuda.stream_ring import Words
from nybble.schedules.cuda.stream_sweep import Place
from nybble.schedules.cuda.weight_only_layout import DEPTH, Layout
from nybble.schedules.kernel import Epilogue

HALVES = DEPTH // 32
"""Of a record: 32 inputs, of which a lane holds 8."""
WORDS = 4
"""With 8 inputs."""
LINE = DEPTH // 2
"""Words of a record's activations."""


@dataclass(frozen=True)
class Given:
    """A kernel's parameters as flat buffers; see `nybble.schedules.cuda.weight_only_layout`.

    Attributes:
        x: float32 activations.
        other: the second branch, or None.
        numbers: of groups, or None.
        table: factors, then biases.
        output: float32.
        rows: of activations, an expression.
    """

    x: Any
    other: Any
    numbers: Any
    table: Any
    output: Any
    rows: Any


@dataclass(frozen=True)
class Registers:
    """Of a lane.

    Attributes:
        fetched: activations on their way to shared memory.
        total: sums; 4 for each tile and operand: channels g, g, g + 8, g + 8, rows 2t, 2t + 1, ….
        part: those of a group; ``total`` itself where there are no groups.
        pairs: weights of half a record.
        x: activations of half a record.
        now: numbers of the run.
        following: of the next.
        zeros: 1024 + zero twice, for each part, tile and row of the lane.
    """

    fetched: Any
    total: Any
    part: Any
    pairs: Any
    x: Any
    now: Any
    following: Any
    zeros: Any


class HalfLayer:
    """A weight-only layer in half precision.

    Args:
        layout: of the weights.
        plan: the decisions.
        wide: whether an instruction of the tensor cores takes 16 inputs, else 8.
        given: the parameters.
        held: rows of activations in shared memory, and words from one to the next.
        epilogue: second branch and clamp.
    """

    dtype = "float32"

    def __init__(
        self, layout: Layout, plan: Plan, wide: bool, given: Given, held: tuple[int, int],
        epilogue: Epilogue,
    ):  # fmt: skip
        self.layout, self.plan, self.wide, self.given = layout, plan, wide, given
        (self.held, self.line), self.epilogue = held, epilogue
        self.registers: Any = None

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
                value = T.Cast("float16", self.registers.fetched[at + lane])
                T.buffer_store(halves, value, [lane])
            words = T.decl_buffer((4,), "uint32", data=halves.data, scope="local")
            shared.store(row * self.line + column * 4, words.vload([0], "uint32x4"), 4)

    def _fetch(self, at: int, row: Any, first: Any) -> None:
        """Eight activations from position ``first`` of the filled-up row on."""
        layout, k, values = self.layout, self.layout.k, self.registers.fetched
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
        layout, operands = self.layout, self.plan.operands
        total = _local(layout.tiles * operands * 4, "float32")
        count = layout.parts * layout.numbers * layout.tiles
        columns = self.plan.along * self.plan.chunk * layout.span * DEPTH // 8
        fetches = ceil(self.held * columns / (self.plan.warps * 32))
        self.registers = Registers(
            _local(fetches * 8, "float32"),
            total,
            _local(layout.tiles * operands * 4, "float32") if layout.is_grouped else total,
            _local(PAIRS // HALVES, "uint32"),
            _local(operands * WORDS, "uint32"),
            _local(count, "uint32") if count else None,
            _local(count, "uint32") if count else None,
            _local(layout.parts * layout.tiles * 2, "uint32") if layout.zero is None else None,
        )
        _clear(total)
        if count:
            self._fetch_numbers(place, run if layout.is_grouped else 0)
        if not layout.is_grouped:
            self._take_numbers()

    def begin(self, place: Place, run: Any, following: Any) -> None:
        """Takes the run's numbers; the next one's are on their way while it is computed."""
        del run
        if self.layout.is_grouped:
            self._take_numbers()
            self._fetch_numbers(place, following)
            _clear(self.registers.part)

    def end(self) -> None:
        """Adds scale·part, unless each part of a record has done so."""
        if self.layout.is_grouped and self.layout.parts == 1:
            self._flush(0)

    def _fetch_numbers(self, place: Place, run: Any) -> None:
        to = self.registers.following
        layout, count = self.layout, int(to.shape[0])
        scaled = layout.scaled if layout.is_grouped else 1
        at = place.block * scaled + run // layout.pieces
        at = T.Bind((at * 8 + place.lane // 4) * count)
        step = next(n for n in (4, 2, 1) if count % n == 0)
        for word in range(0, count, step):
            if step == 1:
                T.buffer_store(to, self.given.numbers[at + word], [word])
            else:
                found = self.given.numbers.vload([at + word], f"uint32x{step}")
                T.buffer_store(to, found, [T.ramp(word, 1, step)])

    def _take_numbers(self) -> None:
        if self.registers.now is None:
            return
        for word in range(int(self.registers.now.shape[0])):
            T.buffer_store(self.registers.now, self.registers.following[word], [word])
        if self.layout.zero is not None:
            return
        for part in range(self.layout.parts):
            for tile in range(self.layout.tiles):
                both = self.registers.now[self._number(part, self.layout.numbers - 1, tile)]
                for row, halves in enumerate((0x1010, 0x3232)):
                    to = self.registers.zeros[(part * self.layout.tiles + tile) * 2 + row]
                    T.evaluate(T.ptx["prmt.b32"](to, both, both, _word(halves)))

    def _number(self, part: int, kind: int, tile: int) -> int:
        return (part * self.layout.numbers + kind) * self.layout.tiles + tile

    def _flush(self, part: int) -> None:
        """Adds scale·part to the total, for the groups of one part of a record."""
        total, sums, now = self.registers.total, self.registers.part, self.registers.now
        halves = T.decl_buffer((2 * int(now.shape[0]),), "float16", data=now.data, scope="local")
        operands, fma = self.plan.operands, T.ptx["fma.rn.f32"]
        for tile in range(self.layout.tiles):
            first = 2 * self._number(part, 0, tile)
            scale = [T.Bind(T.Cast("float32", halves[first + row])) for row in (0, 1)]
            for i in range(tile * operands * 4, (tile + 1) * operands * 4):
                T.evaluate(fma(total[i], scale[i % 4 // 2], sums[i], total[i]))

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

                codes.decode(word, self.registers.pairs, pairs, self._zero(part, tile))
                for step in range(2):
                    self._multiply(tile, step)
            if layout.parts > 1:
                self._flush(half)
                if half + 1 < HALVES:
                    _clear(self.registers.part)

    def _zero(self, part: int, tile: int) -> Decoded:
        if self.layout.zero is not None:
            return Decoded(self.layout.zero)
        first = (part * self.layout.tiles + tile) * 2
        return Decoded(None, lambda pair: self.registers.zeros[first + pair % 2])

    def _load(self, place: Place, shared: Any, at: Any) -> None:
        """A lane's 8 activations of row lane / 4 of each operand; of rows beyond, any."""
        column = T.Bind(at + place.lane % 4 * WORDS)
        for operand in range(self.plan.operands):
            row = operand * ROWS + place.lane // 4
            row = T.Bind(tirx.min(row, self.held - 1) if self.held % ROWS else row)
            found = shared.load(row * self.line + column, WORDS)
            T.buffer_store(self.registers.x, found, [T.ramp(operand * WORDS, 1, WORDS)])

    def _multiply(self, tile: int, step: int) -> None:
        """16 channels by all rows, over 16 inputs."""
        a = [self.registers.pairs[4 * step + i] for i in range(4)]
        for operand in range(self.plan.operands):
            first = (tile * self.plan.operands + operand) * 4
            sums = [self.registers.part[first + i] for i in range(4)]
            b = [self.registers.x[operand * WORDS + 2 * step + i] for i in range(2)]
            name = "mma.sync.aligned.m16n8k{}.row.col.f32.f16.f16.f32"
            if self.wide:
                T.evaluate(T.ptx[name.format(16)](*sums, *a, *b, *sums))
                continue
            for i in range(2):
                T.evaluate(T.ptx[name.format(8)](*sums, *a[2 * i : 2 * i + 2], b[i], *sums))

    # ------------------------------------------------------------ results

    def sums(self) -> list[tuple[int, int, Any]]:
        """Of a lane, as `Registers.total` has them."""
        operands, total = self.plan.operands, self.registers.total
        found = []
        for i in range(self.layout.tiles * operands * 4):
            tile, operand = divmod(i // 4, operands)
            found.append((operand * ROWS + i % 2, tile * 16 + i % 4 // 2 * 8, total[i]))
        return found

    def store(self, row: Any, channel: Any, value: Any) -> None:
        """clamp(factor·value + bias + other)."""
        given, width = self.given, self.layout.blocks * self.layout.width
        at = T.Bind(row * self.layout.o + channel)
        value = T.Bind(value * given.table[channel] + given.table[channel + width])
        if given.other is not None:
            value = T.Bind(value + given.other[at])
        for bound, beyond in ((self.epilogue.lo, tirx.LT), (self.epilogue.hi, tirx.GT)):
            if self.epilogue.kind == "float" and abs(bound) < inf:  # NaN stays
                limit = tirx.const(float(bound), "float32")
                value = T.Bind(T.Select(beyond(value, limit), limit, value))
        T.buffer_store(given.output, value, [at])


def _local(size: int, dtype: str) -> Any:
    return T.alloc_buffer((size,), dtype, scope="local")


def _clear(buffer: Any) -> None:
    for i in range(int(buffer.shape[0])):
        T.buffer_store(buffer, tirx.const(0, buffer.dtype), [i])


def _word(value: int) -> Any:
    return tirx.const(value, "uint32")
