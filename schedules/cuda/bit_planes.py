"""Bit planes of activations: made by a kernel of their own, or while loading to shared memory.

    4 values in a word   (word >> plane) & 0x01010101       a bit of each
    · 0x01020408         the four bits side by side, 24 and up; no two meet below

Four instructions for 4 values and a plane, and one to put the bits into their word. A block of
``c`` channels spends ``pairs·c / 2048`` products of tensor cores on 32 values of a row. So planes
are made once for all, and read as words, where several blocks need them or taps of a window do;
a single column of blocks makes them while it loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.bitserial_planes import WORD
from nybble.schedules.cuda.bit_layout import BitLayout

THREADS = 256
LOADS = WORD // 4  # words of values that make one of each plane
_EACH, _GATHER = 0x01010101, 0x01020408


@dataclass(frozen=True)
class Pixels:
    """Activations as lines of 32 values, and how a row of the product finds them.

    Attributes:
        layout: of the layer.
        x: the values, a flat buffer of bytes.
        planes: words [pixel][plane][line] that `make` has written, or None.
        count: of pixels, an expression.
    """

    layout: BitLayout
    x: Any
    planes: Any
    count: Any

    def make(self) -> None:
        """Emits the kernel that writes the planes."""
        layout, line = self.layout, self.layout.line
        total = self.count * line
        with (
            T.launch_thread("blockIdx.x", (total + THREADS - 1) // THREADS) as block,
            T.launch_thread("threadIdx.x", THREADS) as thread,
        ):
            i = T.Bind(T.Cast("int32", block) * THREADS + thread)
            with T.If(i < total), T.Then():
                pixel, word = T.Bind(i // line), T.Bind(i % line)
                found = self._gathered(pixel, word)
                for plane in range(len(layout.activations.coefs)):
                    at = (pixel * len(layout.activations.coefs) + plane) * line + word
                    T.buffer_store(self.planes, found[plane], [at])

    def words(self, row: Any, depth: Any, rows: Any) -> Any:
        """Registers with a word of each plane, zeros beyond the ends.

        Args:
            row: of the product.
            depth: which word of the row.
            rows: of the product in all.
        """
        layout = self.layout
        found = T.alloc_buffer((len(layout.activations.coefs),), "uint32", scope="local")
        _clear(found)
        tap, word = T.Bind(depth // layout.line), T.Bind(depth % layout.line)
        pixel, inside = self._pixel(row, tap)
        exists = tirx.all(row < rows, depth < layout.depth)
        with T.If(exists), T.Then():
            if inside is None:
                self._take(found, pixel, word)
            else:
                with T.If(inside):
                    with T.Then():
                        self._take(found, pixel, word)
                    with T.Else():
                        self._fill(found, word)
        return found

    def _pixel(self, row: Any, tap: Any) -> tuple[Any, Any]:
        """The input pixel of a tap of a row, and whether it exists (None: always)."""
        window = self.layout.matrix.window
        if window is None:
            return row, None
        (height, width), (rows, columns) = window.size, window.out
        column, above = T.Bind(row % columns), T.Bind(row // columns)
        image, line = T.Bind(above // rows), T.Bind(above % rows)
        y = line * window.strides[0] + tap // window.taps[1] * window.dilation[0]
        x = column * window.strides[1] + tap % window.taps[1] * window.dilation[1]
        y, x = T.Bind(y - window.padding[0]), T.Bind(x - window.padding[1])
        inside = tirx.all(y >= 0, y < height, x >= 0, x < width) if window.is_padded else None
        return T.Bind((image * height + y) * width + x), inside

    def _take(self, found: Any, pixel: Any, word: Any) -> None:
        planes, line = len(self.layout.activations.coefs), self.layout.line
        if self.planes is None:
            gathered = self._gathered(pixel, word)
            for plane in range(planes):
                T.buffer_store(found, gathered[plane], [plane])
            return
        for plane in range(planes):
            T.buffer_store(found, self.planes[(pixel * planes + plane) * line + word], [plane])

    def _fill(self, found: Any, word: Any) -> None:
        """Planes of the padding: the fill's bits, as far as there are channels."""
        layout, window = self.layout, self.layout.matrix.window
        assert window is not None
        spare = layout.line * WORD - layout.matrix.elements
        ones: Any = _word((1 << WORD) - 1)
        if spare:
            last = _word((1 << WORD - spare) - 1)
            ones = T.Bind(tirx.Select(word == layout.line - 1, last, ones))
        for plane in range(len(layout.activations.coefs)):
            if window.fill >> self._bit(plane) & 1:
                T.buffer_store(found, ones, [plane])

    def _bit(self, plane: int) -> int:
        """Of a byte, which makes the plane: the sign of -1 and +1."""
        return 7 if self.layout.activations.signs else plane

    def _gathered(self, pixel: Any, word: Any) -> Any:
        """Registers with a word of each plane, from values."""
        layout, elements = self.layout, self.layout.matrix.elements
        found = T.alloc_buffer((len(layout.activations.coefs),), "uint32", scope="local")
        values = T.alloc_buffer((LOADS,), "uint32", scope="local")
        _clear(found)
        _clear(values)
        self._load(values, T.Bind(pixel * elements + word * WORD), T.Bind(word * WORD))
        for quad in range(LOADS):
            for plane in range(len(layout.activations.coefs)):
                shifted = T.shift_right(values[quad], _word(self._bit(plane)))
                bits = (shifted & _word(_EACH)) * _word(_GATHER)
                nibble = T.shift_left(T.shift_right(bits, _word(24)), _word(4 * quad))
                T.buffer_store(found, found[plane] | nibble, [plane])
        return found

    def _load(self, values: Any, first: Any, channel: Any) -> None:
        """32 values from byte ``first`` on, those of channels that exist."""
        elements = self.layout.matrix.elements
        size = next(size for size in (16, 4, 1) if elements % size == 0)
        if size == 1:
            into = T.decl_buffer((WORD,), "uint8", data=values.data, scope="local")
            for i in range(WORD):
                with T.If(channel + i < elements), T.Then():
                    T.buffer_store(into, T.Cast("uint8", self.x[first + i]), [i])
            return
        lanes = size // 4
        words = T.decl_buffer((self.x.shape[0] // 4,), "uint32", data=self.x.data)
        for i in range(0, LOADS, lanes):
            with T.If(channel + 4 * i < elements), T.Then():
                at = T.Bind(first // 4 + i)
                if lanes == 1:
                    T.buffer_store(values, words[at], [i])
                else:
                    T.buffer_store(
                        values, words.vload([at], f"uint32x{lanes}"), [T.ramp(i, 1, lanes)]
                    )


def pays(layout: BitLayout, columns: int) -> bool:
    """Whether a kernel of its own makes the planes: with several readers of a value."""
    window = layout.matrix.window
    readers = columns * (prod(window.taps) if window is not None else 1)
    return readers >= FEW


FEW = 4


def _clear(buffer: Any) -> None:
    for i in range(int(buffer.shape[0])):
        T.buffer_store(buffer, _word(0), [i])


def _word(value: int) -> Any:
    return tirx.const(value, "uint32")
