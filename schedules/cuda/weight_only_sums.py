"""Sums of a lane in weight-only layers: the numbers of their groups, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.halves import Decoded
from nybble.schedules.cuda.stream_plan import ROWS
from nybble.schedules.cuda.weight_only_layout import TILE, Layout
from nybble.schedules.kernel import Epilogue


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


class Sums:
    """Tiles of 16 channels by operands of 8 rows, in registers.

    Args:
        layout: of the weights.
        operands: of rows.
        given: the parameters.
        epilogue: second branch and clamp.
        apart: whether products have registers of their own where channels have one scale.

    Attributes:
        total: 4 for each tile and operand: channels g, g, g + 8, g + 8, rows 2t, 2t + 1, ….
        part: those of a group; ``total`` itself where there are no groups, unless ``apart``.
        now: numbers of the group.
        following: of the next.
        zeros: 1024 + zero twice, for each part, tile and row of the lane.
    """

    def __init__(
        self, layout: Layout, operands: int, given: Given, epilogue: Epilogue, apart: bool = False
    ):
        self.layout, self.operands, self.given, self.epilogue = layout, operands, given, epilogue
        self.apart = apart
        self.total: Any = None
        self.part: Any = None
        self.now: Any = None
        self.following: Any = None
        self.zeros: Any = None

    def allocate(self) -> None:
        """Emits the registers, with totals of 0."""
        layout, sums = self.layout, self.layout.tiles * self.operands * 4
        count = layout.parts * layout.numbers * layout.tiles
        self.total = local(sums, "float32")
        self.part = local(sums, "float32") if layout.is_grouped or self.apart else self.total
        if count:
            self.now, self.following = local(count, "uint32"), local(count, "uint32")
        if layout.zero is None:
            self.zeros = local(layout.parts * layout.tiles * 2, "uint32")
        clear(self.total)

    # ------------------------------------------------------------ numbers

    def fetch_numbers(self, block: Any, lane: Any, scaled: Any) -> None:
        """Emits their load, for those to be taken next.

        Args:
            block: of channels.
            lane: of the warp.
            scaled: which of `Layout.scaled`; 0 where channels have one scale.
        """
        to = self.following
        if to is None:
            return
        count = int(to.shape[0])
        at = block * (self.layout.scaled if self.layout.is_grouped else 1) + scaled
        at = T.Bind((at * 8 + lane // 4) * count)
        step = next(n for n in (4, 2, 1) if count % n == 0)
        for word in range(0, count, step):
            if step == 1:
                T.buffer_store(to, self.given.numbers[at + word], [word])
            else:
                found = self.given.numbers.vload([at + word], f"uint32x{step}")
                T.buffer_store(to, found, [T.ramp(word, 1, step)])

    def take_numbers(self) -> None:
        """Emits that what was fetched counts from here on."""
        if self.now is None:
            return
        for i in range(int(self.now.shape[0])):
            T.buffer_store(self.now, self.following[i], [i])
        if self.layout.zero is not None:
            return
        for part in range(self.layout.parts):
            for tile in range(self.layout.tiles):
                both = self.now[self._number(part, self.layout.numbers - 1, tile)]
                for row, halves in enumerate((0x1010, 0x3232)):
                    to = self.zeros[(part * self.layout.tiles + tile) * 2 + row]
                    T.evaluate(T.ptx["prmt.b32"](to, both, both, word(halves)))

    def _number(self, part: int, kind: int, tile: int) -> int:
        return (part * self.layout.numbers + kind) * self.layout.tiles + tile

    def zero(self, part: int, tile: int) -> Decoded:
        """What is subtracted from the codes of a tile in one part of a record."""
        if self.layout.zero is not None:
            return Decoded(self.layout.zero)
        first = (part * self.layout.tiles + tile) * 2
        return Decoded(None, lambda pair: self.zeros[first + pair % 2])

    # ------------------------------------------------------------ sums

    def flush(self, part: int) -> None:
        """Emits total += scale·part, for the groups of one part of a record."""
        now = self.now
        halves = T.decl_buffer((2 * int(now.shape[0]),), "float16", data=now.data, scope="local")
        fma = T.ptx["fma.rn.f32"]
        for tile in range(self.layout.tiles):
            first = 2 * self._number(part, 0, tile)
            scale = [T.Bind(T.Cast("float32", halves[first + row])) for row in (0, 1)]
            for i in range(tile * self.operands * 4, (tile + 1) * self.operands * 4):
                T.evaluate(fma(self.total[i], scale[i % 4 // 2], self.part[i], self.total[i]))

    def sums(self) -> list[tuple[int, int, Any]]:
        """(row, channel, value) of every sum, less those of the lane."""
        found = []
        for i in range(self.layout.tiles * self.operands * 4):
            tile, operand = divmod(i // 4, self.operands)
            found.append((operand * ROWS + i % 2, tile * TILE + i % 4 // 2 * 8, self.total[i]))
        return found

    def store(self, row: Any, channel: Any, value: Any) -> None:
        """Emits the store of clamp(factor·value + bias + other)."""
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


def local(size: int, dtype: str) -> Any:
    """Registers."""
    return T.alloc_buffer((size,), dtype, scope="local")


def clear(buffer: Any) -> None:
    """Emits zeros in all of them."""
    for i in range(int(buffer.shape[0])):
        T.buffer_store(buffer, tirx.const(0, buffer.dtype), [i])


def word(value: int) -> Any:
    """A constant."""
    return tirx.const(value, "uint32")
