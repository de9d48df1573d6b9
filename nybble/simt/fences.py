"""``fence.proxy.async``: what threads stored, and the engines that work in the background.

``wgmma`` and TMA see a store of a thread only if the thread has fenced it before it released it to
whoever started them (PTX ISA, "Async proxy", "membar / fence"). Initialised mbarriers are such
stores, too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nybble.simt.errors import RaceError
from nybble.simt.issue import Issue
from nybble.simt.shared import UNFENCED
from nybble.simt.strand import WARP, Ints, Strand
from nybble.simt.values import Mask


def check_fences(s: Strand, chosen: Ints, grains: Ints, name: str) -> None:
    """Whether who stored has fenced the store before what it released to these warps.

    Args:
        s: whose lanes.
        chosen: numbers of the lanes that start an engine.
        grains: ``(n, k)``: what it will use.
        name: for errors.

    Raises:
        RaceError: a store without a fence.
    """
    shared, order = s.launch.shared, s.launch.order
    block, warp = s.block[chosen][:, None], s.warp[chosen][:, None]
    writer, fence = shared.writer[grains] // WARP, shared.fence_clock[grains]
    known = np.where(writer == warp, order.clock[block, warp], order.seen[block, warp, writer])
    if (fence > known).any():
        i = tuple(int(v[0]) for v in np.nonzero(fence > known))
        byte = int(grains[i]) * shared.grain % shared.size
        what = f"{name}: byte {byte} was stored by a thread; fence.proxy.async is missing"
        s.fail(RaceError, what, int(chosen[i[0]]))


def _fence_proxy(issue: Issue, s: Strand, m: Mask) -> None:
    """``fence.proxy.async``: the engines see what the active threads have stored."""
    shared, order = s.launch.shared, s.launch.order
    chosen = s.chosen(m)
    mine = np.zeros((len(s.launch.blocks), (order.warps + 1) * WARP), np.bool_)
    mine[s.block[chosen], s.thread[chosen]] = True
    late = np.flatnonzero(shared.fence_clock == UNFENCED)
    block, writer = late // (shared.size // shared.grain), shared.writer[late]
    own = mine[block, writer]
    now = order.clock[block[own], writer[own] // WARP]
    shared.fence_clock[late[own]] = now


INSTRUCTIONS: dict[str, Callable[[Issue, Strand, Mask], None]] = {
    "fence_proxy": _fence_proxy,
    "fence_mbarrier_init": _fence_proxy,
}
