"""Shared memory of blocks: its bytes, who wrote and read them last, and its banks."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import numpy.typing as npt

from nybble.simt.banks import wavefronts
from nybble.simt.errors import InFlightError, RaceError, SimtError, UninitializedError
from nybble.simt.memory import Bytes, check_range, gather, scatter
from nybble.simt.order import Order
from nybble.simt.strand import WARP, Ints, Strand
from nybble.simt.values import Mask, Value

NOBODY, SEVERAL = -1, -2
UNFENCED = np.iinfo(np.int32).max


class Shared:
    """Shared memory of all blocks of a launch.

    Grains are the smallest units that the kernel accesses; each remembers its last writer and,
    for every warp, its last reader, with their clocks (see `nybble.simt.order`).

    Attributes:
        size: bytes of one block, rounded up.
        dynamic: where dynamic memory begins.
        limit: bytes that a block has.
        grain: bytes of one grain; divides the width of every access.
        flying: by grain, asynchronous copies on their way to it.
        pinned: by grain, asynchronous products on their way that read it.
        fence_clock: by grain, the writer's clock when it fenced the write, so that asynchronous
            engines see it; `UNFENCED` if it has not, 0 where an engine has written.
    """

    space = "shared"

    def __init__(self, blocks: int, size: int, grain: int, order: Order):
        self.size, self.grain, self.order = size, grain, order
        self.dynamic, self.limit = 0, size
        self.data: Bytes = np.zeros(blocks * size, np.uint8)
        count = blocks * size // grain
        self.writer = np.full(count, NOBODY, np.int32)
        self.write_clock = np.zeros(count, np.int32)
        self.reader = np.full((order.warps + 1, count), NOBODY, np.int32)
        self.read_clock = np.zeros((order.warps + 1, count), np.int32)
        self.flying = np.zeros(count, np.int32)
        self.pinned = np.zeros(count, np.int32)
        self.fence_clock = np.zeros(count, np.int32)

    def read(self, strand: Strand, mask: Mask, offset: Value, place: tuple[str, int]) -> Bytes:
        """``(lanes, width)`` bytes; zeros for inactive lanes. ``place``: name and width."""
        name, width = place
        chosen = strand.chosen(mask)
        where = strand.full(offset, np.int64)[chosen]
        self.check_read(strand, chosen, (name, where, width))
        self._count_banks(strand, chosen, (f"{name}, read", where, width))
        found = np.zeros((strand.lanes, width), np.uint8)
        found[chosen] = gather(self.data, strand.block[chosen] * self.size + where, width)
        return found

    def write(self, strand: Strand, mask: Mask, offset: Value, place: tuple[str, Bytes]) -> None:
        """Writes ``(lanes, width)`` bytes. ``place``: name and bytes."""
        name, data = place
        chosen = strand.chosen(mask)
        where = strand.full(offset, np.int64)[chosen]
        width = data.shape[1]
        grains = self.check_write(strand, chosen, (name, where, width))
        self.fence_clock[grains] = UNFENCED
        self._count_banks(strand, chosen, (f"{name}, written", where, width))
        scatter(self.data, strand.block[chosen] * self.size + where, data[chosen])

    def grains(self, strand: Strand, chosen: Ints, where: Ints, width: int) -> Ints:
        """``(n, width // grain)``: the grains that accesses cover."""
        base = (strand.block[chosen] * self.size + where) // self.grain
        return base[:, None] + np.arange(width // self.grain)

    def check_read(self, strand: Strand, chosen: Ints, place: tuple[str, Ints, int]) -> Ints:
        """Checks and records reads by ``chosen`` lanes; returns the grains.

        Raises:
            UninitializedError: nobody wrote there.
            InFlightError: an asynchronous copy to there has not been waited for.
            RaceError: another thread wrote, and nothing orders its write before this read.
        """
        name, where, width = place
        grains = self.grains(strand, chosen, where, width)
        writer = self.writer[grains]
        self._none(
            strand,
            chosen,
            (grains, writer == NOBODY),
            (UninitializedError, f"{name}: read of {{}}, never written"),
        )
        flying = self.flying[grains] != 0
        self._none(
            strand,
            chosen,
            (grains, flying),
            (InFlightError, f"{name}: read of {{}} before the wait for its copy"),
        )
        block, warp, thread = (v[chosen] for v in (strand.block, strand.warp, strand.thread))
        seen = self.order.seen[block[:, None], warp[:, None], writer // WARP]
        race = (seen < self.write_clock[grains]) & (writer != thread[:, None])
        self._race(strand, chosen, (grains, race), (f"{name}: read of {{}}", "written"))
        self.note_read(strand, chosen, grains)
        return grains

    def note_read(self, strand: Strand, chosen: Ints, grains: Ints) -> None:
        """Records reads of grains by lanes at their warps' clocks."""
        block, warp, thread = (
            v[chosen][:, None] for v in (strand.block, strand.warp, strand.thread)
        )
        now = self.order.clock[block, warp]
        before = self.reader[warp, grains]
        others = (self.read_clock[warp, grains] == now) & (before != thread)
        noted = np.where(others, SEVERAL, thread)
        self.reader[warp, grains] = noted
        mixed = self.reader[warp, grains] != noted  # several lanes of this very read
        if mixed.any():
            rows = np.broadcast_to(warp, grains.shape)
            self.reader[rows[mixed], grains[mixed]] = SEVERAL
        self.read_clock[warp, grains] = now

    def check_write(self, strand: Strand, chosen: Ints, place: tuple[str, Ints, int]) -> Ints:
        """Checks and records writes by ``chosen`` lanes; returns the grains.

        Raises:
            InFlightError: an asynchronous copy to there, or product from there, is on its way.
            RaceError: another thread read or wrote, and nothing orders that before this write.
        """
        name, where, width = place
        grains = self.grains(strand, chosen, where, width)
        flying = self.flying[grains] != 0
        self._none(
            strand,
            chosen,
            (grains, flying),
            (InFlightError, f"{name}: write to {{}} before the wait for a copy to it"),
        )
        pinned = self.pinned[grains] != 0
        self._none(
            strand,
            chosen,
            (grains, pinned),
            (InFlightError, f"{name}: write to {{}} before the wait for a product from it"),
        )
        block, warp, thread = (v[chosen] for v in (strand.block, strand.warp, strand.thread))
        self._check_after(strand, chosen, (name, grains))
        self.writer[grains] = thread[:, None]
        same = self.writer[grains] != thread[:, None]
        self._race(strand, chosen, (grains, same), (f"{name}: write to {{}}", "written"))
        self.write_clock[grains] = self.order.clock[block, warp][:, None]
        return grains

    def _check_after(self, strand: Strand, chosen: Ints, place: tuple[str, Ints]) -> None:
        """Whether earlier writes and reads of the grains happened before the lanes' next step."""
        name, grains = place
        block, warp, thread = (v[chosen] for v in (strand.block, strand.warp, strand.thread))
        writer = self.writer[grains]
        seen = self.order.seen[block, warp]  # (n, warps + 1)
        late = (
            np.take_along_axis(seen, np.maximum(writer, 0) // WARP, axis=1)
            < self.write_clock[grains]
        )
        late &= (writer != NOBODY) & (writer != thread[:, None])
        self._race(strand, chosen, (grains, late), (f"{name}: write to {{}}", "written"))
        own = np.arange(self.order.warps + 1)[:, None] == warp  # (warps + 1, n)
        alone = own[:, :, None] & (self.reader[:, grains] == thread[:, None])
        late = ((self.read_clock[:, grains] > seen.T[:, :, None]) & ~alone).any(axis=0)
        self._race(strand, chosen, (grains, late), (f"{name}: write to {{}}", "read"))

    def _none(
        self,
        strand: Strand,
        chosen: Ints,
        bad: tuple[Ints, npt.NDArray[np.bool_]],
        error: tuple[type[SimtError], str],
    ) -> None:
        if bad[1].any():
            i, j = (int(v[0]) for v in np.nonzero(bad[1]))
            strand.fail(error[0], error[1].format(self._byte(bad[0][i, j])), int(chosen[i]))

    def _race(
        self,
        strand: Strand,
        chosen: Ints,
        bad: tuple[Ints, npt.NDArray[np.bool_]],
        error: tuple[str, str],
    ) -> None:
        if bad[1].any():
            i, j = (int(v[0]) for v in np.nonzero(bad[1]))
            self._tell_race(strand, int(chosen[i]), int(bad[0][i, j]), error)

    def _tell_race(self, strand: Strand, lane: int, grain: int, error: tuple[str, str]) -> NoReturn:
        what, did = error
        if did == "written":
            other = f"thread {int(self.writer[grain])}"
        else:
            seen = self.order.seen[strand.block[lane], strand.warp[lane]]
            warp = int(np.flatnonzero(self.read_clock[:, grain] > seen)[0])
            other = f"warp {warp}"
        text = f"{what.format(self._byte(grain))}, which {other} has {did} with no barrier between"
        raise RaceError(strand.message(text, lane))

    def _byte(self, grain: int) -> str:
        return f"byte {grain * self.grain % self.size} of shared memory"

    def _count_banks(self, strand: Strand, chosen: Ints, place: tuple[str, Ints, int]) -> None:
        name, where, width = place
        needed, least = wavefronts(chosen, where, width)
        report = strand.launch.report
        report.wavefronts += needed
        if needed > least:
            report.conflicts += needed - least
            report.conflict_sites[name] += needed - least


class Room:
    """A part of every block's shared memory: one allocation."""

    space = "shared"

    def __init__(self, shared: Shared, start: int, size: int):
        self.shared, self.start, self.size = shared, start, size

    def read(self, strand: Strand, mask: Mask, offset: Value, place: tuple[str, int]) -> Bytes:
        """As `Shared.read`, with offsets from the start of the allocation."""
        self._inside(strand, mask, offset, place)
        return self.shared.read(strand, mask, offset + self.start, place)

    def write(self, strand: Strand, mask: Mask, offset: Value, place: tuple[str, Bytes]) -> None:
        """As `Shared.write`, with offsets from the start of the allocation."""
        self._inside(strand, mask, offset, (place[0], place[1].shape[1]))
        self.shared.write(strand, mask, offset + self.start, place)

    def _inside(self, strand: Strand, mask: Mask, offset: Value, place: tuple[str, int]) -> None:
        chosen = strand.chosen(mask)
        where = strand.full(offset, np.int64)[chosen]
        check_range(strand, chosen, (place[0], where, place[1], self.size))
