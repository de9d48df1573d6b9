"""The staging copy of the look-up kernels: the tables of a task's input rows, padding included.

A pixel's channels (of one group of a grouped convolution) are cut into groups of four; the tables
of all groups of a row of pixels lie one behind the other, so that a kernel row's taps are still one
run. Absent channels of the last group count as 0, which adds nothing whatever the weights' bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.cpu.lut_rows import emit_rows
from nybble.schedules.cpu.lut_scheme import (
    Lookup,
    Scheme,
    bytes_of,
    emit_tables,
    scheme_of,
)
from nybble.schedules.kernel import Problem


@dataclass(frozen=True)
class Staging:
    """The tables of one layer's input rows.

    Attributes:
        geometry: of the layer.
        scheme: what the tables hold.
        lookup: the machine's, with which tables are made.
    """

    geometry: Geometry
    scheme: Scheme
    lookup: Lookup

    @property
    def dtype(self) -> str:
        """Of the copy."""
        return "uint8"

    @property
    def per_pixel(self) -> int:
        """Groups of one pixel, all groups of channels."""
        return self.geometry.groups * self.per_channels

    @property
    def per_channels(self) -> int:
        """Groups of one pixel in one group of channels."""
        return ceil(self.geometry.c // self.geometry.groups / self.scheme.group)

    @property
    def run(self) -> int:
        """Groups that one run of taps reads."""
        geometry = self.geometry
        if geometry.groups > 1:
            return self.per_channels
        return geometry.run // geometry.c * self.per_pixel

    @property
    def pairs(self) -> int:
        """Bytes of weights in one run, for one channel and plane: two groups each."""
        return ceil(self.run / 2)

    @property
    def pitch(self) -> int:
        """Groups between two input rows."""
        return self.geometry.reach * self.per_pixel

    def size(self, rows: int) -> int:
        """Bytes of the tables that ``rows`` output rows read."""
        return self.geometry.rows_read(rows) * self.pitch * self.scheme.bytes

    def emit(self, source: Any, scratch: Any, rows: int, where: tuple[Any, Any]) -> None:
        """Emits the copy.

        Args:
            source: the input as a flat buffer.
            scratch: flat uint8 buffer of `size` bytes.
            rows: output rows that will be computed from it.
            where: (first element of the image in ``source``, first output row).
        """
        pad, read = partial(self._pad, scratch), partial(self._pixels, source, scratch)
        emit_rows(self.geometry, self.per_pixel, rows, where, (pad, read))

    def _pad(self, scratch: Any, group: Any, pixels: int) -> None:
        """Tables of pixels in the padding, which are constants."""
        size, group_size = self.scheme.bytes, self.scheme.group
        live = self.geometry.c % group_size
        fill = [self.geometry.pad_value] * group_size
        full = bytes_of(self.scheme.table(fill).tolist())
        with T.serial(pixels * self.per_pixel) as g:
            T.buffer_store(scratch, full, [T.ramp((group + g) * size, 1, size)])
        if live:
            last = bytes_of(self.scheme.table(fill[:live] + [0] * (group_size - live)).tolist())
            with T.serial(pixels) as p:
                at = (group + (p + 1) * self.per_pixel - 1) * size
                T.buffer_store(scratch, last, [T.ramp(at, 1, size)])

    def _pixels(self, source: Any, scratch: Any, from_: Any, group: Any, pixels: int) -> None:
        """Tables of consecutive pixels."""
        c, each = self.geometry.c, self.scheme.group
        if c % each == 0:
            self._run(source, from_, scratch, group, pixels * c // each)
            return
        with T.serial(pixels) as p:
            there, to = T.Bind(from_ + p * c), T.Bind(group + p * self.per_pixel)
            self._run(source, there, scratch, to, c // each)
            live = [source[there + (c // each * each + j)] for j in range(c % each)]
            self._store(scratch, to + c // each, self._word(live), 1)

    def _word(self, live: list[Any]) -> Any:
        """The activations of a group that exist in one word."""
        kind = f"uint{8 * self.scheme.group}"
        word = tirx.const(0, kind)
        for j, value in enumerate(live):
            byte = T.Cast(kind, T.reinterpret("uint8", value))
            word = word | T.shift_left(byte, tirx.const(8 * j, kind))
        return word

    def _run(self, source: Any, from_: Any, scratch: Any, group: Any, count: int) -> None:
        """Tables of ``count`` groups whose activations lie one behind the other."""
        dtype = str(source.dtype)

        def visit(first: Any, groups: int) -> None:
            each = self.scheme.group
            few = source.vload([from_ + first * each], f"{dtype}x{each * groups}")
            word = T.reinterpret(f"uint{8 * each * groups}", few)
            self._store(scratch, group + first, word, groups)

        if count >= 2:
            with T.serial(count // 2) as pair:
                visit(pair * 2, 2)
        if count % 2:
            visit(count - 1, 1)

    def _store(self, scratch: Any, group: Any, word: Any, count: int) -> None:
        """The tables of one or two groups, given as a word."""
        repeated = T.broadcast(word, 256 // int(word.ty.dtype.bits))
        quads = T.Bind(T.reinterpret("uint8x32", repeated))
        size = self.scheme.bytes
        for i, vector in enumerate(emit_tables(self.scheme, self.lookup, quads, count)):
            kept = min(32, count * size - 32 * i)
            part = vector if kept == 32 else T.Shuffle([vector], list(range(kept)))
            T.buffer_store(scratch, part, [T.ramp(group * size + 32 * i, 1, kept)])


def staging_of(problem: Problem, lookup: Lookup, products: bool) -> Staging:
    """The tables of a problem on a machine: see `scheme_of`."""
    assert problem.weights is not None
    scheme = scheme_of(problem.weights.dtype, problem.inputs[0].dtype, products)
    return Staging(geometry_of(problem), scheme, lookup)
