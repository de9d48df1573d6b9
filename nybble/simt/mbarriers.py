"""``mbarrier``: barriers in shared memory that count arrivals and bytes (PTX ISA, "mbarrier").

A phase is over when all expected arrivals have come and no bytes are outstanding; whoever waits
gives the parity of the phase. What arrivals released, those who wait acquire. Reads and writes of
the object's eight bytes are checked as any others: one that is used by a warp that no barrier has
told of its initialisation is a race.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.simt.codes import Code, Kind, Scope
from nybble.simt.errors import SimtError
from nybble.simt.issue import Issue
from nybble.simt.memory import Pointer
from nybble.simt.strand import Ints, Strand
from nybble.simt.values import Mask, Value

BYTES = 8


@dataclass
class Phase:
    """One mbarrier of one block.

    Attributes:
        count: arrivals that a phase expects.
        pending: arrivals that are missing in this one.
        outstanding: bytes that are expected and have not come.
        parity: of the current phase.
        given: what has been released in this phase, by warp.
        taken: what waiting for the last phase acquires.
    """

    count: int
    pending: int
    given: npt.NDArray[np.int32]
    taken: npt.NDArray[np.int32]
    outstanding: int = 0
    parity: int = 0

    def settle(self) -> bool:
        """Ends the phase if nothing is missing; whether it did."""
        if self.pending or self.outstanding:
            return False
        self.parity ^= 1
        self.pending = self.count
        self.taken, self.given = self.given, np.zeros_like(self.given)
        return True


def place(s: Strand, m: Mask, pointer: Pointer) -> tuple[Ints, Ints]:
    """The active lanes and where in shared memory each one's mbarrier is."""
    chosen = s.chosen(m)
    where = s.full(pointer.offset, np.int64)[chosen] + pointer.memory.start
    return chosen, where


def find(s: Strand, lane: int, where: int) -> Phase:
    """The mbarrier that a lane names."""
    found = s.launch.phases.get((int(s.block[lane]), where))
    if found is None:
        s.fail(SimtError, f"byte {where} of shared memory is no initialised mbarrier", lane)
    return found


def seen(s: Strand, m: Mask, pointer: Pointer) -> tuple[Ints, Ints]:
    """As `place`; the lanes must have seen the initialisation."""
    chosen, where = place(s, m, pointer)
    s.launch.shared.check_read(s, chosen, (pointer.name, where, BYTES))
    return chosen, where


def _init(issue: Issue, s: Strand, m: Mask) -> None:
    pointer = issue.address("addr", s, m)
    count = issue.one("count", s, m)
    pointer.memory.write(s, m, pointer.offset, (pointer.name, np.zeros((s.lanes, BYTES), np.uint8)))
    nothing = np.zeros(s.launch.order.warps + 1, np.int32)
    for lane, where in zip(*place(s, m, pointer), strict=True):
        number = int(count[lane])
        phase = Phase(number, number, nothing.copy(), nothing.copy())
        s.launch.phases[int(s.block[lane]), int(where)] = phase


def arrive(s: Strand, m: Mask, pointer: Pointer, counts: tuple[Value, Value]) -> None:
    """Arrives: how often, and how many bytes each expects besides."""
    arrivals, expected = (s.full(one).astype(np.int64) for one in counts)
    chosen, places = seen(s, m, pointer)
    keys = s.block[chosen] << 32 | places
    for key in np.unique(keys):
        lanes = chosen[keys == key]
        phase = find(s, int(lanes[0]), int(key & 0xFFFFFFFF))
        for lane in lanes[np.unique(s.warp[lanes], return_index=True)[1]]:
            known = s.launch.order.release(int(s.block[lane]), int(s.warp[lane]))
            np.maximum(phase.given, known, out=phase.given)
        phase.outstanding += int(expected[lanes].sum())
        phase.pending -= int(arrivals[lanes].sum())
        if phase.pending < 0:
            what = f"{pointer.name}: more arrivals than the {phase.count} expected"
            s.fail(SimtError, what, int(lanes[0]))
        s.launch.progress += phase.settle()


def _arrive(issue: Issue, s: Strand, m: Mask) -> None:
    count = issue.one("count", s, m) if issue.has("count") else 1
    expected = issue.one("tx_count", s, m) if issue.has("tx_count") else 0
    arrive(s, m, issue.address("addr", s, m), (count, expected))


def _expect(issue: Issue, s: Strand, m: Mask) -> None:
    arrive(s, m, issue.address("addr", s, m), (0, issue.one("tx_count", s, m)))


def complete(s: Strand, lane: int, where: int, count: int) -> None:
    """The engine has written ``count`` bytes for a lane, and says so to an mbarrier."""
    phase, order, block = find(s, lane, where), s.launch.order, int(s.block[lane])
    phase.given[order.engine] = order.clock[block, order.engine]
    order.clock[block, order.engine] += 1
    phase.outstanding -= count
    s.launch.progress += phase.settle()


def wait(s: Strand, m: Mask, pointer: Pointer, parity: Value) -> Iterator[None]:
    """Yields until the phases of this parity are over; then acquires."""
    chosen, places = seen(s, m, pointer)
    wanted = s.full(parity)[chosen] & 1
    named = np.stack([s.block[chosen], s.warp[chosen], places, wanted], axis=1)
    first = np.unique(named, axis=0, return_index=True)[1]
    lanes = [(int(chosen[i]), int(places[i]), int(wanted[i])) for i in first]
    while any(find(s, lane, where).parity == bit for lane, where, bit in lanes):
        s.line = f"phase of parity {int(wanted[0])} of mbarrier {pointer.name}"
        yield
    for lane, where, _ in lanes:
        taken = find(s, lane, where).taken
        s.launch.order.acquire(int(s.block[lane]), int(s.warp[lane]), taken)


def _wait_call(scope: Scope, node: Any) -> Code:
    pointer, parity = (scope.expression(part).run for part in node.args[:2])

    def run(s: Strand, m: Mask) -> Iterator[None]:
        s.tally("mbarrier_wait", m)
        yield from wait(s, m, pointer(s, m), parity(s, m))

    return scope.waiting(Code(run, Kind.VARYING, waits=True))


def _try(issue: Issue, s: Strand, m: Mask) -> Iterator[None]:
    """``try_wait`` and ``test_wait``: here they wait as long as it takes, and say yes."""
    yield from wait(s, m, issue.address("addr", s, m), issue.one("phase", s, m))
    issue.write("wait_complete", s, m, np.ones(s.lanes, np.uint32))


INSTRUCTIONS: dict[str, Callable[[Issue, Strand, Mask], None]] = {
    "mbarrier_init": _init,
    "mbarrier_arrive": _arrive,
    "mbarrier_arrive_nocount": _arrive,
    "mbarrier_arrive_expect_tx": _arrive,
    "mbarrier_expect_tx": _expect,
}
WAITS: dict[str, Callable[[Issue, Strand, Mask], Iterator[None]]] = {
    "mbarrier_try_wait_parity": _try,
    "mbarrier_try_wait_parity_no_hint": _try,
    "mbarrier_test_wait_parity": _try,
}
CALLS: dict[str, Callable[[Scope, Any], Code]] = {"tirx.cuda.mbarrier_wait": _wait_call}
