"""Accumulators of a block, from the scratch through the epilogue to the output.

Four vectors of 16 accumulators become 64 bytes: two saturating packs to 16 bits, one to 8, and a
permutation that undoes the packs' order. Saturation is part of the clamp, and what is left of the
clamp is done on bytes. The four vectors are those of 4 / vectors neighbouring pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu import epilogue, packing
from nybble.schedules.cpu.amx_plan import LANES
from nybble.schedules.cpu.buffers import Buffers, load, store
from nybble.schedules.cpu.entries import of_bytes, takes_bytes
from nybble.schedules.cpu.loops import stored
from nybble.schedules.kernel import Epilogue, Problem

_ORDER = [4 * quarter + vector for vector in range(4) for quarter in range(4)]


@dataclass(frozen=True)
class Finish:
    """What is stored where.

    Attributes:
        problem: the layer.
        buffers: its parameters.
        scratch: accumulators [tile of pixels][pixel][vector][16].
        tall: pixels of a tile.
        channels: first channel of each vector.
        o: channels of a pixel of the output.
    """

    problem: Problem
    buffers: Buffers
    scratch: Any
    tall: int
    channels: Sequence[Any]
    o: int

    @property
    def vectors(self) -> int:
        """Vectors of a pixel."""
        return len(self.channels)

    def emit(self, pixels: Sequence[Any]) -> None:
        """Emits everything; ``pixels`` are the first output pixels of the tiles."""
        if self._packs():
            columns = self._columns(range(self.vectors))
            for tile, pixel in enumerate(pixels):
                self._packed(tile, pixel, columns)
            return
        for v in range(self.vectors):
            (column,) = self._columns(range(v, v + 1))
            for tile, pixel in enumerate(pixels):
                with T.serial(self.tall) as p:
                    value = column.apply(self._acc(tile, p, v), self._other(pixel + p, v))
                    at = (pixel + p) * self.o + self.channels[v]
                    store(self.buffers.output, at, value, min(self.o, LANES))

    def _packs(self) -> bool:
        is_whole = self.o % LANES == 0 and 4 % self.vectors == 0 and self.tall >= 4 // self.vectors
        return is_whole and self.problem.output.dtype not in {"int32", "int1"}

    def _columns(self, vectors: range) -> list[epilogue.Column]:
        table, entries = self.buffers.constants[1], self.buffers.entries
        return [
            epilogue.Column(self.problem, table, self.channels[v], LANES, entries=entries)
            for v in vectors
        ]

    def _acc(self, tile: int, pixel: Any, vector: int) -> Any:
        at = (tile * self.tall + pixel) * (self.vectors * LANES) + vector * LANES
        return self.scratch.vload([at], f"int32x{LANES}")

    def _other(self, pixel: Any, vector: int) -> Any:
        if self.buffers.other is None:
            return None
        at = pixel * self.o + self.channels[vector]
        return load(self.buffers.other, at, LANES, min(self.o, LANES))

    def _packed(self, tile: int, pixel: Any, columns: Sequence[epilogue.Column]) -> None:
        """All pixels of a tile, ``group`` at a time; the last groups may overlap."""
        group, count = 4 // self.vectors, -(-self.tall * self.vectors // 4)
        bounds, dtype = packing.pending(self.problem)
        zero = T.broadcast(tirx.const(bounds.zero_point, "int32"), LANES)
        with T.serial(count) as g:
            first = T.Bind(tirx.min(g * group, self.tall - group))
            steps = []
            for i in range(4):
                p, v = first + i // self.vectors, i % self.vectors
                other = self._other(pixel + p, v)
                steps.append(T.Bind(columns[v].steps(self._acc(tile, p, v), other) + zero))
            packed = T.Bind(_clamped(_pack(steps, stored(dtype)), bounds))
            if self.buffers.entries is not None and takes_bytes(self.problem):
                packed = T.Bind(of_bytes(self.buffers.entries, packed))
            for i in range(group):
                width = 64 // group
                lanes = list(range(i * width, (i + 1) * width))
                part = packed if group == 1 else T.Shuffle([packed], lanes)
                at = (pixel + first + i) * self.o + self.channels[0]
                store(self.buffers.output, at, part, width)


def _clamped(packed: Any, bounds: Epilogue) -> Any:
    """The clamp, as far as saturation has left it undone."""
    dtype = str(packed.ty.dtype).partition("x")[0]
    lowest, highest = numerics.limits(dtype)
    if bounds.hi < highest:
        packed = tirx.min(packed, T.broadcast(tirx.const(int(bounds.hi), dtype), 64))
    if bounds.lo > lowest:
        packed = tirx.max(packed, T.broadcast(tirx.const(int(bounds.lo), dtype), 64))
    return packed


def _pack(values: Sequence[Any], dtype: str) -> Any:
    """Four int32x16 as one vector of 64 saturated bytes, in order."""
    to_bytes = "packuswb" if dtype == "uint8" else "packsswb"
    halves = [
        T.call_llvm_pure_intrin("int16x32", "llvm.x86.avx512.packssdw.512", *values[i : i + 2])
        for i in (0, 2)
    ]
    mixed = T.call_llvm_pure_intrin("int8x64", f"llvm.x86.avx512.{to_bytes}.512", *halves)
    words = T.Shuffle([T.reinterpret("int32x16", mixed)], _ORDER)
    return T.reinterpret(f"{dtype}x64", words)
