"""What a run counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Report:
    """Counts of one launch, over all blocks.

    Attributes:
        instructions: by PTX text or CUDA name (``mma.sync.aligned.m16n8k32…``, ``cta_sync``,
            ``ld.shared.b128``), how many warps issued it.
        global_read: bytes that threads read from global memory; reads of the same byte count each.
        global_written: bytes that threads wrote to global memory.
        sectors: pieces of 32 bytes of global memory that warps' accesses touch, each warp's for
            itself.
        wavefronts: passes over the banks of shared memory that were needed.
        conflicts: of those, the ones above what the bytes moved need: 0 is conflict-free.
        conflict_sites: ``conflicts`` by buffer and instruction.
        shared_bytes: shared memory of one block.
    """

    instructions: Counter[str] = field(default_factory=Counter)
    global_read: int = 0
    global_written: int = 0
    sectors: int = 0
    wavefronts: int = 0
    conflicts: int = 0
    conflict_sites: Counter[str] = field(default_factory=Counter)
    shared_bytes: int = 0

    @property
    def coalescing(self) -> float:
        """Bytes that threads read or wrote for each byte of the sectors that had to be moved.

        1 where threads side by side take memory side by side; above it where they share bytes.
        """
        return (self.global_read + self.global_written) / max(1, 32 * self.sectors)

    def count(self, prefix: str) -> int:
        """Warps that issued an instruction whose name begins with ``prefix``."""
        return sum(n for name, n in self.instructions.items() if name.startswith(prefix))
