"""One register tile of the look-up kernels.

tap row, tap column, block of groups:
  bytes += look up, for every pixel, plane and table          as often as fits a byte
  whole += bytes as 16-bit words, odd += words >> 8           bytes 2i are whole - 256·odd
planes and tables weighted and added up, epilogue, store

Byte 2i of a block is channel i, byte 2i + 1 is channel lanes/2 + i, so both sums come out in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.blocking import Plan, Tile
from nybble.schedules.cpu.buffers import Buffers
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.lut_plan import (
    UNROLLED,
    WORD_FLUSHES,
    Cut,
    Isa,
    blocks_of,
    cut_of,
    fits_words,
    flushed,
    offset,
)
from nybble.schedules.cpu.lut_scheme import ENTRIES, Scheme, words
from nybble.schedules.cpu.lut_stage import Staging
from nybble.schedules.cpu.lut_store import halved, starts_in, store_block
from nybble.schedules.kernel import Problem


@dataclass(frozen=True)
class Layer:
    """Everything that the emitting functions share."""

    problem: Problem
    staging: Staging
    isa: Isa
    plan: Plan
    buffers: Buffers

    @property
    def geometry(self) -> Geometry:
        """Of the layer."""
        return self.staging.geometry

    @property
    def scheme(self) -> Scheme:
        """Of the layer."""
        return self.staging.scheme

    @property
    def blocks(self) -> int:
        """Blocks of output channels in a group."""
        return blocks_of(self.geometry, self.isa)

    @property
    def fits_words(self) -> bool:
        """Whether every accumulator, before the bias, fits 16 bits."""
        return fits_words(self.problem, self.staging)

    def emit(self, tile: Tile, scratch: Any, at: tuple[Any, Any], block: tuple[Any, Any]) -> None:
        """Emits a tile: see `nybble.schedules.cpu.lut_template.Layer`."""
        _TileCode(self, tile, scratch, at, block).emit()


class _TileCode:
    """Emits one tile.

    An accumulator's slot is ((pixel · vectors + vector) · planes + plane) · tables + table.
    """

    def __init__(
        self, layer: Layer, tile: Tile, scratch: Any, at: tuple[Any, Any], block: tuple[Any, Any]
    ):
        self.layer, self.tile, self.scratch = layer, tile, scratch
        geometry, staging, scheme = layer.geometry, layer.staging, layer.scheme
        self.x, self.y = T.Bind(at[0] + 0), T.Bind(at[1] + 0)
        group, first = T.Bind(block[0] + 0), T.Bind(block[1] + 0)
        starts = starts_in(layer, first, tile.vectors)
        self.starts = [T.Bind(group * geometry.o + start) for start in starts]
        self.steps = geometry.tap_rows * geometry.tap_cols * staging.pairs
        self.panel = T.Bind((group * layer.blocks + first) * self.steps)
        self.pixels = [(i, j) for i in range(tile.high) for j in range(tile.wide)]
        self.slots = len(self.pixels) * tile.vectors * scheme.planes * scheme.tables
        self.lanes = layer.isa.lanes
        self.whole = self._local(f"uint16x{self.lanes // 2}", self.slots)
        self.odd = self._local(f"uint16x{self.lanes // 2}", self.slots)

    def emit(self) -> None:
        """Emits the whole tile."""
        geometry, staging = self.layer.geometry, self.layer.staging
        cut = cut_of(staging.run, self.layer.scheme.flush, 2)
        total = None
        if flushed(staging) > WORD_FLUSHES:
            total = self._local(f"int32x{self.lanes // 4}", 4 * self.outputs)
            self._clear(total)
        self._clear(self.whole, self.odd)
        with T.serial(geometry.tap_rows) as ky, T.serial(geometry.tap_cols) as kx:
            rows = ky * (geometry.dilation[0] * staging.pitch)
            x = T.Bind(self.x + rows + kx * (geometry.dilation[1] * staging.per_pixel))
            step = T.Bind(self.panel + (ky * geometry.tap_cols + kx) * staging.pairs)
            self._run(step, x, cut, total)
        if total is None:
            self._finish(lambda at: self._added(at, wide=not self.layer.fits_words))
        else:
            self._finish(lambda at: [total[at * 4 + q] for q in range(4)])

    def _run(self, step: Any, x: Any, cut: Cut, total: Any) -> None:
        """One run of groups; with ``total``, words are drained into it before they overflow."""
        most = max(cut.whole if total is None else min(cut.whole, WORD_FLUSHES), 1)
        with T.serial(ceil(cut.whole / most)) as chunk:
            with T.serial(tirx.min(cut.whole - chunk * most, most)) as b:
                done = chunk * most + b
                self._block(step + done * (cut.block // 2), x + done * cut.block, cut.block)
            if total is not None:
                self._drain(total)
        if cut.rest:
            first = cut.whole * cut.block
            self._block(step + first // 2, x + first, cut.rest)
            if total is not None:
                self._drain(total)

    @property
    def outputs(self) -> int:
        """Pairs of pixel and block of channels."""
        return len(self.pixels) * self.tile.vectors

    def _local(self, dtype: str, count: int) -> Any:
        return T.alloc_buffer((count,), dtype, scope="local", layout=None)

    def _clear(self, *buffers: Any) -> None:
        for buffer in buffers:
            with T.unroll(int(buffer.shape[0])) as i:
                T.buffer_store(buffer, tirx.const(0, str(buffer.dtype)), [i])

    # ------------------------------------------------------------ look-ups

    def _block(self, step: Any, x: Any, count: int) -> None:
        """Looks up ``count`` groups, summed as bytes, and adds them to the word sums."""
        step, x = T.Bind(step + 0), T.Bind(x + 0)
        if count <= UNROLLED:
            sums: list[Any] = [None] * self.slots
            for pair in range(ceil(count / 2)):
                self._pair(step + pair, x + 2 * pair, min(2, count - 2 * pair), sums)
        else:
            buffer = self._local(f"uint8x{self.lanes}", self.slots)
            self._clear(buffer)
            with T.serial(count // 2) as pair:
                self._through(buffer, step + pair, x + 2 * pair, 2)
            if count % 2:
                self._through(buffer, step + count // 2, x + count - 1, 1)
            sums = [buffer[slot] for slot in range(self.slots)]
        for slot, value in enumerate(sums):
            wide = T.Bind(words(value))
            upper = T.shift_right(wide, tirx.const(8, str(self.whole.dtype)))
            T.buffer_store(self.whole, self.whole[slot] + wide, [slot])
            T.buffer_store(self.odd, self.odd[slot] + upper, [slot])

    def _through(self, buffer: Any, step: Any, x: Any, count: int) -> None:
        sums = [buffer[slot] for slot in range(self.slots)]
        self._pair(step, x, count, sums)
        for slot, value in enumerate(sums):
            T.buffer_store(buffer, value, [slot])

    def _pair(self, step: Any, x: Any, count: int, sums: list[Any]) -> None:
        """Adds one or two groups, whose indices share bytes, to every slot of ``sums``."""
        scheme, tile = self.layer.scheme, self.tile
        columns = tile.vectors * scheme.planes
        raw = [T.Bind(self._weights(step, column)) for column in range(columns)]
        for half in range(count):
            index = [T.Bind(halved(value, half)) for value in raw]
            for p, (i, j) in enumerate(self.pixels):
                for t in range(scheme.tables):
                    table = T.Bind(self._table(x + half, i, j, t))
                    for column in range(columns):
                        slot = (p * columns + column) * scheme.tables + t
                        found, before = self.layer.isa.lookup(table, index[column]), sums[slot]
                        sums[slot] = T.Bind(found if before is None else before + found)

    def _weights(self, step: Any, column: int) -> Any:
        planes = self.layer.scheme.planes
        row = (step + column // planes * self.steps) * planes + column % planes
        return self.layer.buffers.constants[0].vload([row, tirx.const(0)], f"uint8x{self.lanes}")

    def _table(self, x: Any, i: int, j: int, table: int) -> Any:
        """One table of a pixel's group, in every 16 bytes of a vector."""
        geometry, staging = self.layer.geometry, self.layer.staging
        there = i * geometry.stride[0] * staging.pitch + j * geometry.stride[1] * staging.per_pixel
        at = (x + there) * self.layer.scheme.bytes + table * ENTRIES
        few = self.scratch.vload([at], f"uint8x{ENTRIES}")
        copies = self.lanes // ENTRIES
        return T.Shuffle([few] * copies, list(range(self.lanes)))

    # ------------------------------------------------------------ from look-ups to outputs

    def _drain(self, total: Any) -> None:
        """Adds the word sums to sums of 32 bits and clears them."""
        for at in range(self.outputs):
            for q, value in enumerate(self._added(at, wide=True)):
                T.buffer_store(total, total[at * 4 + q] + value, [at * 4 + q])
        self._clear(self.whole, self.odd)

    def _added(self, at: int, wide: bool) -> list[Any]:
        """Planes and tables of one output block weighted and added: four vectors of 32 bits.

        Args:
            at: pixel · vectors + vector.
            wide: whether the sum needs 32 bits; else it is right modulo 2^16.
        """
        scheme, quarter = self.layer.scheme, self.lanes // 4
        found: list[Any] = []
        for part in range(2 if not wide else 4):
            value = None
            for plane, coef in enumerate(scheme.coefs):
                for t in range(scheme.tables):
                    slot = (at * scheme.planes + plane) * scheme.tables + t
                    term = self._bytes(slot, part if not wide else part // 2)
                    if wide:
                        lanes = list(range(part % 2 * quarter, part % 2 * quarter + quarter))
                        term = T.Cast(f"int32x{quarter}", T.Shuffle([term], lanes))
                    value = _weighted(value, term, coef << (scheme.split * t))
            found.append(value)
        return found if wide else self._widened(found)

    def _bytes(self, slot: int, odd: int) -> Any:
        """The sums of the even or odd bytes, as 16-bit words."""
        if odd:
            return self.odd[slot]
        shift = tirx.const(8, str(self.odd.dtype))
        return self.whole[slot] - T.shift_left(self.odd[slot], shift)

    def _widened(self, halves: list[Any]) -> list[Any]:
        quarter = self.lanes // 4
        found = []
        for half in halves:
            level = tirx.const(offset(self.layer.staging) % 65536, str(self.odd.dtype))
            signed = T.Bind(T.reinterpret(f"int16x{2 * quarter}", half + level))
            for first in (0, quarter):
                part = T.Shuffle([signed], list(range(first, first + quarter)))
                found.append(T.Cast(f"int32x{quarter}", part))
        return found

    def _finish(self, quarters: Callable[[int], list[Any]]) -> None:
        """Bias, epilogue and store."""
        geometry = self.layer.geometry
        for p, (i, j) in enumerate(self.pixels):
            pixel = self.y + (i * geometry.cols + j) * (geometry.groups * geometry.o)
            for v, first in enumerate(self.starts):
                store_block(self.layer, pixel, first, quarters(p * self.tile.vectors + v))


def _weighted(total: Any, term: Any, coef: int) -> Any:
    """Adds coef · term to a total, for a coefficient that is ±2^n; the first one is positive."""
    shift = abs(coef).bit_length() - 1
    if shift:
        term = T.shift_left(term, tirx.const(shift, str(term.ty.dtype)))
    if total is None:
        return term
    return total + term if coef > 0 else total - term
