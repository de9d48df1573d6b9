"""Depthwise dot products on x86: four taps of one channel from two pairs of kernel rows.

Activations are staged as pairs of rows, P[y] = (row y, row y + dilation) byte by byte. A quad is
two such pairs side by side, so every 32-bit lane holds four taps of one channel:

    P[a]  a0 b0 a1 b1 …                 vpunpcklwd, vpunpckhwd
    P[b]  c0 d0 c1 d1 …        ------>  a0 b0 c0 d0 | a1 b1 c1 d1 | …

``vpmaddubsw`` saturates pairs of products at 16 bits. Where dtypes allow products beyond, pairs are
staged at 16 bits and multiplied by ``vpmaddwd``: a third more instructions, and exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu.dot import AVX2, AVX512
from nybble.schedules.cpu.pairs import Pairs

SHORT = (1 << 15) - 1


@dataclass(frozen=True)
class Quads:
    """One instruction set's form of the dot product.

    Attributes:
        name: as in the kernel's name.
        features: CPU features that the code needs.
        lanes: 32-bit lanes of a vector; a block is two vectors of channels.
        registers: vector registers of the machine.
        saturates: products are summed in pairs at 16 bits.
        apply: (self, acc, x, w) -> acc with the products added.
    """

    name: str
    features: tuple[str, ...]
    lanes: int
    registers: int
    saturates: bool
    apply: Callable[[Quads, Any, Any, Any], Any]

    @property
    def channels(self) -> int:
        """Channels of a block."""
        return 2 * self.lanes

    @property
    def words(self) -> str:
        """Dtype of a vector of accumulators."""
        return f"int32x{self.lanes}"

    def interleave(self, low: Any, high: Any) -> list[Any]:
        """Two vectors of pairs as two vectors of quads, in the order of `order`."""
        lanes = self.channels
        pairs = [T.reinterpret(f"int16x{lanes}", value) for value in (low, high)]
        halves = []
        for half in (0, 4):
            at = [lane + half + i for lane in range(0, lanes, 8) for i in range(4)]
            halves.append(T.Shuffle(pairs, [i + side for i in at for side in (0, lanes)]))
        return [T.Bind(T.reinterpret(f"uint8x{4 * self.lanes}", half)) for half in halves]

    def add_wide(self, acc: Any, x: Any, w: Any) -> Any:
        """Pairs of 16-bit products added to the accumulators."""
        return acc + T.call_llvm_pure_intrin(self.words, self._maddwd, x, w)

    @property
    def _maddwd(self) -> str:
        return "llvm.x86.avx512.pmaddw.d.512" if self.lanes == 16 else "llvm.x86.avx2.pmadd.wd"

    def order(self) -> NDArray[np.int64]:
        """The channel, within its block, that each lane of the two vectors holds."""
        return lane_order(self.lanes)

    def pairs(self, x: Any, w: Any) -> Any:
        """Sums of two products each, at 16 bits."""
        wide = self.lanes == 16
        name = "llvm.x86.avx512.pmaddubs.w.512" if wide else "llvm.x86.avx2.pmadd.ub.sw"
        return T.call_llvm_pure_intrin(f"int16x{self.channels}", name, x, w)

    def widened(self, pairs: Any) -> Any:
        """Neighbouring 16-bit sums added into 32 bits."""
        ones = T.broadcast(tirx.const(1, "int16"), self.channels)
        return T.call_llvm_pure_intrin(self.words, self._maddwd, pairs, ones)


def lane_order(lanes: int) -> NDArray[np.int64]:
    """The order in which ``packssdw`` takes two vectors of 32-bit lanes."""
    starts = np.arange(0, 2 * lanes, 8)
    return np.concatenate([np.add.outer(starts + half, np.arange(4)).ravel() for half in (0, 4)])


def _maddubs(quads: Quads, acc: Any, x: Any, w: Any) -> Any:
    return acc + quads.widened(quads.pairs(x, w))


def _vnni(quads: Quads, acc: Any, x: Any, w: Any) -> Any:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * quads.lanes}"
    return T.call_llvm_pure_intrin(quads.words, name, acc, x, w)


VNNI = (*AVX512, "avx512_vnni")
FAMILIES = (
    Quads("vnni", VNNI, 16, 32, False, _vnni),
    Quads("vnni256", VNNI, 8, 32, False, _vnni),
    Quads("avx512", AVX512, 16, 32, True, _maddubs),
    Quads("avx2", AVX2, 8, 16, True, _maddubs),
)


# ---------------------------------------------------------------- weights


def row_pairs(rows: int) -> tuple[tuple[int, int], ...]:
    """First kernel rows of the two pairs of each quad; neighbours overlap where there is room."""
    count, last = 2 * ceil(rows / 4), max(rows - 2, 0)
    starts = [i * last // (count - 1) for i in range(count)]
    return tuple(zip(starts[::2], starts[1::2], strict=True))


def offset(dtype: str) -> int:
    """What staging adds to activations of ``dtype`` so that they are unsigned."""
    return -numerics.limits(dtype)[0]


def largest_pair(x: str, w: str) -> int:
    """Largest magnitude of a sum of two products."""
    low, high = numerics.limits(w)
    return 2 * (numerics.limits(x)[1] + offset(x)) * max(-low, high)


def fits_short(x: str, w: str, pairs: int) -> bool:
    """Whether so many pairs always add up within 16 bits."""
    return pairs * largest_pair(x, w) <= SHORT


def slots(weights: NDArray[Any]) -> NDArray[np.int8]:
    """Weights (channels, KH, KW) in the four slots of every quad: (channels, quads, KW, 4)."""
    channels, rows, columns = weights.shape
    rest = weights.astype(np.int8)
    found = np.zeros((channels, len(row_pairs(rows)), columns, 4), np.int8)
    for quad, starts in enumerate(row_pairs(rows)):
        for pair, first in enumerate(starts):
            taken = rest[:, first : first + 2]
            found[:, quad, :, 2 * pair : 2 * pair + taken.shape[1]] = taken.transpose(0, 2, 1)
            taken[:] = 0  # a row that stands in two pairs counts once
    return found


def pair_slots(weights: NDArray[Any], pairs: Pairs) -> NDArray[np.int16]:
    """Weights in 16-bit pairs: (channels, parities, pairs, KW, 2)."""
    channels, _, columns = weights.shape
    found = np.zeros((channels, pairs.parities, pairs.count, columns, 2), np.int16)
    for parity in range(pairs.parities):
        for pair in range(pairs.count):
            for slot, tap in enumerate(pairs.taps(parity, pair)[1]):
                if tap is not None:
                    found[:, parity, pair, :, slot] = weights[:, tap]
    return found
