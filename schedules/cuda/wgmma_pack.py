"""Weights as ``wgmma`` takes them: lines in shared memory, or fragments for registers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.schedules.cuda.fragments import SHIFT, Packed
from nybble.schedules.cuda.mma_moves import PIECE
from nybble.schedules.cuda.wgmma_plan import FIRST, LINE
from nybble.schedules.kernel import TensorSpec


class Panels(Packed):
    """8 bits, the second operand: for each 128 bytes of depth a line for each channel.

    Lines are swizzled as the descriptors say: piece p of line n lies at p xor (n mod 8).
    """

    weight = LINE

    @property
    def spec(self) -> TensorSpec:
        """The packed weights: a row for each step of the depth."""
        return TensorSpec((-(-self.matrix.depth // LINE), self.padded * self.weight // 4), "uint32")

    def pack(self, weights: NDArray[Any]) -> NDArray[np.uint32]:
        """The packed weights from unpacked ones, (O, K) or OHWI."""
        lines = self.lines(weights, LINE)
        lines = lines.reshape(-1, 8, lines.shape[1] // LINE, LINE // PIECE, PIECE)
        exchanged = np.empty_like(lines)
        for line in range(8):
            for piece in range(8):
                exchanged[:, line, :, piece ^ line] = lines[:, line, :, piece]
        return _words(exchanged.transpose(2, 0, 1, 3, 4))


class Halves(Panels):
    """4 bits, the first operand, unpacked in registers: blocks of 16 channels and 64 of depth.

    A lane's 16 bytes of a block, with g = lane / 4 and t = lane % 4, are four words: of channels g
    and g + 8, for each the two steps of the tensor cores. A word's bytes have depth 4t.. of the
    step in their lower and 16 + 4t.. in their upper halves. Of the 32 channels of a warp, those of
    a lane are neighbours in the output.
    """

    weight = LINE // 2

    @property
    def shift(self) -> int:
        """By how much the sums are too far to the left."""
        return SHIFT

    @property
    def padded(self) -> int:
        """Channels in all, filled up with weights of 0."""
        group = FIRST * self.lane // 2
        return -(-self.matrix.channels // group) * group

    @property
    def order(self) -> NDArray[np.int64]:
        """The channels in the order of the blocks."""
        groups = np.arange(self.padded).reshape(-1, 8, self.lane // 2, 2)  # g; unit, g or g + 8
        return groups.transpose(0, 2, 3, 1).reshape(-1)

    def pack(self, weights: NDArray[Any]) -> NDArray[np.uint32]:
        """The packed weights from unpacked ones, (O, K) or OHWI."""
        # block, g or g + 8, g; line, slab, step, lower or upper, t, byte
        apart = self.lines(weights, LINE).reshape(self.padded // 16, 2, 8, -1, 2, 2, 2, 4, 4)
        # line, block, slab; lane; channel, step; lower or upper, byte
        ordered = apart.transpose(3, 0, 4, 2, 7, 1, 5, 6, 8)
        low, high = ordered[..., 0, :] & 15, ordered[..., 1, :] << 4
        return _words(np.bitwise_or(low, high, dtype=np.uint8))


def _words(ordered: NDArray[np.uint8]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(ordered.reshape(len(ordered), -1)).view(np.uint32)
