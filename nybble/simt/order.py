"""Who has to have seen what: happened-before between the warps of a block, and races.

Each warp has a clock that every barrier, warp barrier or arrival moves on, and a vector: up to
which clock of every other warp it has synchronised. An access at clock c of warp x happened before
warp w's next one exactly if w's entry for x is c or more (FastTrack, Flanagan and Freund, PLDI
2009, with warps in the place of threads; within a warp the lane is compared, too). One more
participant stands for the engine that writes in the background (TMA).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Order:
    """Clocks and vectors of all warps of some blocks.

    Attributes:
        clock: ``(blocks, warps + 1)``; the last one is the engine.
        seen: ``(blocks, warps + 1, warps + 1)``; ``[b, w, x]`` is w's entry for x.
    """

    def __init__(self, blocks: int, warps: int):
        self.warps = warps
        self.engine = warps
        self.clock = np.ones((blocks, warps + 1), np.int32)
        self.seen = np.zeros((blocks, warps + 1, warps + 1), np.int32)

    def meet(self, block: Ints, warps: Ints) -> None:
        """A barrier of ``warps``, the same ones in each of the blocks."""
        rows = block[:, None]
        known = self.seen[rows, warps].max(axis=1)
        known[:, warps] = self.clock[rows, warps]
        self.seen[rows, warps] = known[:, None]
        self.clock[rows, warps] += 1

    def step(self, block: Ints, warp: Ints) -> None:
        """A warp barrier: the lanes of each ``(block, warp)`` have seen one another."""
        self.seen[block, warp, warp] = self.clock[block, warp]
        self.clock[block, warp] += 1

    def release(self, block: int, warp: int) -> npt.NDArray[np.int32]:
        """All that a warp's next arrival hands over; its clock moves on."""
        known = self.seen[block, warp].copy()
        known[warp] = self.clock[block, warp]
        self.clock[block, warp] += 1
        return known

    def acquire(self, block: int, warp: int, known: npt.NDArray[np.int32]) -> None:
        """A warp takes over what others had released."""
        np.maximum(self.seen[block, warp], known, out=self.seen[block, warp])
