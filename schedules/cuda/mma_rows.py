"""From global to shared memory: what a block multiplies next.

Shared memory holds, for each stage and slab, 64 bytes of each row; a row's four pieces of 16 bytes
are exchanged so that eight rows that are read together touch all banks:

    piece    0 1 2 3      of rows 0, 1, 8, 9, …      written: 4 lanes a row, read: ``ldmatrix``
             1 0 3 2      of rows 2, 3                at = piece xor (row / 2 mod 4)
             2 3 0 1      of rows 4, 5
             3 2 1 0      of rows 6, 7

Weights follow as they are packed (`nybble.schedules.cuda.fragments`), with no exchange.

A piece consists of *units*, runs of bytes that lie side by side in global memory and are aligned:
16 bytes where every tap has a multiple of 16, else 8 or 4, else words that begin anywhere. Beyond
the last row and the last tap units are read from the last one: such sums are not stored, or meet
weights of 0. Taps in the padding of a convolution are filled.

    copies   ``cp.async``: any number of stages ahead
    staged   through registers, one stage ahead: on Turing, for words that begin anywhere
             (`nybble.schedules.cuda.mma_loose`), and where two bytes of 4-bit values become one
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cuda.matrix import Matrix, Window
from nybble.schedules.cuda.mma_loose import loose_word
from nybble.schedules.cuda.mma_moves import (
    PIECE,
    Lines,
    copy,
    divmod_of,
    pack_nibbles,
    ramp,
    run,
)
from nybble.schedules.kernel import TensorSpec


def halves(matrix: Matrix, spec: TensorSpec) -> bool:
    """Whether the input has a 4-bit value in each byte, to be packed two by two."""
    return matrix.packing == 2 and spec.form == "values"


def unit_of(matrix: Matrix) -> int:
    """Bytes of shared memory in a unit."""
    return 4 if matrix.loose else next(unit for unit in (16, 8, 4) if matrix.line % unit == 0)


@dataclass(frozen=True)
class Slot:
    """A piece that a thread brings.

    Attributes:
        row: its index among the thread's rows.
        at: the word of the stage where it goes.
        depth: bytes of depth before it.
    """

    row: int
    at: Any
    depth: Any


class Rows:
    """Loads of the rows' operands by one thread of a block.

    Args:
        matrix: the layer.
        lines: what they become.
        spec: of the input.
        source: the input, flat.
        tile: shared memory, in words; the rows' stages come first.
    """

    start = 0  # word of shared memory where the first stage begins

    def __init__(self, matrix: Matrix, lines: Lines, spec: TensorSpec, source: Any, tile: Any):
        self.matrix, self.lines, self.tile = matrix, lines, tile
        self.ratio, self.unit = 2 if halves(matrix, spec) else 1, unit_of(matrix)
        self.signed, _ = numerics.width(spec.dtype)
        self.pixel = matrix.elements // matrix.pixels // (matrix.packing // self.ratio)
        self.bytes = T.decl_buffer(source.shape, "uint8", data=source.data, layout=None)
        self.words = T.decl_buffer(
            (tirx.floordiv(source.shape[0], 4),), "uint32", data=source.data, layout=None
        )
        window = matrix.window
        fill = window.fill if window else 0
        both = matrix.packing == 2 and self.ratio == 1
        self.fill = (fill & 15) * 0x11111111 if both else (fill & 0xFF) * 0x01010101

    def begin(self, first: Any, total: Any, thread: Any) -> None:
        """Emits what stays the same for all of the depth.

        Args:
            first: the block's first row.
            total: rows in all.
            thread: of the block.
        """
        each = self.lines.pieces
        threads, pieces = self.lines.threads, self.lines.rows * each
        self.abreast = max(1, threads // pieces)
        slab, inside = divmod_of(thread, pieces) if self.abreast > 1 else (0, thread)
        row, piece = divmod_of(inside, each)
        self.slab, self.row = T.Bind(slab + tirx.const(0, "int32")), T.Bind(row)
        self.piece, self.stride = T.Bind(piece), threads // each
        self.origins = [
            self._origin(T.Bind(tirx.min(first + self.row + i * self.stride, total - 1)))
            for i in range(max(1, pieces // threads))
        ]

    def _origin(self, row: Any) -> tuple[Any, Any, Any]:
        """Where a row's first tap lies: element of the input, line and column of the image."""
        window = self.matrix.window
        if window is None:
            return T.Bind(row * self.pixel), None, None
        (high, wide), (oh, ow) = window.size, window.out
        image, inside = map(T.Bind, divmod_of(row, oh * ow))
        down, across = divmod_of(inside, ow)
        y = T.Bind(down * window.strides[0] - window.padding[0])
        x = T.Bind(across * window.strides[1] - window.padding[1])
        return T.Bind(((image * high + y) * wide + x) * self.pixel), y, x

    @property
    def pieces(self) -> int:
        """Of a stage, by one thread."""
        return self.lines.slabs // self.abreast * len(self.origins)

    def slots(self, step: Any) -> Iterator[Slot]:
        """The thread's pieces of a step of the depth."""
        for turn in range(self.lines.slabs // self.abreast):
            slab = self.slab + turn * self.abreast
            depth = T.Bind((step * self.lines.slabs + slab) * self.lines.size + self.piece * PIECE)
            for i in range(len(self.origins)):
                row = self.row + i * self.stride
                yield Slot(
                    i, self.lines.place(slab * self.lines.rows + row, row, self.piece), depth
                )

    def _locate(self, row: int, depth: Any) -> tuple[Any, Any]:
        """A unit of a row: its element of the input, and whether it is inside (None: always)."""
        matrix, (origin, y, x) = self.matrix, self.origins[row]
        if matrix.depth % (self.lines.size * self.lines.slabs):
            depth = tirx.min(depth, matrix.depth - self.unit)
        if matrix.window is None:
            return origin + depth * self.ratio, None
        tap, byte = divmod_of(T.Bind(depth), matrix.line)
        inside, offset = _tap(matrix.window, T.Bind(tap), y, x if matrix.pixels == 1 else None)
        return origin + offset * self.pixel + byte * self.ratio, inside

    # ------------------------------------------------------------ copies

    def copy(self, step: Any, stage: Any) -> None:
        """Emits the asynchronous copies of a step of the depth; units have 4 bytes at least."""
        start = self.start + stage * self.lines.words
        for slot in self.slots(step):
            for byte in range(0, PIECE, self.unit):
                element, inside = self._locate(slot.row, slot.depth + byte)
                self._copy(start + slot.at + byte // 4, element, inside)

    def _copy(self, at: Any, element: Any, inside: Any) -> None:
        source = self.bytes[element]
        if inside is None or self.fill == 0:
            copy(self.tile[at], source, self.unit, inside)
            return
        with T.If(inside):
            with T.Then():
                copy(self.tile[at], source, self.unit)
            with T.Else():
                words = self.unit // 4
                fill = T.uint32(self.fill)
                value = T.broadcast(fill, words) if words > 1 else fill
                T.buffer_store(self.tile, value, ramp(at, words))

    # ------------------------------------------------------------ through registers

    def fetch(self, step: Any) -> Any:
        """Emits the loads of a step of the depth; returns the registers, as they come."""
        held = T.alloc_buffer((self.pieces * 4 * self.ratio,), "uint32", scope="local", layout=None)
        for n, slot in enumerate(self.slots(step)):
            if self.matrix.loose:
                self._fetch_loose(held, n * 4 * self.ratio, slot)
                continue
            for byte in range(0, PIECE, self.unit):
                element, inside = self._locate(slot.row, slot.depth + byte)
                self._fetch_words(held, (n * 4 + byte // 4) * self.ratio, element, inside)
        return held

    def _fetch_words(self, held: Any, first: int, element: Any, inside: Any) -> None:
        """A unit, by loads of 16 bytes at most."""
        count = self.unit * self.ratio // 4
        lanes = min(count, 4)

        def load() -> None:
            for word in range(0, count, lanes):
                index = tirx.shift_right(element, 2) + word
                T.buffer_store(held, run(self.words, index, lanes), ramp(first + word, lanes))

        if inside is None:
            load()
            return
        with T.If(inside):
            with T.Then():
                load()
            with T.Else():
                for word in range(count):
                    T.buffer_store(held, T.uint32(self.fill), [first + word])

    def _fetch_loose(self, held: Any, first: int, slot: Slot) -> None:
        """A piece of words that begin anywhere."""
        for n in range(4):
            depth = T.Bind(slot.depth + 4 * n)
            element, inside = self._locate(slot.row, depth)
            edges = self._edges(slot.row, depth)
            for i in range(self.ratio):
                given = edges and (edges[0] + 4 * i, edges[1])
                word = loose_word(self.bytes, element + 4 * i, inside, given, self.fill)
                T.buffer_store(held, word, [first + n * self.ratio + i])

    def _edges(self, row: int, depth: Any) -> tuple[Any, int] | None:
        """A word's place in a line of the image, and the line's length; as of `loose_word`."""
        window = self.matrix.window
        if self.matrix.pixels == 1 or window is None or not window.is_padded:
            return None
        byte = divmod_of(depth, self.matrix.line)[1]
        return self.origins[row][2] * self.pixel + byte * self.ratio, window.size[1] * self.pixel

    def put(self, held: Any, step: Any, stage: Any) -> None:
        """Emits the stores of what `fetch` gave."""
        start = self.start + stage * self.lines.words
        for n, slot in enumerate(self.slots(step)):
            first = n * 4 * self.ratio
            if self.ratio == 2:  # in place: the words that are overwritten are packed already
                for i in range(4):
                    words = held[first + 2 * i], held[first + 2 * i + 1]
                    pack_nibbles(held, first + i, words, self.signed)
            T.buffer_store(self.tile, run(held, first, 4), ramp(start + slot.at, 4))


def _tap(window: Window, tap: Any, y: Any, x: Any) -> tuple[Any, Any]:
    """Whether a tap is inside the image (None: always), and by how many pixels it is off.

    Args:
        window: of the convolution.
        tap: its number.
        y: the window's first line in the image.
        x: its first column; None where that is not to be looked at.
    """
    down, across = divmod_of(tap, window.taps[1])
    down, across = T.Bind(down * window.dilation[0]), T.Bind(across * window.dilation[1])
    offset = down * window.size[1] + across
    if not window.is_padded:
        return None, offset
    y = y + down
    inside = [y >= 0, y < window.size[0]]
    if x is not None:
        inside += [x + across >= 0, x + across < window.size[1]]
    return tirx.all(*inside), offset
