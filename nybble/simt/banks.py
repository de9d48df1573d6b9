"""Banks of shared memory: 32 of four bytes; a pass serves one word from each."""

from __future__ import annotations

import numpy as np

from nybble.simt.strand import WARP, Ints

BANKS, WORD = 32, 4


def wavefronts(lanes: Ints, address: Ints, width: int) -> tuple[int, int]:
    """Passes that one instruction needs, and how few would move the same bytes without conflicts.

    A warp's access of more than four bytes a lane goes in parts: two for 8 bytes, four for 16, each
    of consecutive lanes. A part takes as many passes as the bank with most different words has
    (CUDA C++ Programming Guide, "Shared Memory"; the parts as measured since Maxwell).

    Args:
        lanes: numbers of the active lanes, ascending.
        address: byte address of each active lane.
        width: bytes a lane.

    Returns:
        the passes, and the parts.
    """
    part = lanes // (WARP * WORD // max(width, WORD))
    words = address[:, None] // WORD + np.arange(max(1, width // WORD))
    key = np.sort((part[:, None] * (1 << 32) + words).ravel())
    once = key[np.append(True, key[1:] != key[:-1])]  # the same word goes to many lanes at once
    slots = (once >> 32) * BANKS + once % BANKS
    counts = np.bincount(slots, minlength=(int(part[-1]) + 1) * BANKS)
    most = counts.reshape(-1, BANKS).max(axis=1)
    return int(most.sum()), int((most > 0).sum())
