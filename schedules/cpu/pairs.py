"""Input rows staged as pairs: P[y][column] = the bytes of row y and row y + dilation in turn."""

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
    """

    geometry: Geometry
    outputs: int
    channels: int
    offset: int

    @property
    def apart(self) -> int:
        """Rows between the two of a pair; a kernel of one row pairs it with itself."""
        return self.geometry.dilation[0] if self.geometry.tap_rows > 1 else 0

    @property
    def rows(self) -> int:
        """Pairs of rows."""
        return self.geometry.rows_read(self.outputs) - self.apart

    @property
    def step(self) -> int:
        """Bytes between columns."""
        return 2 * self.channels

    @property
    def pitch(self) -> int:
        """Bytes between rows of pairs."""
        return self.geometry.reach * self.step

    @property
    def size(self) -> int:
        """Bytes in all."""
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
            upper = T.Bind(first * geometry.stride[0] + (y - top))
            picture = image * (height * line) + channel
            ends = [(upper + d, picture + (upper + d) * line) for d in (0, self.apart)]
            self._fill(scratch, start, left)
            self._fill(scratch, start + (left + middle) * self.step, geometry.reach - left - middle)
            inside = [tirx.all(row >= 0, row < height) for row, _ in ends]
            at = [where for _, where in ends]
            to = start + left * self.step
            if not top + bottom:
                self._interleave(source, scratch, at, to, middle)
                return
            with T.If(tirx.all(*inside)):
                with T.Then():
                    self._interleave(source, scratch, at, to, middle)
                with T.Else():
                    self._interleave(source, scratch, at, to, middle, inside)

    @property
    def _pad(self) -> Any:
        return T.broadcast(tirx.const(self.geometry.pad_value + self.offset, "uint8"), LANES)

    def _fill(self, scratch: Any, start: Any, columns: int) -> None:
        count = columns * self.step
        with T.serial(ceil(count / LANES)) as i:
            at = start + tirx.min(i * LANES, count - LANES)
            T.buffer_store(scratch, self._pad, [T.ramp(at, 1, LANES)])

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
                    value = tirx.if_then_else(inside[d], value, self._pad)
                rows.append(T.Bind(value))
            for half in (0, 8):
                order = [lane + row for lane in range(half, half + 8) for row in (0, LANES)]
                place = to + (column * self.step + 2 * channel + 2 * half)
                T.buffer_store(scratch, T.Shuffle(rows, order), [T.ramp(place, 1, LANES)])

    def _unsigned(self, value: Any) -> Any:
        if self.offset == 0:
            return value
        unsigned = T.reinterpret(f"uint8x{LANES}", value)
        return unsigned + T.broadcast(tirx.const(self.offset, "uint8"), LANES)
