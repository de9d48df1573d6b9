"""The second tensor of a product: to shared memory, and from there to fragments.

(N, K), `Along`: 64 bytes of depth of each column, like the rows of the first tensor. A lane of
``ldmatrix`` names the column that it reads, so columns come in the order in which a lane has four
neighbours of the output; pieces of 16 bytes are exchanged such that these eight touch all banks.

(K, N), `Across`: 64 columns of each step of the depth, as they lie in memory. ``ldmatrix.trans``
hands lane (g, t) the columns 2g and 2g + 1 of two steps of the depth that the lanes name; from two
such registers, one permutation of bytes each makes the words of both columns:

    lines 4t, 4t + 1:        n0 n1 | n0 n1          prmt 6420:  n0 n0 n0 n0
    lines 4t + 2, 4t + 3:    n0 n1 | n0 n1          prmt 7531:  n1 n1 n1 n1

so a unit of eight columns has every other one of 16, and four sums of a lane are neighbours again.
(PTX ISA, "Warp-level matrix load instruction: ldmatrix".)
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from tvm import tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.matmul_lying import Lying
from nybble.schedules.cuda.matrix import SLAB, Matrix
from nybble.schedules.cuda.mma_loose import cut_of, loose_piece, loose_word, ones_but
from nybble.schedules.cuda.mma_moves import PIECE, Lines, copy, divmod_of, ramp, run
from nybble.schedules.cuda.mma_plan import Plan
from nybble.schedules.cuda.mma_rows import Rows, Slot
from nybble.schedules.cuda.tensor_core import STEP, load_rows
from nybble.schedules.kernel import TensorSpec

GROUP = 64  # columns that lie together in shared memory where the depth is not last
COLUMNS = 16  # columns of one load of fragments: two units


class Exact(Rows):
    """Rows of a tensor that is no weights'.

    Args:
        matrix: the rows as a layer.
        lines: what they become.
        spec: of the tensor.
        source: the tensor, flat.
        tile: shared memory, in words.
        lies: where the rows lie.

    Attributes:
        is_filled: there are zeros beyond the depth; else the other operand has them.
    """

    is_filled = True

    def __init__(
        self, matrix: Matrix, lines: Lines, spec: TensorSpec, source: Any, tile: Any, lies: Lying
    ):  # fmt: skip
        super().__init__(matrix, lines, spec, source, tile)
        self._in_words, self.lies = is_in_words(spec), lies

    def begin_matrix(self, image: Any, first: Any, thread: Any) -> None:
        """Emits what stays the same for all of the depth.

        Args:
            image: the matrix's number.
            first: the block's first row in it.
            thread: of the block.
        """
        self.base = T.Bind(self.lies.start(image))
        self.begin(first, self.matrix.static_rows, thread)

    def _origin(self, row: Any) -> tuple[Any, Any, Any]:
        return T.Bind(self.base + row * self.lies.line), None, None

    def _locate(self, row: int, depth: Any) -> tuple[Any, Any]:
        element, _ = super()._locate(row, depth)
        is_cut = self.matrix.depth % (self.lines.size * self.lines.slabs) and not self.matrix.loose
        return element, depth < self.matrix.depth if is_cut and self.is_filled else None

    def _edges(self, _row: int, depth: Any) -> tuple[Any, int]:
        return depth, self.matrix.elements

    def _fetch_loose(self, held: Any, first: int, slot: Slot) -> None:
        if not self._in_words:
            super()._fetch_loose(held, first, slot)
            return
        loose_piece(held, first, self.words, self.origins[slot.row][0] + slot.depth)
        for word in range(4 if self.is_filled else 0):
            cut = cut_of(slot.depth + (4 * word + 4 - self.matrix.elements))
            T.buffer_store(held, held[first + word] & ones_but(cut, left=False), [first + word])


def is_in_words(spec: TensorSpec) -> bool:
    """Whether a tensor is a whole number of words, whatever its symbolic extents."""
    return prod(extent for extent in spec.shape if isinstance(extent, int)) % 4 == 0


class _Spread(Lines):
    """Lines of which a lane's four are read together with those of three others."""

    def place(self, line: Any, row: Any, piece: Any) -> Any:
        exchange = tirx.bitwise_and(divmod_of(row, 4)[0], 3)
        return line * (SLAB // 4) + tirx.bitwise_xor(piece, exchange) * 4


class Along:
    """A tensor (…, N, K).

    Args:
        matrix: its rows, which are columns of the product.
        plan: how the product is cut.
        spec: of the tensor.
        source: the tensor, flat.
        tile: shared memory, in words.
        lies: where its rows lie.
    """

    transposes = False

    def __init__(
        self, matrix: Matrix, plan: Plan, spec: TensorSpec, source: Any, tile: Any, lies: Lying
    ):  # fmt: skip
        self.plan, self.tile = plan, tile
        lines = _Spread(plan.channels, plan.slabs, SLAB, plan.threads, plan.held)
        self.rows = Exact(matrix, lines, spec, source, tile, lies)
        self.rows.start = self.start = plan.stages * plan.lines.words

    def begin(self, image: Any, column: Any, thread: Any) -> None:
        """Emits what stays the same for all of the depth; ``column`` is the block's first."""
        self.rows.begin_matrix(image, column, thread)

    def copy(self, step: Any, stage: Any) -> None:
        """Emits the asynchronous copies of a step of the depth."""
        self.rows.copy(step, stage)

    def fetch(self, step: Any) -> Any:
        """Emits the loads of a step of the depth; returns the registers."""
        return self.rows.fetch(step)

    def put(self, held: Any, stage: Any) -> None:
        """Emits the stores of what `fetch` gave."""
        self.rows.put(held, 0, stage)

    def aim(self, lane: Any, channel: Any) -> None:
        """Emits what of a lane's places never changes; ``channel`` is the warp's first."""
        unit, half = divmod_of(divmod_of(lane, 8)[0], 2)
        pair, which = divmod_of(tirx.bitwise_and(lane, 7), 2)
        row = T.Bind(channel + pair * 4 + unit * 2 + which)
        lines = self.rows.lines
        self.places = [T.Bind(lines.place(row, row, half + 2 * step)) for step in (0, 1)]

    def load(self, into: list[Any], slab: Any, step: int, group: int) -> None:
        """Emits the load of 16 columns: b0 and b1 of two units."""
        line = slab * self.plan.channels + group * COLUMNS
        load_rows(
            into, T.address_of(self.tile[self.start + line * (SLAB // 4) + self.places[step]])
        )


class Across:
    """A tensor (…, K, N).

    Args:
        plan: how the product is cut, in whole groups of columns.
        spec: of the tensor.
        source: the tensor, flat.
        tile: shared memory, in words.
        lies: where its steps of depth lie.
    """

    transposes = True

    def __init__(self, plan: Plan, spec: TensorSpec, source: Any, tile: Any, lies: Lying):
        self.plan, self.tile, self._in_words = plan, tile, is_in_words(spec)
        self.lies = lies
        self.depth, self.columns = map(int, spec.shape[-2:])
        self.bytes = T.decl_buffer(source.shape, "uint8", data=source.data, layout=None)
        size = (tirx.floordiv(source.shape[0], 4),)
        self.words = T.decl_buffer(size, "uint32", data=source.data, layout=None)
        self.groups = plan.channels // GROUP
        units = (unit for unit in (16, 8, 4) if self.columns % unit == 0)
        self.unit = next(units, 0)  # bytes that are aligned; 0: none
        self.start = plan.stages * plan.lines.words
        self.words_of_stage = plan.slabs * plan.channels * SLAB // 4

    def begin(self, image: Any, column: Any, thread: Any) -> None:
        """Emits what stays the same for all of the depth; ``column`` is the block's first."""
        self.base, self.column = T.Bind(self.lies.start(image)), column
        self.thread = thread

    @property
    def pieces(self) -> int:
        """Of a stage, by one thread."""
        return self.plan.slabs * self.plan.channels * SLAB // PIECE // self.plan.threads

    def _slots(self, step: Any) -> Iterator[tuple[Any, Any, Any]]:
        """(word of the stage, first column, step of the depth) of a thread's pieces."""
        each = GROUP // PIECE
        for n in range(self.pieces):
            line, piece = divmod_of(T.Bind(self.thread + n * self.plan.threads), each)
            part, k = divmod_of(T.Bind(line), SLAB)
            slab, group = divmod_of(T.Bind(part), self.groups)
            exchange = tirx.bitwise_and(divmod_of(k, 4)[0], each - 1)
            at = T.Bind(line * (GROUP // 4) + tirx.bitwise_xor(piece, exchange) * 4)
            column = T.Bind(self.column + group * GROUP + piece * PIECE)
            yield at, column, T.Bind((step * self.plan.slabs + slab) * SLAB + k)

    def _locate(self, column: Any, k: Any) -> tuple[Any, Any]:
        """A unit's element, and whether it is inside the depth (None: always)."""
        if self.unit and self.columns % self.plan.channels:
            column = tirx.min(column, self.columns - self.unit)
        if self.depth % (SLAB * self.plan.slabs) == 0:
            return self.base + k * self.lies.line + column, None
        line = tirx.min(k, self.depth - 1)
        return self.base + line * self.lies.line + column, k < self.depth

    def copy(self, step: Any, stage: Any) -> None:
        """Emits the asynchronous copies of a step of the depth."""
        start = self.start + stage * self.words_of_stage
        for at, column, k in self._slots(step):
            for byte in range(0, PIECE, self.unit):
                element, inside = self._locate(column + byte, k)
                copy(self.tile[start + at + byte // 4], self.bytes[element], self.unit, inside)

    def fetch(self, step: Any) -> Any:
        """Emits the loads of a step of the depth; returns the registers."""
        held = T.alloc_buffer((self.pieces * 4,), "uint32", scope="local", layout=None)
        size = self.unit or (PIECE if self._in_words else 4)
        for n, (_, column, k) in enumerate(self._slots(step)):
            for byte in range(0, PIECE, size):
                element, inside = self._locate(column + byte, k)
                self._fetch(held, n * 4 + byte // 4, T.Bind(element), size // 4)
            for word in range(4 * n, 4 * n + 4 if inside is not None else 4 * n):
                T.buffer_store(held, tirx.Select(inside, held[word], T.uint32(0)), [word])
        return held

    def _fetch(self, held: Any, at: int, element: Any, words: int) -> None:
        if self.unit:
            T.buffer_store(held, run(self.words, element >> 2, words), ramp(at, words))
        elif self._in_words:
            loose_piece(held, at, self.words, element)
        else:
            T.buffer_store(held, loose_word(self.bytes, element, None, None, 0), [at])

    def put(self, held: Any, stage: Any) -> None:
        """Emits the stores of what `fetch` gave."""
        start = self.start + stage * self.words_of_stage
        for n, (at, _, _) in enumerate(self._slots(tirx.const(0, "int32"))):
            T.buffer_store(self.tile, run(held, 4 * n, 4), ramp(start + at, 4))

    def aim(self, lane: Any, channel: Any) -> None:
        """Emits what of a lane's places never changes; ``channel`` is the warp's first."""
        high, which = divmod_of(divmod_of(lane, 8)[0], 2)
        quad, odd = divmod_of(tirx.bitwise_and(lane, 7), 2)
        self.k = T.Bind(high * 16 + quad * 4 + which * 2 + odd)
        self.exchange, self.channel = T.Bind(tirx.bitwise_and(quad, 3)), channel
        self.held = T.alloc_buffer((4,), "uint32", scope="local", layout=None)

    def load(self, into: list[Any], slab: Any, step: int, group: int) -> None:
        """Emits the load of 16 columns: b0 and b1 of two units."""
        part, inside = divmod_of(T.Bind(self.channel + group * COLUMNS), GROUP)
        line = (slab * self.groups + part) * SLAB + step * STEP + self.k
        piece = tirx.bitwise_xor(divmod_of(inside, PIECE)[0], self.exchange)
        address = T.address_of(self.tile[self.start + line * (GROUP // 4) + piece * 4])
        held = [self.held[i] for i in range(4)]
        T.evaluate(script.ptx["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"](*held, address))
        for i, selector in enumerate((0x6420, 0x7531)):
            for half in (0, 1):
                pair = held[2 * half], held[2 * half + 1]
                T.evaluate(script.ptx["prmt.b32"](into[2 * i + half], *pair, T.uint32(selector)))
