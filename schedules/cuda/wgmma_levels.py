"""Weights of 4 bits on two levels (`nybble.ir.two_levels`) for Hopper's ``wgmma``.

    memory   of 128 channels and 128 inputs: codes as `nybble.schedules.cuda.wgmma_pack.Halves` has
             them, then for each part of the inputs a word of each channel: step, base + 128
    decode   four codes of a word, a byte each, times step, plus base + 128 in each byte: none
             exceeds 255, so one multiply-add does all four; with the upper bits flipped they are
             base + step·c

Three instructions for four weights, where one scale for a channel needs one and a half.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from nybble.errors import ScheduleError
from nybble.ir.two_levels import split
from nybble.schedules.cuda.fragments import BLOCK
from nybble.schedules.cuda.mma_moves import ramp, run
from nybble.schedules.cuda.wgmma_pack import Halves
from nybble.schedules.cuda.wgmma_plan import FIRST, LINE
from nybble.schedules.cuda.wgmma_ring import Ring
from nybble.schedules.cuda.wgmma_tile import STEPS, ChannelsFirst

ATTR = "levels"
"""Of a problem: inputs that share step and base, found in the weights."""
LENGTHS = (LINE, LINE // 2, LINE // 4)
CHANNELS = 2 * FIRST
"""Of a warpgroup."""
OFFSET = 128
_CODES, _SIGNS, _EACH = 0x0F0F0F0F, 0x80808080, 0x01010101


def length_of(w: NDArray[Any]) -> int:
    """The longest part of the inputs that this kernel takes on two levels; 0 for none."""
    fitting = [n for n in LENGTHS if gcd(n, w.shape[1]) == n]
    return next((n for n in fitting if split(w, n) is not None), 0)


@dataclass(frozen=True)
class Levels(Halves):
    """Weights packed as above.

    Attributes:
        length: inputs of a part.
    """

    length: int = LINE

    @property
    def parts(self) -> int:
        """Of a stage."""
        return LINE // self.length

    @property
    def shift(self) -> int:
        """Sums are as they should be."""
        return 0

    @property
    def weight(self) -> int:  # type: ignore[override]
        """Bytes of a channel in a stage."""
        return Halves.weight + 4 * self.parts

    def pack(self, weights: NDArray[Any]) -> NDArray[np.uint32]:
        """The packed weights from unpacked ones, (O, K).

        Raises:
            ScheduleError: they do not lie on two levels.
        """
        found = split(weights, self.length)
        if found is None:
            raise ScheduleError(f"the weights have no two levels in parts of {self.length} inputs")
        codes, steps, bases = found
        words = super().pack(codes)
        stages = len(words)
        numbers = np.full((self.padded, stages * self.parts), OFFSET << 8, np.uint32)
        numbers[: len(steps), : steps.shape[1]] = steps | (bases + OFFSET) << 8
        apart = numbers[self.order].reshape(-1, CHANNELS, stages, self.parts)
        behind = apart.transpose(2, 0, 3, 1).reshape(stages, -1, CHANNELS * self.parts)
        both = np.concatenate([words.reshape(*behind.shape[:2], -1), behind], axis=2)
        return np.ascontiguousarray(both.reshape(stages, -1))


class LevelsFirst(ChannelsFirst):
    """Channels of 4 bits on two levels from registers, rows from shared memory."""

    fragments: Levels

    def _load(self, held: Any, ring: Ring, stage: Any) -> None:
        """Two blocks of codes for each unit; the numbers are read where they are used."""
        units, whole = self.plan.units, CHANNELS * self.fragments.weight // 4
        start = T.Bind(ring.weights(stage) + self.group * whole)
        at = T.Bind(start + self.inside * (units * 2 * BLOCK // 4) + self.lane * 4)
        for block in range(2 * units):
            value = run(ring.tile, at + block * (BLOCK // 4), 4)
            T.buffer_store(held, value, ramp(block * 4, 4))
        behind = CHANNELS * Halves.weight // 4 + self.inside * (16 * units)
        self.numbers = ring.tile, T.Bind(start + behind + T.shift_right(self.lane, 2))

    def _unpack(self, a: Any, held: Any) -> None:
        parts, units, (shared, first) = self.fragments.parts, self.plan.units, self.numbers
        for unit in range(units):
            for half in (0, 1):
                for part in range(parts):
                    at = first + (part * CHANNELS + unit * 16 + half * 8)
                    number = T.Bind(shared[at])
                    step = T.Bind(number & T.uint32(255))
                    base = T.Bind((number >> T.uint32(8)) * T.uint32(_EACH))
                    for piece in range(part * STEPS // parts, (part + 1) * STEPS // parts):
                        self._decode(a, held, (unit, half, piece), (step, base))

    def _decode(
        self, a: Any, held: Any, at: tuple[int, int, int], level: tuple[Any, Any]
    ) -> None:  # fmt: skip
        (unit, half, piece), (step, base) = at, level
        slab, turn = divmod(piece, 2)
        word = held[(unit * 2 + slab) * 4 + half * 2 + turn]
        for upper, codes in enumerate((word, word >> T.uint32(4))):
            value = ((codes & T.uint32(_CODES)) * step + base) ^ T.uint32(_SIGNS)
            T.buffer_store(a, value, [(unit * STEPS + piece) * 4 + half + 2 * upper])
