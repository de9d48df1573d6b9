"""Packed weights from global to shared memory, as they lie: any 16 bytes by any thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.fragments import BLOCK, Fragments
from nybble.schedules.cuda.mma_moves import PIECE, copy, divmod_of, ramp, run
from nybble.schedules.cuda.mma_plan import Plan


class Channels:
    """Loads of the packed weights by one thread of a block.

    Args:
        fragments: how they are packed.
        plan: how the layer is cut.
        source: the packed weights, words.
        tile: shared memory, in words.
    """

    def __init__(self, fragments: Fragments, plan: Plan, source: Any, tile: Any):
        self.fragments, self.plan, self.source, self.tile = fragments, plan, source, tile
        self.start = plan.stages * plan.lines.words

    def begin(self, first: Any, thread: Any) -> None:
        """Emits what stays the same for all of the depth; ``first`` is the first channel."""
        self.block, self.thread = T.Bind(divmod_of(first, self.fragments.channels)[0]), thread

    @property
    def pieces(self) -> int:
        """Of a stage, by one thread."""
        return self.plan.weight_words(self.fragments) // (4 * self.plan.threads)

    def _slots(self, step: Any) -> Iterator[tuple[Any, Any, Any]]:
        """(word of the stage, word of the packed weights, whether there is such a slab)."""
        line = self.plan.channels // self.fragments.channels * (BLOCK // PIECE)  # pieces of a slab
        for n in range(self.pieces):
            index = self.thread + n * self.plan.threads
            slab, piece = divmod_of(index, line)
            slab = T.Bind(step * self.plan.slabs + slab)
            block, part = divmod_of(piece, BLOCK // PIECE)
            block = self.block + block
            if self.fragments.padded % self.plan.channels:
                block = tirx.min(block, self.fragments.blocks - 1)
            word = T.Bind(block * (BLOCK // 4) + part * 4)
            inside = None
            if self.fragments.matrix.slabs % self.plan.slabs:
                inside = slab < self.fragments.matrix.slabs
                slab = T.Bind(tirx.min(slab, self.fragments.matrix.slabs - 1))
            yield index * 4, slab * (self.fragments.blocks * BLOCK // 4) + word, inside

    def copy(self, step: Any, stage: Any) -> None:
        """Emits the asynchronous copies of a step of the depth."""
        start = self.start + stage * self.plan.weight_words(self.fragments)
        for at, where, inside in self._slots(step):
            copy(self.tile[start + at], self.source[where], PIECE, inside)

    def fetch(self, step: Any) -> Any:
        """Emits the loads of a step of the depth; returns the registers."""
        held = T.alloc_buffer((self.pieces * 4,), "uint32", scope="local", layout=None)
        for n, (_, where, inside) in enumerate(self._slots(step)):
            T.buffer_store(held, run(self.source, where, 4), ramp(4 * n, 4))
            for word in range(4 if inside is not None else 0):
                kept = tirx.Select(inside, held[4 * n + word], T.uint32(0))
                T.buffer_store(held, kept, [4 * n + word])
        return held

    def put(self, held: Any, stage: Any) -> None:
        """Emits the stores of what `fetch` gave."""
        start = self.start + stage * self.plan.weight_words(self.fragments)
        for n in range(self.pieces):
            at = start + (self.thread + n * self.plan.threads) * 4
            T.buffer_store(self.tile, run(held, 4 * n, 4), ramp(at, 4))
