"""One register tile of the bit-serial kernels: AND (or XOR) and population counts of bit planes.

AVX2 counts the bits of bytes by looking up both nibbles and sums 31 such counts in a byte; AVX-512
with VPOPCNTDQ counts those of words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import bitserial_planes, epilogue
from nybble.schedules.cpu.bitserial_planes import BitStaging, Planes
from nybble.schedules.cpu.blocking import Plan, Tile
from nybble.schedules.cpu.buffers import Buffers, load, store
from nybble.schedules.cpu.lut_plan import Isa, blocks_of, cut_of
from nybble.schedules.kernel import Problem

BYTE_COUNTS = 31  # counts of up to 8 that fit a byte


@dataclass(frozen=True)
class BitLayer:
    """Everything that the emitting functions share."""

    problem: Problem
    staging: BitStaging
    weights: Planes
    isa: Isa
    plan: Plan
    buffers: Buffers

    @property
    def blocks(self) -> int:
        """Vectors of output channels in a group."""
        return blocks_of(self.staging.geometry, self.isa)

    @property
    def counts_words(self) -> bool:
        """Whether the machine counts the bits of words."""
        return "avx512_vpopcntdq" in self.isa.features

    @property
    def needs_sum(self) -> bool:
        """Whether Σ x is part of the result."""
        return self.weights.signs and not self.staging.planes.signs

    def emit(self, tile: Tile, scratch: Any, at: tuple[Any, Any], block: tuple[Any, Any]) -> None:
        """Emits a tile: see `nybble.schedules.cpu.lut_template.Layer`."""
        _TileCode(self, tile, scratch, at, block).emit()


class _TileCode:
    """Emits one tile; a slot is (pixel · vectors + vector) · pairs of planes + pair."""

    def __init__(
        self, layer: BitLayer, tile: Tile, scratch: Any, at: tuple[Any, Any], block: tuple[Any, Any]
    ):
        self.layer, self.tile, self.scratch = layer, tile, scratch
        staging, lanes = layer.staging, layer.isa.lanes
        geometry = staging.geometry
        self.x, self.y = T.Bind(at[0] + 0), T.Bind(at[1] + 0)
        group, first = T.Bind(block[0] + 0), T.Bind(block[1] + 0)
        last = max(geometry.o - lanes, 0)
        starts = [tirx.min((first + v) * lanes, last) for v in range(tile.vectors)]
        self.starts = [T.Bind(group * geometry.o + start) for start in starts]
        self.steps = geometry.tap_rows * geometry.tap_cols * staging.run
        self.panel = T.Bind((group * layer.blocks + first) * self.steps)
        self.pixels = [(i, j) for i in range(tile.high) for j in range(tile.wide)]
        self.mine, self.theirs = len(layer.weights.coefs), len(staging.planes.coefs)
        self.slots = len(self.pixels) * tile.vectors * self.mine * self.theirs
        self.total = self._local(f"int32x{lanes}", self.slots)
        self.sums = self._local("int32", len(self.pixels))

    def _local(self, dtype: str, count: int) -> Any:
        return T.alloc_buffer((count,), dtype, scope="local", layout=None)

    def _clear(self, buffer: Any) -> None:
        with T.unroll(int(buffer.shape[0])) as i:
            T.buffer_store(buffer, tirx.const(0, str(buffer.dtype)), [i])

    def emit(self) -> None:
        """Emits the whole tile."""
        staging = self.layer.staging
        geometry = staging.geometry
        self._clear(self.total)
        self._clear(self.sums)
        with T.serial(geometry.tap_rows) as ky, T.serial(geometry.tap_cols) as kx:
            rows = ky * (geometry.dilation[0] * staging.pitch)
            x = T.Bind(self.x + rows + kx * (geometry.dilation[1] * staging.per_pixel))
            step = T.Bind(self.panel + (ky * geometry.tap_cols + kx) * staging.run)
            if self.layer.counts_words:
                with T.serial(staging.run) as k:
                    self._step(step + k, x + k, self.total)
            else:
                self._run(step, x)
        self._finish()

    def _run(self, step: Any, x: Any) -> None:
        """One run, counted in bytes that are added up before they overflow."""
        cut = cut_of(self.layer.staging.run, BYTE_COUNTS, 1)
        with T.serial(cut.whole) as b:
            self._bytes(step + b * cut.block, x + b * cut.block, cut.block)
        if cut.rest:
            self._bytes(step + cut.whole * cut.block, x + cut.whole * cut.block, cut.rest)

    def _bytes(self, step: Any, x: Any, count: int) -> None:
        step, x, lanes = T.Bind(step + 0), T.Bind(x + 0), self.layer.isa.lanes
        counts = self._local(f"uint8x{4 * lanes}", self.slots)
        self._clear(counts)
        with T.serial(count) as k:
            self._step(step + k, x + k, counts)
        ones = [
            T.broadcast(tirx.const(1, d), n) for d, n in (("int8", 4 * lanes), ("int16", 2 * lanes))
        ]
        for slot in range(self.slots):
            pairs = T.call_llvm_pure_intrin(
                f"int16x{2 * lanes}", "llvm.x86.avx2.pmadd.ub.sw", counts[slot], ones[0]
            )
            words = T.call_llvm_pure_intrin(
                f"int32x{lanes}", "llvm.x86.avx2.pmadd.wd", pairs, ones[1]
            )
            T.buffer_store(self.total, self.total[slot] + words, [slot])

    def _step(self, step: Any, x: Any, counts: Any) -> None:
        """One word of channels of every pixel, in every pair of planes."""
        layer, lanes = self.layer, self.layer.isa.lanes
        planes, geometry = layer.staging.planes, layer.staging.geometry
        weights = [T.Bind(self._weights(step, c)) for c in range(self.tile.vectors * self.mine)]
        for p, (i, j) in enumerate(self.pixels):
            there = i * geometry.stride[0] * layer.staging.pitch
            there += j * geometry.stride[1] * layer.staging.per_pixel
            for b, coef in enumerate(planes.coefs):
                word = T.Bind(self.scratch[(x + there) * self.theirs + b])
                if layer.needs_sum:
                    ones = T.Cast("int32", tirx.popcount(word)) * coef
                    T.buffer_store(self.sums, self.sums[p] + ones, [p])
                wide = T.Bind(T.broadcast(word, lanes))
                for column, mine in enumerate(weights):
                    both = layer.weights.signs and planes.signs
                    met = mine ^ wide if both else mine & wide
                    slot = (p * len(weights) + column) * self.theirs + b
                    T.buffer_store(counts, counts[slot] + self._count(met), [slot])

    def _weights(self, step: Any, column: int) -> Any:
        row = (step + column // self.mine * self.steps) * self.mine + column % self.mine
        return self.layer.buffers.constants[0].vload(
            [row, tirx.const(0)], f"uint32x{self.layer.isa.lanes}"
        )

    def _count(self, met: Any) -> Any:
        lanes = self.layer.isa.lanes
        if self.layer.counts_words:  # signed before it is added: unsigned sums must not wrap
            return T.Cast(f"int32x{lanes}", tirx.popcount(met))
        return tirx.popcount(T.reinterpret(f"uint8x{4 * lanes}", met))

    def _finish(self) -> None:
        """Planes weighted and added up, bias, epilogue, store."""
        layer, lanes = self.layer, self.layer.isa.lanes
        geometry, table = layer.staging.geometry, layer.buffers.constants[1]
        channels, valid = geometry.groups * geometry.o, min(geometry.o, lanes)
        for v, start in enumerate(self.starts):
            bias = T.Bind(table.vload([tirx.const(0), start], f"int32x{lanes}"))
            column = epilogue.Column(
                layer.problem, table, start, lanes, entries=layer.buffers.entries
            )
            for p, (i, j) in enumerate(self.pixels):
                index = T.Bind(self.y + (i * geometry.cols + j) * channels + start)
                value = bias + T.broadcast(self.sums[p], lanes) if layer.needs_sum else bias
                value = self._weighted(p * self.tile.vectors + v, value)
                other = None
                if layer.buffers.other is not None:
                    other = load(layer.buffers.other, index, lanes, valid)
                if layer.problem.output.form == "planes":
                    planes = Planes(layer.problem.output.dtype)
                    where = (tirx.floordiv(self.y, channels) + i * geometry.cols + j, channels)
                    value = column.words(value, other)
                    bitserial_planes.store(planes, layer.buffers.output, where, start, value)
                else:
                    store(layer.buffers.output, index, column.apply(value, other), valid)

    def _weighted(self, at: int, value: Any) -> Any:
        """``value`` with every pair of planes of one output added."""
        layer = self.layer
        signs = layer.weights.signs or layer.staging.planes.signs
        for a, mine in enumerate(layer.weights.coefs):
            for b, theirs in enumerate(layer.staging.planes.coefs):
                coef = mine * theirs * (-2 if signs else 1)
                found = self.total[(at * self.mine + a) * self.theirs + b]
                shift = tirx.const(abs(coef).bit_length() - 1, f"int32x{layer.isa.lanes}")
                found = T.shift_left(found, shift) if abs(coef) > 1 else found
                value = value + found if coef > 0 else value - found
        return value
