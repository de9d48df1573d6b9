"""Input rows staged as pairs: P[y][column] = the values of row y and row y + dilation in turn.

Pairs of bytes begin at every row. Pairs of 16 bits begin at every second one, where the rows of a
window are neighbours, so each row is staged once. A window then begins with the first or with the
second row of a pair, its *parity*, which its weights have to suit:

    rows          0 1 | 2 3 | 4 5
    window at 0   w w   w -
    window at 1   - w   w w
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.geometry import Geometry

LANES = 16  # channels that are interleaved at once


@dataclass(frozen=True)
class Pairs:
    """The pairs that one task reads.

    Attributes:
        geometry: of the layer.
        outputs: output rows that are computed from them.
        channels: consecutive channels, at least `LANES`.
        offset: what is added to every activation, so that it is unsigned.
        wide: values are of 16 bits, else bytes.
    """

    geometry: Geometry
    outputs: int
    channels: int
    offset: int
    wide: bool = False

    @property
    def dtype(self) -> str:
        """Of the staged values."""
        return "int16" if self.wide else "uint8"

    @property
    def every(self) -> int:
        """Rows between the beginnings of two pairs."""
        return 2 if self.wide and self.apart == 1 else 1

    @property
    def parities(self) -> int:
        """Places in a pair where windows begin."""
        return 2 if self.every == 2 and self.geometry.stride[0] % 2 else 1

    @property
    def count(self) -> int:
        """Pairs of a window of 16-bit pairs."""
        return ceil((self.geometry.tap_rows + self.parities - 1) / 2)

    def taps(self, parity: int, pair: int) -> tuple[int, list[int | None]]:
        """Of a 16-bit pair of a window: its row of pairs, and the kernel rows that it takes."""
        kernel = self.geometry.tap_rows
        if self.every == 2:
            found = [2 * pair - parity, 2 * pair + 1 - parity]
            return pair, [tap if 0 <= tap < kernel else None for tap in found]
        first = min(2 * pair, max(kernel - 2, 0))  # the last pair may overlap its predecessor
        second = first + 1 if first + 1 < kernel else None
        return first * self.geometry.dilation[0], [first if first == 2 * pair else None, second]

    def window(self, row: Any) -> tuple[Any, Any]:
        """Where the window of an output row begins, and its parity."""
        start = row * self.geometry.stride[0]
        return tirx.floordiv(start, self.every) * self.pitch, tirx.floormod(start, self.every)

    @property
    def apart(self) -> int:
        """Rows between the two of a pair; a kernel of one row pairs it with itself."""
        return self.geometry.dilation[0] if self.geometry.tap_rows > 1 else 0

    @property
    def rows(self) -> int:
        """Pairs of rows."""
        read = self.geometry.rows_read(self.outputs)
        return ceil(read / 2) if self.every == 2 else read - self.apart

    @property
    def step(self) -> int:
        """Values between columns."""
        return 2 * self.channels

    @property
    def pitch(self) -> int:
        """Values between rows of pairs."""
        return self.geometry.reach * self.step

    @property
    def size(self) -> int:
        """Values in all."""
        return self.rows * self.pitch

    def at(self, tap: int) -> int:
        """Where the pairs of a kernel row begin, from the output row's first."""
        return tap * self.geometry.dilation[0] * self.pitch

    def stage(self, source: Any, scratch: Any, image: Any, first: Any, channel: Any) -> None:
        """Emits the copy for output rows from ``first`` and channels from ``channel``."""
        geometry = self.geometry
        top, left, bottom, _ = geometry.padding
        height, line = geometry.height, geometry.width * geometry.c
        middle = min(geometry.width, geometry.reach - left)
        with T.serial(self.rows) as y:
            start = T.Bind(y * self.pitch)
            upper = T.Bind(first * geometry.stride[0] + (y * self.every - top))
            picture = image * (height * line) + channel
            ends = [(upper + d, picture + (upper + d) * line) for d in (0, self.apart)]
            self._fill(scratch, start, left)
            self._fill(scratch, start + (left + middle) * self.step, geometry.reach - left - middle)
            inside = [tirx.all(row >= 0, row < height) for row, _ in ends]
            at = [where for _, where in ends]
            to = start + left * self.step
            last = (self.rows - 1) * self.every + self.apart
            if not top + bottom and last < geometry.rows_read(self.outputs):
                self._interleave(source, scratch, at, to, middle)
                return
            with T.If(tirx.all(*inside)):
                with T.Then():
                    self._interleave(source, scratch, at, to, middle)
                with T.Else():
                    self._interleave(source, scratch, at, to, middle, inside)

    def _pad(self, dtype: str) -> Any:
        return T.broadcast(tirx.const(self.geometry.pad_value + self.offset, dtype), LANES)

    def _fill(self, scratch: Any, start: Any, columns: int) -> None:
        count = columns * self.step
        with T.serial(ceil(count / LANES)) as i:
            at = start + tirx.min(i * LANES, count - LANES)
            T.buffer_store(scratch, self._pad(self.dtype), [T.ramp(at, 1, LANES)])

    def _interleave(
        self, source: Any, scratch: Any, at: list[Any], to: Any, columns: int, inside: Any = None
    ) -> None:
        """One row of pairs; ``inside`` tells which of the two rows exist."""
        c = self.geometry.c
        with T.serial(columns) as column, T.serial(ceil(self.channels / LANES)) as i:
            channel = tirx.min(i * LANES, self.channels - LANES)
            rows = []
            for d, where in enumerate(at):
                index = where + (column * c + channel)
                value = self._unsigned(source.vload([index], f"{source.dtype}x{LANES}"))
                if inside is not None:
                    dtype = "uint8" if self.offset else str(source.dtype)
                    value = tirx.if_then_else(inside[d], value, self._pad(dtype))
                rows.append(T.Bind(value))
            for half in (0, 8):
                order = [lane + row for lane in range(half, half + 8) for row in (0, LANES)]
                place = to + (column * self.step + 2 * channel + 2 * half)
                both = T.Shuffle(rows, order)
                both = T.Cast(f"int16x{LANES}", both) if self.wide else both
                T.buffer_store(scratch, both, [T.ramp(place, 1, LANES)])

    def _unsigned(self, value: Any) -> Any:
        if self.offset == 0:
            return value
        unsigned = T.reinterpret(f"uint8x{LANES}", value)
        return unsigned + T.broadcast(tirx.const(self.offset, "uint8"), LANES)
