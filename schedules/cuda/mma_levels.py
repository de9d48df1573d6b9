"""Weights of 4 bits on two levels (`nybble.schedules.cuda.levels`) for ``mma``.

    memory   codes, as `nybble.schedules.cuda.fragments` has weights to be unpacked; behind them for
             each *band* of depth, a slab or a part of the inputs if that is longer, the numbers of
             each block: a word has those of one column in both units. Of two parts in a slab there
             is a word each, for the two steps of the tensor cores. The last band is neutral
    stage    rows; codes; numbers
    lane     of each block four words of codes, and one of numbers (or two) that is the same for the
             four lanes of a column

So parts of 128 inputs take 4.125 bits a weight, of 32 inputs 4.5. Seven instructions make eight
weights, where one scale for a channel needs three, and two permutations a step and a base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda import levels
from nybble.schedules.cuda.fragments import BLOCK, Fragments
from nybble.schedules.cuda.matrix import SLAB
from nybble.schedules.cuda.mma_moves import PIECE, copy, divmod_of, ramp, run
from nybble.schedules.cuda.mma_plan import Plan
from nybble.schedules.cuda.mma_tile import WarpTile
from nybble.schedules.cuda.mma_weights import Channels
from nybble.schedules.cuda.tensor_core import CHANNELS
from nybble.schedules.kernel import TensorSpec

UNITS = 2  # of a block, whose numbers share a word


@dataclass(frozen=True)
class Levels(Fragments):
    """Weights packed as above.

    Attributes:
        length: inputs of a part.
    """

    length: int

    @property
    def shift(self) -> int:
        """Sums are as they should be."""
        return 0

    @property
    def span(self) -> int:
        """Slabs of a band."""
        return max(1, self.length // SLAB)

    @property
    def each(self) -> int:
        """Parts of a band."""
        return max(1, SLAB // self.length)

    @property
    def bands(self) -> int:
        """Of the depth."""
        return -(-self.matrix.slabs // self.span)

    @property
    def words(self) -> int:
        """Of a block's numbers in a band."""
        return CHANNELS * self.each

    @property
    def codes(self) -> int:
        """Words of all codes."""
        return self.matrix.slabs * self.blocks * (BLOCK // 4)

    def beside(self, slabs: int, channels: int) -> int:
        """Words of a stage, of so many slabs and channels, for numbers."""
        return max(1, slabs // self.span) * (channels // self.channels) * self.words

    @property
    def spec(self) -> TensorSpec:
        """The packed weights: codes, then numbers."""
        return TensorSpec((self.codes + (self.bands + 1) * self.blocks * self.words,), "uint32")

    def pack(self, weights: NDArray[Any]) -> NDArray[np.uint32]:
        """The packed weights from unpacked ones, (O, K).

        Raises:
            ScheduleError: they do not lie on two levels.
        """
        codes, given = levels.numbered(weights, self.length)
        shape = self.padded, (self.bands + 1) * self.each
        numbers = np.full(shape, levels.NEUTRAL, np.uint16)
        numbers[: len(given), : given.shape[1]] = given
        apart = numbers[self.order].reshape(-1, UNITS, CHANNELS, self.bands + 1, self.each)
        ordered = np.ascontiguousarray(apart.transpose(3, 0, 2, 4, 1))
        return np.concatenate([super().pack(codes).reshape(-1), ordered.reshape(-1).view("<u4")])


def _start(packed: Levels, plan: Plan, stage: Any) -> Any:
    """The word of shared memory where a stage's numbers begin."""
    before = plan.stages * (plan.lines.words + plan.weight_words(packed))
    return before + stage * packed.beside(plan.slabs, plan.channels)


class LevelChannels(Channels):
    """Loads of codes and numbers by one thread of a block."""

    fragments: Levels

    def _numbers(self, step: Any) -> Iterator[tuple[Any, Any, Any]]:
        """(word of the stage's numbers, word of the packed weights, whether the thread has it)."""
        packed, plan = self.fragments, self.plan
        each = packed.words * 4 // PIECE  # pieces of a block
        line = plan.channels // packed.channels * each
        count = packed.beside(plan.slabs, plan.channels) * 4 // PIECE
        first = T.Bind(divmod_of(step * plan.slabs, packed.span)[0])
        for n in range(-(-count // plan.threads)):
            index = self.thread + n * plan.threads
            band, piece = divmod_of(index, line)
            block, part = divmod_of(piece, each)
            block, band = self.block + block, first + band
            if packed.padded % plan.channels:
                block = tirx.min(block, packed.blocks - 1)
            if packed.bands * line % count:  # the neutral one
                band = tirx.min(band, packed.bands)
            where = packed.codes + (band * packed.blocks + block) * packed.words + part * 4
            is_there = index < count if (n + 1) * plan.threads > count else None
            yield index * 4, T.Bind(where), is_there

    def copy(self, step: Any, stage: Any) -> None:
        """Emits the asynchronous copies of a step of the depth."""
        super().copy(step, stage)
        start = _start(self.fragments, self.plan, stage)
        for at, where, is_there in self._numbers(step):
            with _only(is_there):
                copy(self.tile[start + at], self.source[where], PIECE)

    def fetch(self, step: Any) -> Any:
        """Emits the loads of a step of the depth; returns the registers."""
        found = list(self._numbers(step))
        held = T.alloc_buffer((4 * len(found),), "uint32", scope="local", layout=None)
        for n, (_, where, is_there) in enumerate(found):
            with _only(is_there):
                T.buffer_store(held, run(self.source, where, 4), ramp(4 * n, 4))
        return super().fetch(step), held

    def put(self, held: Any, stage: Any) -> None:
        """Emits the stores of what `fetch` gave."""
        super().put(held[0], stage)
        start = _start(self.fragments, self.plan, stage)
        for n, (at, _, is_there) in enumerate(self._numbers(tirx.const(0, "int32"))):
            with _only(is_there):
                T.buffer_store(self.tile, run(held[1], 4 * n, 4), ramp(start + at, 4))


@contextmanager
def _only(condition: Any) -> Iterator[None]:
    """Emits what follows under a condition, None for always."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield


class LevelTile(WarpTile):
    """The sums of one warp, whose weights become 8 bits in registers."""

    fragments: Levels

    def _load_weights(self, b: Any, stage: Any, slab: Any) -> None:
        held, across = self._packed_words(stage, slab), self.plan.units[1]
        packed, numbers = self.fragments, self._numbers(stage, slab)
        for unit in range(across):
            block, which = divmod(unit, UNITS)
            for part in range(packed.each):
                step, base = _opened(numbers[block * packed.each + part], which)
                for k in range(2)[part :: packed.each]:
                    given = levels.decoded(held[unit * 2 + k], step, base)
                    for i, word in enumerate(given):
                        T.buffer_store(b, word, [(k * across + unit) * 2 + i])

    def _numbers(self, stage: Any, slab: Any) -> Any:
        """The lane's words of numbers, of all blocks of a slab."""
        packed, plan = self.fragments, self.plan
        blocks, each = plan.warp_channels // packed.channels, packed.each
        held = T.alloc_buffer((blocks * each,), "uint32", scope="local", layout=None)
        band = divmod_of(slab, packed.span)[0] * (plan.channels // packed.channels)
        block = band + divmod_of(self.channel, packed.channels)[0]
        column = divmod_of(self.lane, 4)[0]
        at = T.Bind(_start(packed, plan, stage) + block * packed.words + column * each)
        for n in range(blocks):
            value = run(self.tile, at + n * packed.words, each)
            T.buffer_store(held, value, ramp(n * each, each))
        return held


def _opened(word: Any, which: int) -> tuple[Any, Any]:
    """Step, and base + 128 in each byte, of the lower or the upper number of a word."""
    found = T.alloc_buffer((2,), "uint32", scope="local", layout=None)
    first = 2 * which
    for i, selector in enumerate((0x4440 + first, 0x1111 * (first + 1))):
        permute = script.ptx["prmt.b32"]
        T.evaluate(permute(found[i], word, T.uint32(0), T.uint32(selector)))
    return found[0], found[1]
