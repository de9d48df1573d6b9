"""Weights in the order in which lanes use them: no shared-memory layout, no bank conflict, ever.

Packed weights are blocks of 512 bytes, 16 for each lane of a warp: what the lane feeds to the
tensor cores from one slab of depth (`nybble.schedules.cuda.tensor_core`, B):

    8 bits, or 4 bits for 4-bit tensor cores: 8 channels     4 bits to be unpacked: 16 channels
        [step 0: b0 b1] [step 1: b0 b1]                      [0-7: step 0, step 1] [8-15: …]

A word of 4-bit weights to be unpacked has b0 in the lower and b1 in the upper halves of its bytes;
the tensor cores get weight · 16, which costs a shift and two masks for 8 weights, and the sums are
shifted back at the end.

Channels are permuted so that the sums of a lane (channels 2t, 2t + 1 of every block) are neighbours
in the output: of ``4·lane`` channels, lane t of each row has ``lane`` in a row, which the epilogue
loads and stores as one vector. No sum goes through shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from nybble.errors import ScheduleError
from nybble.ir import numerics
from nybble.schedules.cuda.matrix import SLAB, Matrix
from nybble.schedules.cuda.tensor_core import CHANNELS
from nybble.schedules.kernel import TensorSpec

BLOCK = 512
"""Bytes of packed weights that a warp loads at once."""

HIGH = 0xF0F0F0F0
PROCESSORS = 128  # of a large GPU, or so
SHIFT = 4  # weights of 4 bits are in the upper half of their bytes: 16 times themselves


@dataclass(frozen=True)
class Packed:
    """A layer's weights as a kernel lays them out.

    Attributes:
        matrix: the layer.
        lane: channels of the output that lie side by side in a lane: 4, 8 or 16.
    """

    matrix: Matrix
    lane: int

    @property
    def shift(self) -> int:
        """By how much the sums are too far to the left."""
        return 0

    @property
    def padded(self) -> int:
        """Channels in all, filled up with weights of 0."""
        group = 4 * self.lane
        return -(-self.matrix.channels // group) * group

    @property
    def order(self) -> NDArray[np.int64]:
        """The channels in the order in which instructions take them."""
        # a group: t, units, which of two  ->  units, columns: t and which of two
        groups = np.arange(self.padded).reshape(-1, 4, self.lane // 2, 2)
        return groups.transpose(0, 2, 1, 3).reshape(-1)

    def lines(self, weights: NDArray[Any], unit: int) -> NDArray[np.uint8]:
        """The weights as bytes along the depth, channels in the order of the sums.

        Args:
            weights: (O, K) or OHWI integers.
            unit: bytes of which the depth becomes a multiple.
        """
        matrix = self.matrix
        taps = weights.reshape(len(weights), matrix.taps, matrix.elements)
        held = taps.astype(np.int64).astype(np.uint8)
        if matrix.packing == 2:
            held = numerics.pack(taps, "uint4")
        held = np.pad(held, ((0, 0), (0, 0), (0, matrix.line - held.shape[2])))
        found = np.zeros((self.padded, -(-matrix.depth // unit) * unit), np.uint8)
        found[: len(weights), : matrix.depth] = held.reshape(len(weights), -1)
        return found[self.order]

    def check(self, weights: NDArray[Any], activations: str) -> None:
        """Proves that the sums of unpacked weights, 16 times too large, fit 32 bits.

        Raises:
            ScheduleError: they do not.
        """
        if not self.shift:
            return
        reach = max(abs(limit) for limit in numerics.limits(activations))
        most = np.abs(weights.astype(np.int64)).reshape(len(weights), -1).sum(1).max() * reach
        if most << self.shift >= 1 << 31:
            raise ScheduleError(
                f"sums of up to {most} leave no {self.shift} of 32 bits free; "
                "8-bit weights need none"
            )


@dataclass(frozen=True)
class Fragments(Packed):
    """Weights packed for ``mma``.

    Attributes:
        bits: of a packed weight, 8 or 4.
    """

    bits: int

    @property
    def unpacks(self) -> bool:
        """Whether weights of 4 bits become 8 in registers."""
        return self.bits * self.matrix.packing < 8

    @property
    def shift(self) -> int:
        """By how much the sums are too far to the left."""
        return SHIFT if self.unpacks else 0

    @property
    def channels(self) -> int:
        """Channels of a block."""
        return CHANNELS * (2 if self.unpacks else 1)

    @property
    def blocks(self) -> int:
        """Blocks of one slab."""
        return self.padded // self.channels

    def beside(self, _slabs: int, _channels: int) -> int:
        """Words of a stage, of so many slabs and channels, that are no weights."""
        return 0

    @property
    def spec(self) -> TensorSpec:
        """The packed weights: a row for each slab."""
        return TensorSpec((self.matrix.slabs, self.blocks * BLOCK // 4), "uint32")

    def pack(self, weights: NDArray[Any]) -> NDArray[np.uint32]:
        """The packed weights from unpacked ones, (O, K) or OHWI.

        Args:
            weights: integers that ``bits`` hold.
        """
        slabs = self.matrix.slabs
        # unit, column; slab, step, b0 or b1, t of the depth, byte
        apart = self.lines(weights, SLAB).reshape(-1, 8, slabs, 2, 2, 4, 4)
        # slab, unit; lane = column and t of the depth; step, b0 or b1, byte
        ordered = apart.transpose(2, 0, 1, 5, 3, 4, 6).reshape(slabs, -1, 32, 2, 2, 4)
        if self.unpacks:
            low, high = ordered[..., 0, :] & 15, ordered[..., 1, :] << 4
            nibbles = np.bitwise_or(low, high, dtype=np.uint8)  # slab, unit, lane, step
            ordered = nibbles.reshape(slabs, -1, 2, 32, 2, 4).swapaxes(2, 3)
        return np.ascontiguousarray(ordered.reshape(slabs, -1)).view(np.uint32)

    def operand(self, words: Any, unit: int, step: int) -> Sequence[Any]:
        """b0 and b1 of a step, as expressions.

        Args:
            words: a lane's words of consecutive blocks.
            unit: which 8 channels of them.
            step: 0 or 1.
        """
        if self.unpacks:
            return unpacked(words[unit * 2 + step])
        first = unit * 4 + step * 2
        return words[first], words[first + 1]


def unpacked(word: Any) -> tuple[Any, Any]:
    """The lower and the upper halves of a word's bytes, each 16 times itself."""
    high = T.uint32(HIGH)
    return (word << T.uint32(SHIFT)) & high, word & high


def lane_of(matrix: Matrix) -> int:
    """Channels side by side in a lane: 16 make the widest stores, fewer make smaller tiles.

    Large layers have tiles of 64 channels anyway; small ones need many blocks to fill a GPU.
    """
    rows, channels = matrix.static_rows, matrix.channels
    if channels % 64 == 0 and rows * channels >= 1 << 20:
        return 16
    smallest = -(-rows // 16) * -(-channels // 32)  # tiles that 8 channels in a lane allow
    return 8 if smallest >= PROCESSORS else 4
