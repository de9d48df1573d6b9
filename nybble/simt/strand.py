"""Lanes that run in lockstep, and what all blocks of a launch share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from nybble.simt.errors import DivergenceError, SimtError
from nybble.simt.report import Report
from nybble.simt.values import Mask, Value

if TYPE_CHECKING:
    from nybble.simt.order import Order
    from nybble.simt.shared import Shared

WARP = 32
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Geometry:
    """Grid and block: extents by thread tag (``blockIdx.x``); missing ones are 1."""

    extents: dict[str, int]

    def size(self, kind: str) -> int:
        """Threads of a block (``threadIdx``), blocks of the grid (``blockIdx``)."""
        return int(np.prod([self.extents.get(f"{kind}.{axis}", 1) for axis in "xyz"]))

    def split(self, kind: str, linear: Ints) -> dict[str, npt.NDArray[np.int32]]:
        """Coordinates by tag from linear numbers, x fastest."""
        found = {}
        for axis in "xyz":
            extent = self.extents.get(f"{kind}.{axis}", 1)
            found[f"{kind}.{axis}"] = (linear % extent).astype(np.int32)
            linear = linear // extent
        return found


@dataclass
class Launch:
    """Some blocks of one launch that run at the same time, and the memory they see."""

    kernel: str
    geometry: Geometry
    blocks: Ints  # linear numbers in the grid
    report: Report
    shared: Shared
    order: Order
    barriers: dict[int, Any] = field(default_factory=dict)  # `Rendezvous` by number
    phases: dict[tuple[int, int], Any] = field(default_factory=dict)  # mbarriers: (block, byte)
    unset: bool = False  # whether registers may be read before they are set
    progress: int = 0  # grows with every arrival: that it does not tells a deadlock

    def where(self, thread: int, block: int) -> str:
        """`` by thread (3,0,0) of block (1,0,0)``; block counts within this launch."""
        numbers = (("threadIdx", thread), ("blockIdx", int(self.blocks[block])))
        split = [self.geometry.split(kind, np.array([n])) for kind, n in numbers]
        spell = ["(" + ",".join(str(int(v[0])) for v in axes.values()) + ")" for axes in split]
        return f"by thread {spell[0]} of block {spell[1]}"


class Strand:
    """Lanes in lockstep: their coordinates, variables and registers.

    A strand is all threads of its blocks, or some of their warps where warps run different code
    and wait for one another. Blocks come one after the other, in each the threads ascending; a
    block whose threads do not fill its last warp has lanes there that are never active.
    """

    def __init__(self, launch: Launch, warps: Iterable[int], slots: int):
        """Sets up the lanes of ``warps`` of every block, with ``slots`` variables."""
        count = launch.geometry.size("threadIdx")
        own = np.concatenate([np.arange(WARP) + WARP * warp for warp in warps])
        self.launch = launch
        self.per_block = len(own)
        self.lanes = len(own) * len(launch.blocks)
        self.block = np.repeat(np.arange(len(launch.blocks)), len(own))
        self.thread = np.tile(own, len(launch.blocks))
        self.warp = self.thread // WARP
        self.active: Mask = None if own[-1] < count else self.thread < count
        self.coordinates = {
            **launch.geometry.split("threadIdx", self.thread),
            **launch.geometry.split("blockIdx", launch.blocks[self.block]),
        }
        self.env: list[Any] = [None] * slots
        self.cache: list[Any] = [None] * slots  # what depends on the coordinates alone
        self.copies: list[Any] = []  # asynchronous copies on their way
        self.groups = np.zeros(self.lanes, np.int64)  # groups of copies committed
        self.products: list[Any] = []  # asynchronous products on their way
        self.products_committed = 0
        self.stamp = self.fence = 0  # stores to registers so far; at the last ``wgmma.fence``
        self.line = ""  # what it waits for

    def chosen(self, mask: Mask) -> Ints:
        """Numbers of the active lanes."""
        return np.arange(self.lanes) if mask is None else np.flatnonzero(mask)

    def full(self, value: Value, dtype: Any = None) -> npt.NDArray[Any]:
        """``value`` with a row for every lane."""
        array = np.asarray(value, dtype)
        if array.ndim == 2:
            return np.broadcast_to(array, (self.lanes, array.shape[1]))
        return np.broadcast_to(array, (self.lanes,))

    def warps(self, mask: Mask) -> int:
        """How many warps have an active lane."""
        if mask is None:
            return self.lanes // WARP
        return int(mask.reshape(-1, WARP).any(axis=1).sum())

    def tally(self, name: str, mask: Mask) -> None:
        """Counts an instruction."""
        self.launch.report.instructions[name] += self.warps(mask)

    def whole(self, mask: Mask, size: int, name: str) -> Ints:
        """Groups of ``size`` lanes that execute ``name``, each whole.

        Returns:
            the numbers of the groups, in the order of lanes.

        Raises:
            DivergenceError: a group of which only some threads are active.
        """
        if self.per_block % size:
            self.diverged(f"{name} takes {size} threads of {self.per_block}", 0)
        if mask is None:
            return np.arange(self.lanes // size)
        groups = mask.reshape(-1, size)
        some, every = groups.any(axis=1), groups.all(axis=1)
        if (some & ~every).any():
            group = int(np.flatnonzero(some & ~every)[0])
            lane = group * size + int(np.flatnonzero(~groups[group])[0])
            what = f"{name}: only {int(groups[group].sum())} of {size} threads get here"
            raise DivergenceError(self.message(what, lane, "not"))
        return np.flatnonzero(every)

    def diverged(self, what: str, lane: int) -> NoReturn:
        """Raises a `DivergenceError`."""
        self.fail(DivergenceError, what, lane)

    def message(self, what: str, lane: int, verb: str = "") -> str:
        """An error's text, with kernel, thread and block."""
        where = self.launch.where(int(self.thread[lane]), int(self.block[lane]))
        return f"{self.launch.kernel}: {what}, {verb + ' ' if verb else ''}{where}"

    def fail(self, kind: type[SimtError], what: str, lane: int) -> NoReturn:
        """Raises ``kind``."""
        raise kind(self.message(what, lane))
