"""One tile of `nybble.schedules.cpu.trits`: blocks of 32 channels, each a stream of its own.

    span of eight groups: low += ±look up, high += ±look up      signed bytes
    words += low + 31·high                                       every span
    total += words, as 32 bits                                   every ten spans

The sign of a group is the uppermost bit of a byte that must not be zero, for ``vpsignb`` would make
zeros of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.blocking import Plan, Tile
from nybble.schedules.cpu.buffers import Buffers
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.lut_plan import Isa, blocks_of
from nybble.schedules.cpu.lut_scheme import ENTRIES
from nybble.schedules.cpu.lut_store import halved, starts_in, store_block
from nybble.schedules.cpu.trits_stage import BASE, GROUPS, TABLE, TritStaging
from nybble.schedules.kernel import Problem

VECTORS = (4, 2, 1)  # streams at once; the hardware follows each of them
SPANS = 10  # that fit 16 bits: 32767 / (8·3·128)


@dataclass(frozen=True)
class TritLayer:
    """Everything that the emitting functions share."""

    problem: Problem
    staging: TritStaging
    isa: Isa
    plan: Plan
    buffers: Buffers

    @property
    def geometry(self) -> Geometry:
        """Of the layer."""
        return self.staging.geometry

    @property
    def blocks(self) -> int:
        """Blocks of output channels."""
        return blocks_of(self.geometry, self.isa)

    def emit(self, tile: Tile, scratch: Any, at: tuple[Any, Any], block: tuple[Any, Any]) -> None:
        """Emits a tile: see `nybble.schedules.cpu.lut_template.Layer`."""
        _TileCode(self, tile.vectors, scratch, at, block[1]).emit()


class _TileCode:
    """Emits one row of some blocks."""

    def __init__(
        self, layer: TritLayer, vectors: int, scratch: Any, at: tuple[Any, Any], block: Any
    ):
        self.layer, self.vectors, self.scratch = layer, vectors, scratch
        self.x, self.y, self.block = T.Bind(at[0] + 0), T.Bind(at[1] + 0), T.Bind(block + 0)
        self.words = T.alloc_buffer((2 * vectors,), "int16x16", scope="local", layout=None)
        self.total = T.alloc_buffer((4 * vectors,), "int32x8", scope="local", layout=None)

    def emit(self) -> None:
        """Emits the whole tile."""
        spans = self.layer.staging.spans
        _clear(self.total)
        with T.serial(-(-spans // SPANS)) as run:
            first = T.Bind(run * SPANS)
            _clear(self.words)
            with T.serial(tirx.min(spans - first, SPANS)) as i:
                span = T.Bind(first + i)
                for v in range(self.vectors):
                    self._span(v, span)
            for i in range(4 * self.vectors):
                part = T.Shuffle([self.words[i // 2]], list(range(i % 2 * 8, i % 2 * 8 + 8)))
                T.buffer_store(self.total, self.total[i] + T.Cast("int32x8", part), [i])
        for v, start in enumerate(starts_in(self.layer, self.block, self.vectors)):
            store_block(self.layer, self.y, start, [self.total[4 * v + q] for q in range(4)])

    def _span(self, v: int, span: Any) -> None:
        """Eight groups of one block."""
        row = T.Bind(((self.block + v) * self.layer.staging.spans + span) * (GROUPS // 2 + 1))
        signs, pairs = T.Bind(self._stored(row + GROUPS // 2)), None
        sums: list[Any] = [None, None]
        for group in range(GROUPS):
            if group % 2 == 0:
                pairs = T.Bind(self._stored(row + group // 2))
            index, sign = T.Bind(halved(pairs, group % 2)), T.Bind(_sign(signs, group))
            for part, before in enumerate(sums):
                table = self._table(span, group, part)
                found = _byte("psign.b", _byte("pshuf.b", table, index), sign)
                sums[part] = T.Bind(found if before is None else before + found)
        self._widen(v, *sums)

    def _stored(self, row: Any) -> Any:
        weights = self.layer.buffers.constants[0]
        return weights.vload([row, tirx.const(0)], f"uint8x{self.layer.isa.lanes}")

    def _table(self, span: Any, group: int, part: int) -> Any:
        """One table in both halves of a vector."""
        at = ((self.x + span) * GROUPS + group) * TABLE + part * ENTRIES
        few = self.scratch.vload([at], f"int8x{ENTRIES}")
        return T.Bind(T.Shuffle([few, few], list(range(2 * ENTRIES))))

    def _widen(self, v: int, low: Any, high: Any) -> None:
        """Adds the bytes of a span to the words: those of 16 channels each."""
        factors = T.reinterpret("uint8x32", tirx.const(BASE * 256 + 1, "uint16x16"))
        for half in range(2):
            order = [
                lane * 16 + half * 8 + i + part * 32
                for lane in range(2) for i in range(8) for part in range(2)
            ]  # fmt: skip
            both = T.Shuffle([low, high], order)
            words = T.call_llvm_pure_intrin(
                "int16x16", "llvm.x86.avx2.pmadd.ub.sw", factors, both
            )  # fmt: skip
            T.buffer_store(self.words, self.words[2 * v + half] + words, [2 * v + half])


def _sign(signs: Any, group: int) -> Any:
    """The group's bit of every byte uppermost, above bits that are not all zero.

    Words are shifted, which takes one instruction: what enters a byte from below does no harm.
    """
    one = tirx.const(1, "uint8x32")
    last = group == GROUPS - 1
    words = T.reinterpret("uint16x16", signs if last else signs | one)
    moved = T.reinterpret("uint8x32", T.shift_left(words, tirx.const(group, "uint16x16")))
    return moved | one if last else moved


def _byte(name: str, a: Any, b: Any) -> Any:
    return T.call_llvm_pure_intrin("int8x32", f"llvm.x86.avx2.{name}", a, b)


def _clear(buffer: Any) -> None:
    for i in range(int(buffer.shape[0])):
        T.buffer_store(buffer, tirx.const(0, str(buffer.dtype)), [i])
