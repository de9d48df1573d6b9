"""What a record of bit planes means: a `nybble.schedules.cuda.stream_sweep.Layer`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.buffers import Buffers
from nybble.schedules.cuda import mma_store, row_scales
from nybble.schedules.cuda.bit_layout import STEP
from nybble.schedules.cuda.bit_planes import Pixels
from nybble.schedules.cuda.stream_plan import ROWS, Plan
from nybble.schedules.cuda.stream_ring import Words
from nybble.schedules.cuda.stream_sweep import Place
from nybble.schedules.kernel import Problem

ONES = (1 << 32) - 1


@dataclass(frozen=True)
class Bits:
    """1-bit products of 16 channels by 8 rows over 8 words.

    Attributes:
        wide: in one instruction that counts common ones; else in four that count differences.
    """

    wide: bool

    def multiply(self, sums: list[Any], a: list[Any], b: list[Any]) -> None:
        """Emits the products: registers as in `nybble.schedules.cuda.tensor_core`."""
        if self.wide:
            mma = T.ptx["mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc"]
            T.evaluate(mma(*sums, *a, *b, *sums))
            return
        mma = T.ptx["mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc"]
        for half in (0, 1):  # 8 channels
            mine = sums[2 * half : 2 * half + 2]
            for depth in (0, 1):  # 4 words
                T.evaluate(mma(*mine, a[half + 2 * depth], b[depth], *mine))


@dataclass(frozen=True)
class Held:
    """Activations in shared memory.

    Attributes:
        rows: of a block.
        pitch: words from one to the next.
        total: rows of the product, an expression.
    """

    rows: int
    pitch: int
    total: Any


class BitLayer:
    """A layer of bit planes.

    Args:
        problem: the layer.
        plan: the decisions.
        core: instructions.
        pixels: the activations.
        buffers: of the kernel: constants are weights, table, and the counts of weights.
        held: of a block.
    """

    dtype = "int32"

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        core: Bits,
        pixels: Pixels,
        buffers: Buffers,
        held: Held,
    ):
        self.problem, self.layout, self.plan, self.core = problem, pixels.layout, plan, core
        self.pixels, self.buffers, self.held = pixels, buffers, held
        self.planes = len(self.layout.weights.coefs), len(self.layout.activations.coefs)
        self.total: Any = None
        self.ones: Any = None
        self.x: Any = None
        self.fetched: Any = None

    @property
    def counts_rows(self) -> bool:
        """Whether sums of activations are needed, as one more tile of the product gives them."""
        return self.layout.weights.signs or not self.core.wide

    # ------------------------------------------------------------ activations

    @property
    def _words(self) -> int:
        """Of a chunk, for each plane of a row."""
        return self.plan.along * self.plan.chunk * STEP

    def _pieces(self, place: Place) -> Iterator[tuple[int, Any, Any]]:
        """What a thread loads: number of the load, row and word."""
        total, threads = self.held.rows * self._words, self.plan.warps * 32
        for turn in range(ceil(total / threads)):
            i = T.Bind(turn * threads + place.thread)
            with T.If(i < total), T.Then():
                yield turn, T.Bind(i // self._words), T.Bind(i % self._words)

    def fetch(self, place: Place, run: Any) -> None:
        """Loads or makes words of every plane; zeros beyond the ends."""
        for turn, row, word in self._pieces(place):
            found = self.pixels.words(
                T.Bind(place.row + row), T.Bind(run * STEP + word), self.held.total
            )
            for plane in range(self.planes[1]):
                T.buffer_store(self.fetched, found[plane], [turn * self.planes[1] + plane])

    def put(self, place: Place, shared: Words) -> None:
        """Stores them as [run][plane][8 words]."""
        for turn, row, word in self._pieces(place):
            at = T.Bind(row * self.held.pitch + word // STEP * (self.planes[1] * STEP))
            for plane in range(self.planes[1]):
                value = self.fetched[turn * self.planes[1] + plane]
                shared.store(at + (plane * STEP + word % STEP), value, 1)

    # ------------------------------------------------------------ runs

    def clear(self, place: Place, run: Any) -> None:
        """Zeros."""
        del place, run
        ws, xs = self.planes
        size = self.layout.tiles * ws * self.plan.operands * xs * 4
        self.total = T.alloc_buffer((size,), "uint32", scope="local")
        self.x = T.alloc_buffer((self.plan.operands * xs * 2,), "uint32", scope="local")
        _clear(self.total)
        fetches = ceil(self.held.rows * self._words / (self.plan.warps * 32))
        self.fetched = T.alloc_buffer((fetches * xs,), "uint32", scope="local")
        if self.counts_rows:
            self.ones = T.alloc_buffer((self.plan.operands * xs * 4,), "uint32", scope="local")
            _clear(self.ones)

    def begin(self, place: Place, run: Any, following: Any) -> None:
        """A run is a record."""

    def end(self) -> None:
        """A run is a record."""

    def record(self, place: Place, words: Any, shared: Words, at: Any) -> None:
        """All planes of weights by all planes of activations."""
        self._load(place, shared, at)
        ws, xs = self.planes
        for operand in range(self.plan.operands * xs):
            b = [self.x[operand * 2 + i] for i in range(2)]
            for tile in range(self.layout.tiles * ws):
                a = [words[tile * 4 + i] for i in range(4)]
                self.core.multiply(self._sums(tile, operand), a, b)
            if self.counts_rows:
                same = tirx.const(ONES if self.core.wide else 0, "uint32")
                sums = [self.ones[operand * 4 + i] for i in range(4)]
                self.core.multiply(sums, [same] * 4, b)

    def _sums(self, tile: int, operand: int) -> list[Any]:
        first = (tile * self.plan.operands * self.planes[1] + operand) * 4
        return [self.total[first + i] for i in range(4)]

    def _load(self, place: Place, shared: Words, at: Any) -> None:
        """A lane's two words of row lane / 4 of each operand, for each plane."""
        column = T.Bind(at + place.lane % 4 * 2)
        for operand in range(self.plan.operands):
            row = operand * ROWS + place.lane // 4
            row = T.Bind(tirx.min(row, self.held.rows - 1) if self.held.rows % ROWS else row)
            for plane in range(self.planes[1]):
                found = shared.load(row * self.held.pitch + plane * STEP + column, 2)
                first = (operand * self.planes[1] + plane) * 2
                T.buffer_store(self.x, found, [T.ramp(first, 1, 2)])

    # ------------------------------------------------------------ results

    def sums(self) -> list[tuple[int, int, Any]]:
        """Of a lane; doubled, and without the counts of weights, where differences are counted."""
        found = []
        for tile in range(self.layout.tiles):
            for operand in range(self.plan.operands):
                for i in range(4):
                    value = T.Bind(self._combined(tile, operand, i))
                    found.append((operand * ROWS + i % 2, tile * 16 + i // 2 * 8, value))
        return found

    def _combined(self, tile: int, operand: int, i: int) -> Any:
        """Σ cw·cx·popcount, and Σ x where weights are signs."""
        (ws, xs), (cw, cx) = self.planes, self.layout.factors
        value: Any = tirx.const(0, "int32")
        rows: Any = tirx.const(0, "int32")  # Σ cx·popcount(x)
        for plane in range(xs):
            for weight in range(ws):
                product = self._sums(tile * ws + weight, operand * xs + plane)[i]
                value = value + T.reinterpret("int32", product) * (cw[weight] * cx[plane])
            if self.counts_rows:
                ones = self.ones[(operand * xs + plane) * 4 + i]
                rows = rows + T.reinterpret("int32", ones) * cx[plane]
        extra = 1 if self.layout.weights.signs else 0
        if self.core.wide:
            return value + rows * extra if extra else value
        return rows * (sum(cw) + 2 * extra) - value

    def store(self, row: Any, channel: Any, value: Any) -> None:
        """Bias, epilogue, and the store of one output."""
        _, table, counts = self.buffers.constants
        spec, at = (
            mma_store.table_spec(self.problem, self.layout),
            row * self.layout.matrix.channels,
        )
        at = T.Bind(at + channel)
        if not self.core.wide:
            value = T.shift_right(value + counts[channel], tirx.const(1, "int32"))
        columns = int(spec.shape[1])
        given = [T.Bind(table[row * columns + channel]) for row in range(1, int(spec.shape[0]))]
        other = self.buffers.other
        if row_scales.is_there(self.problem.epilogue):
            other = T.Bind(row_scales.factor(other[row]))
        elif other is not None:
            other = T.Bind(T.Cast("int32", other[at]))
        acc = T.Bind(value + table[channel])
        kept = mma_store.value_of(self.problem, acc, given, other, self.buffers.entries)
        T.buffer_store(self.buffers.output, T.Cast(str(self.buffers.output.dtype), kept), [at])


def _clear(buffer: Any) -> None:
    for i in range(int(buffer.shape[0])):
        T.buffer_store(buffer, tirx.const(0, buffer.dtype), [i])
