"""Weights of 4 bits on two levels (`nybble.schedules.cuda.levels`) for Hopper's ``wgmma``.

    memory   of 128 channels and 128 inputs: codes as `nybble.schedules.cuda.wgmma_pack.Halves` has
             them, then for each part of the inputs a word of each channel: its number

Three instructions for four weights, where one scale for a channel needs one and a half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda import levels
from nybble.schedules.cuda.fragments import BLOCK
from nybble.schedules.cuda.mma_moves import ramp, run
from nybble.schedules.cuda.wgmma_pack import Halves
from nybble.schedules.cuda.wgmma_plan import FIRST, LINE
from nybble.schedules.cuda.wgmma_ring import Ring
from nybble.schedules.cuda.wgmma_tile import STEPS, ChannelsFirst

CHANNELS = 2 * FIRST
"""Of a warpgroup."""
_EACH = 0x01010101


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
        codes, given = levels.numbered(weights, self.length)
        words = super().pack(codes)
        stages = len(words)
        numbers = np.full((self.padded, stages * self.parts), levels.NEUTRAL, np.uint32)
        numbers[: len(given), : given.shape[1]] = given
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
        for upper, value in enumerate(levels.decoded(word, step, base)):
            T.buffer_store(a, value, [(unit * STEPS + piece) * 4 + half + 2 * upper])
