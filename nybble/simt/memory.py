"""Memory on the device: arguments of kernels, pointers into any memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.simt.errors import (
    MisalignedError,
    OutOfBoundsError,
    RaceError,
    SimtError,
    UninitializedError,
)
from nybble.simt.strand import WARP, Ints, Strand
from nybble.simt.values import Mask, Value

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pointer:
    """An address: a memory and a byte offset, one for all lanes or one for each."""

    memory: Any  # Global, Local, Shared or TensorMap
    offset: Value = 0
    name: str = ""

    def plus(self, count: Value) -> Pointer:
        """The address ``count`` bytes on."""
        return Pointer(self.memory, self.offset + np.asarray(count).astype(np.int64)[()], self.name)


def check_range(strand: Strand, chosen: Ints, place: tuple[str, Ints, int, int]) -> None:
    """Whether accesses are aligned and inside.

    Args:
        strand: whose lanes.
        chosen: numbers of the active lanes.
        place: the buffer's name, byte offset of each active lane, width in bytes, size in bytes.

    Raises:
        OutOfBoundsError: an access outside.
        MisalignedError: an offset that is no multiple of the width.
    """
    name, offset, width, size = place
    outside = (offset < 0) | (offset > size - width)
    if outside.any():
        i = int(np.flatnonzero(outside)[0])
        what = f"{name}: {width} bytes at byte {int(offset[i])} of {size}"
        strand.fail(OutOfBoundsError, what, int(chosen[i]))
    if width > 1 and (odd := offset % width).any():
        i = int(np.flatnonzero(odd)[0])
        what = f"{name}: {width} bytes at once at byte {int(offset[i])}"
        strand.fail(MisalignedError, what, int(chosen[i]))


_UNITS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
"""Types that move as many bytes at once."""


def gather(data: Bytes, base: Ints, width: int) -> Bytes:
    """``(n, width)`` bytes from multiples of ``width``."""
    whole: npt.NDArray[Any] = data[: data.size // width * width].view(_UNITS[width])
    return whole[base // width].view(np.uint8).reshape(-1, width)


def scatter(data: Bytes, base: Ints, values: Bytes) -> None:
    """The reverse of `gather`; of several values for one place the last one stays."""
    width = values.shape[1]
    whole: npt.NDArray[Any] = data[: data.size // width * width].view(_UNITS[width])
    whole[base // width] = np.ascontiguousarray(values).view(_UNITS[width])[:, 0]


def _sectors(chosen: Ints, where: Ints, width: int) -> int:
    """Sectors of 32 bytes that each warp touches; arrays begin at one, as CUDA allocates them."""
    return int(np.unique((chosen // WARP << 40) + where // max(32, width)).size) * max(
        1, width // 32
    )


NEVER, EARLIER = -1, -2  # who wrote a byte: nobody, or a kernel that has ended


class Global:
    """One argument in device memory.

    Outputs know which thread wrote each byte: a read before that, or two threads that write
    different values, is an error, and so is a byte that nobody wrote.
    """

    space = "global"

    def __init__(self, name: str, array: npt.NDArray[Any], output: bool):
        self.name = name
        self.array = array
        self.data: Bytes = array.reshape(-1).view(np.uint8)
        self.output = output
        self.writer = np.full(self.data.size if output else 0, NEVER, np.int64)

    def read(self, strand: Strand, mask: Mask, offset: Value, place: tuple[str, int]) -> Bytes:
        """``(lanes, width)`` bytes; zeros for inactive lanes. ``place``: name and width."""
        name, width = place
        chosen = strand.chosen(mask)
        where = strand.full(offset, np.int64)[chosen]
        check_range(strand, chosen, (name, where, width, self.data.size))
        if self.output:
            self._check_written(strand, chosen, where[:, None] + np.arange(width), name)
        strand.launch.report.global_read += where.size * width
        strand.launch.report.sectors += _sectors(chosen, where, width)
        found = np.zeros((strand.lanes, width), np.uint8)
        found[chosen] = gather(self.data, where, width)
        return found

    def _check_written(self, strand: Strand, chosen: Ints, index: Ints, name: str) -> None:
        writer = self.writer[index]
        if (writer == NEVER).any():
            i, j = (int(v[0]) for v in np.nonzero(writer == NEVER))
            what = f"{name}: byte {int(index[i, j])} read and never written"
            strand.fail(UninitializedError, what, int(chosen[i]))
        threads = strand.launch.geometry.size("threadIdx")
        block = strand.launch.blocks[strand.block[chosen]][:, None]
        foreign = (writer >= 0) & (writer // threads != block)
        if foreign.any():
            i, j = (int(v[0]) for v in np.nonzero(foreign))
            what = f"{name}: byte {int(index[i, j])} read that another block wrote"
            strand.fail(RaceError, what, int(chosen[i]))

    def write(self, strand: Strand, mask: Mask, offset: Value, place: tuple[str, Bytes]) -> None:
        """Writes ``(lanes, width)`` bytes. ``place``: name and bytes."""
        name, data = place
        chosen = strand.chosen(mask)
        where = strand.full(offset, np.int64)[chosen]
        width = data.shape[1]
        check_range(strand, chosen, (name, where, width, self.data.size))
        if not self.output:
            what = f"{name}: byte {int(where[0])} written, but it is an input"
            strand.fail(SimtError, what, int(chosen[0]))
        index = where[:, None] + np.arange(width)
        threads = strand.launch.geometry.size("threadIdx")
        me = strand.launch.blocks[strand.block[chosen]] * threads + strand.thread[chosen]
        before, values = self.writer[index], data[chosen]
        clash = (before >= 0) & (before != me[:, None]) & (self.data[index] != values)
        self.data[index] = values
        self.writer[index] = me[:, None]
        clash |= self.data[index] != values  # another lane of the same store
        if clash.any():
            i, j = (int(v[0]) for v in np.nonzero(clash))
            what = f"{name}: byte {int(index[i, j])} written twice with different values"
            strand.fail(RaceError, what, int(chosen[i]))
        strand.launch.report.global_written += index.size
        strand.launch.report.sectors += _sectors(chosen, where, width)

    def add(
        self, strand: Strand, mask: Mask, offset: Value, place: tuple[str, npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """Adds one element a lane, atomically; returns what was there before."""
        name, data = place
        chosen = strand.chosen(mask)
        where = strand.full(offset, np.int64)[chosen]
        check_range(strand, chosen, (name, where, data.itemsize, self.data.size))
        if self.output and (self.writer[where] == NEVER).any():
            lane = int(chosen[np.flatnonzero(self.writer[where] == NEVER)[0]])
            strand.fail(UninitializedError, f"{name}: atomic on what was never written", lane)
        elements = self.data.view(data.dtype)
        before = np.zeros(strand.lanes, data.dtype)
        for lane, at in zip(chosen, where // data.itemsize, strict=True):
            before[lane] = elements[at]
            elements[at] += data[lane]
        strand.launch.report.global_written += where.size * data.itemsize
        return before

    def settle(self) -> None:
        """The kernel has ended: the next one may read what any of its threads wrote."""
        self.writer[self.writer >= 0] = EARLIER

    def check_complete(self, kernel: str) -> None:
        """Whether every byte of an output was written."""
        missing = np.flatnonzero(self.writer == NEVER)
        if missing.size:
            item = self.array.dtype.itemsize
            index = tuple(int(i) for i in np.unravel_index(missing[0] // item, self.array.shape))
            what = f"{self.name}{list(index)} is never written, as {missing.size // item} in all"
            raise UninitializedError(f"{kernel}: {what}")
