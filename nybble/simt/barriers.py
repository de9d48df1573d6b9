"""Barriers: of a warp, of a block, of some warps of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nybble.simt.codes import Code, Kind, Scope
from nybble.simt.errors import DivergenceError
from nybble.simt.issue import Issue
from nybble.simt.strand import WARP, Ints, Strand
from nybble.simt.values import Mask
from nybble.simt.warps import members


class Rendezvous:
    """One barrier resource of every block: who is there, how many rounds are over."""

    def __init__(self, blocks: int, warps: int):
        self.there = np.zeros((blocks, warps), np.bool_)
        self.rounds = np.zeros(blocks, np.int64)


def arrive(s: Strand, block: Ints, warp: Ints, barrier: tuple[int, int]) -> None:
    """Warps arrive at a barrier: its number, and how many threads it waits for."""
    number, threads = barrier
    launch = s.launch
    place = launch.barriers.get(number)
    if place is None:
        place = launch.barriers[number] = Rendezvous(len(launch.blocks), launch.order.warps)
    if place.there[block, warp].any():
        i = int(np.flatnonzero(place.there[block, warp])[0])
        what = f"barrier {number}: a warp comes twice before the others came once"
        s.fail(
            DivergenceError,
            what,
            int(np.flatnonzero((s.block == block[i]) & (s.warp == warp[i]))[0]),
        )
    place.there[block, warp] = True
    launch.progress += 1
    full = np.flatnonzero(place.there.sum(axis=1) * WARP >= threads)
    for one in full:
        launch.order.meet(np.array([one]), np.flatnonzero(place.there[one]))
    place.there[full] = False
    place.rounds[full] += 1


def wait(s: Strand, block: Ints, number: int, before: Ints) -> Iterator[None]:
    """Yields until the barrier's round that was ``before`` is over in all these blocks."""
    while (s.launch.barriers[number].rounds[block] == before).any():
        s.line = f"barrier {number}"
        yield


def synchronize(s: Strand, m: Mask, number: int, threads: int, name: str) -> Iterator[None]:
    """Arrives with all active warps, which must be whole, and waits for the others."""
    s.tally(name, m)
    groups = s.whole(m, WARP, name)
    block, warp = s.block[groups * WARP], s.warp[groups * WARP]
    places = s.launch.barriers
    before = places[number].rounds[block] if number in places else np.zeros(len(block), np.int64)
    before = before.copy()
    arrive(s, block, warp, (number, threads))
    yield from wait(s, block, number, before)


def block_barrier(scope: Scope, node: Any) -> Code:
    """``__syncthreads()``."""
    if scope.split is not None:

        def step(s: Strand, m: Mask) -> Iterator[None]:
            threads = -(-s.launch.geometry.size("threadIdx") // WARP) * WARP
            yield from synchronize(s, _padded(s, m), 0, threads, "cta_sync")

        return Code(step, Kind.VARYING, waits=True)

    def run(s: Strand, m: Mask) -> None:
        s.tally("cta_sync", m)
        whole = s.whole(_padded(s, m), s.per_block, "cta_sync")
        s.launch.order.meet(whole, np.arange(s.launch.order.warps))

    return Code(run, Kind.VARYING)


def _padded(s: Strand, m: Mask) -> Mask:
    """The mask with the lanes that no thread fills where their warp is there."""
    if s.active is None or m is None:
        return m
    warps = np.repeat(m.reshape(-1, WARP).any(axis=1), WARP)
    return m | warps & ~s.active


def warp_barrier(scope: Scope, node: Any) -> Code:
    """``__syncwarp()``."""

    def run(s: Strand, m: Mask) -> None:
        s.tally("warp_sync", m)
        groups = s.whole(_padded(s, m), WARP, "warp_sync")
        s.launch.order.step(s.block[groups * WARP], s.warp[groups * WARP])

    return Code(run, Kind.VARYING)


def _storage_sync(scope: Scope, node: Any) -> Code:
    kind = str(node.args[0].value)
    if kind == "warp":
        return warp_barrier(scope, node)
    if not kind.startswith("shared"):
        raise scope.refuse(f"a barrier of {kind} memory")
    return block_barrier(scope, node)


def _numbered(issue: Issue, s: Strand, m: Mask) -> Iterator[None]:
    """``bar.sync a`` or ``bar.sync a, b``: b threads meet at barrier a."""
    threads = -(-s.launch.geometry.size("threadIdx") // WARP) * WARP
    if issue.has("b"):
        threads = int(issue.one("b", s, m)[0])
    number = int(issue.one("a", s, m)[s.chosen(m)[0]])
    yield from synchronize(s, m, number, threads, issue.text)


def _arrive(issue: Issue, s: Strand, m: Mask) -> None:
    """``bar.arrive a, b``: arrives and goes on."""
    groups = s.whole(m, WARP, issue.text)
    place = (int(issue.one("a", s, m)[0]), int(issue.one("b", s, m)[0]))
    arrive(s, s.block[groups * WARP], s.warp[groups * WARP], place)


def _warp(issue: Issue, s: Strand, m: Mask) -> None:
    """``bar.warp.sync``."""
    members(s, m, issue.one("membermask", s, m), issue.text)
    lanes = s.chosen(m)
    _, first = np.unique(lanes // WARP, return_index=True)
    s.launch.order.step(s.block[lanes[first]], s.warp[lanes[first]])


def _nothing(scope: Scope, node: Any) -> Code:
    return Code(lambda s, m: None, Kind.VARYING)


INSTRUCTIONS: dict[str, Callable[[Issue, Strand, Mask], None]] = {
    "bar_arrive": _arrive,
    "barrier_arrive": _arrive,
    "bar_warp_sync": _warp,
}
WAITS: dict[str, Callable[[Issue, Strand, Mask], Iterator[None]]] = {
    "bar_sync": _numbered,
    "bar_sync_count": _numbered,
    "barrier_sync": _numbered,
    "barrier_sync_count": _numbered,
}
CALLS: dict[str, Callable[[Scope, Any], Code]] = {
    "tirx.cuda.cta_sync": block_barrier,
    "tirx.cuda.warp_sync": warp_barrier,
    "tirx.tvm_storage_sync": _storage_sync,
    "tirx.cuda.thread_fence": _nothing,
}
