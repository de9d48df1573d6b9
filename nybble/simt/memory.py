"""Memories of the model: global arrays, registers; pointers into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.simt.errors import (
    InFlightError,
    MisalignedError,
    OutOfBoundsError,
    RaceError,
    SimtError,
    UninitializedError,
)
from nybble.simt.strand import Ints, Strand
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


UNSET, SET, FLYING = 0, 1, 2


def _run(index: Value) -> tuple[int, int] | None:
    """First and count where all lanes use the same consecutive elements, else None."""
    if np.ndim(index) == 0:
        return int(index), 1
    if index.ndim == 2 and index.shape[0] == 1:
        first, count = int(index[0, 0]), index.shape[1]
        if (index[0] == np.arange(first, first + count)).all():
            return first, count
    return None


class Local:
    """An array of registers: one for each lane.

    Each element knows whether it was written, or will be by a product still on its way.
    """

    space = "local"

    def __init__(self, name: str, strand: Strand, dtype: np.dtype[Any], count: int):
        self.name = name
        self.item = dtype.itemsize
        self.data: Bytes = np.zeros((strand.lanes, count * self.item), np.uint8)
        unset = strand.launch.unset
        self.state = np.full((strand.lanes, count), SET if unset else UNSET, np.uint8)
        self.known = [unset] * count  # written in all lanes, and nothing on its way
        self.pinned = [0] * count  # asynchronous products on their way that read it
        self.stamps = [0] * count  # `Strand.stamp` of the last store
        self.strand = strand
        self._views: dict[Any, npt.NDArray[Any]] = {}

    def view(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """``(lanes, elements)`` under another dtype, the same memory."""
        found = self._views.get(dtype)
        if found is None:
            found = self._views[dtype] = self.data.view(dtype)
        return found

    def load(self, strand: Strand, mask: Mask, index: Value, dtype: np.dtype[Any]) -> Value:
        """Elements: ``index`` is a number, or one or several a lane, in units of ``dtype``."""
        view = self.view(dtype)
        run = _run(index)
        if run is None or not 0 <= run[0] <= view.shape[1] - run[1]:
            self._inside(strand, mask, index, view.shape[1])
        if run is None:
            return self._gather(strand, mask, index, dtype)
        first, count = run
        self._check_set(strand, mask, first * dtype.itemsize, count * dtype.itemsize)
        return (view[:, first] if np.ndim(index) == 0 else view[:, first : first + count]).copy()

    def _gather(self, strand: Strand, mask: Mask, index: Value, dtype: np.dtype[Any]) -> Value:
        chosen = strand.chosen(mask)
        where = strand.full(index, np.int64)
        rows = where if where.ndim == 2 else where[:, None]
        rows = rows[chosen]
        state = self.state[chosen[:, None], rows * dtype.itemsize // self.item]
        if (state != SET).any():
            i, j = (int(v[0]) for v in np.nonzero(state != SET))
            self._unready(strand, int(chosen[i]), int(rows[i, j]), int(state[i, j]))
        found = np.zeros((strand.lanes, rows.shape[1]), dtype)
        found[chosen] = self.view(dtype)[chosen[:, None], rows]
        return found if where.ndim == 2 else found[:, 0]

    def _check_set(self, strand: Strand, mask: Mask, start: int, width: int) -> None:
        first, last = start // self.item, (start + width - 1) // self.item
        for i in range(first, last + 1):
            if not self.known[i]:
                chosen = strand.chosen(mask)
                bad = self.state[chosen, i] != SET
                if bad.any():
                    lane = int(chosen[np.flatnonzero(bad)[0]])
                    self._unready(strand, lane, i, int(self.state[lane, i]))

    def _unready(self, strand: Strand, lane: int, index: int, state: int) -> None:
        if state == FLYING:
            what = f"register {self.name}[{index}] used before the wait for the product"
            strand.fail(InFlightError, what, lane)
        strand.fail(UninitializedError, f"register {self.name}[{index}] used before set", lane)

    def _inside(self, strand: Strand, mask: Mask, index: Value, count: int) -> None:
        chosen = strand.chosen(mask)
        rows = strand.full(index)[chosen]
        bad = ((rows < 0) | (rows >= count)).reshape(len(chosen), -1).any(axis=1)
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            what = f"register {self.name}[{np.ravel(rows[i])[0]}] of {count}"
            strand.fail(OutOfBoundsError, what, int(chosen[i]))

    def store(self, strand: Strand, mask: Mask, index: Value, value: Value) -> None:
        """Writes elements of the value's dtype."""
        dtype = value.dtype
        view = self.view(dtype)
        run = _run(index)
        if run is None or not 0 <= run[0] <= view.shape[1] - run[1]:
            self._inside(strand, mask, index, view.shape[1])
        if run is not None:
            first, count = run
            target = view[:, first] if np.ndim(index) == 0 else view[:, first : first + count]
            self._put(mask, target, value)
            self._stamp(range(first * dtype.itemsize, (first + count) * dtype.itemsize))
            self.mark(mask, first * dtype.itemsize, count * dtype.itemsize)
            return
        chosen = strand.chosen(mask)
        rows, data = strand.full(index, np.int64), strand.full(value)
        if rows.ndim == 1:
            rows, data = rows[:, None], data[:, None]
        rows = rows[chosen]
        view[chosen[:, None], rows] = data[chosen]
        elements = rows * dtype.itemsize // self.item
        for i in np.unique(elements):
            self._stamp(range(i * self.item, (i + 1) * self.item))
        self.state[chosen[:, None], elements] = SET

    def _stamp(self, covered: range) -> None:
        """Notes a store to some bytes.

        Raises:
            InFlightError: a product on its way reads or writes one of the elements.
        """
        self.strand.stamp += 1
        for i in range(covered.start // self.item, (covered.stop - 1) // self.item + 1):
            self.stamps[i] = self.strand.stamp
            if self.pinned[i]:
                what = f"register {self.name}[{i}] written before the wait for the product"
                self.strand.fail(InFlightError, what, 0)

    @staticmethod
    def _put(mask: Mask, target: npt.NDArray[Any], value: Value) -> None:
        if mask is None:
            target[...] = value
        else:
            np.copyto(target, value, where=mask if target.ndim == 1 else mask[:, None])

    def mark(self, mask: Mask, start: int, width: int, state: int = SET) -> None:
        """Sets the state of the elements that cover ``width`` bytes at ``start``.

        An element counts as written once any of its bytes is.
        """
        for i in range(start // self.item, (start + width - 1) // self.item + 1):
            self._put(mask, self.state[:, i], np.uint8(state))
            if mask is None or state != SET:
                self.known[i] = state == SET

    def read(self, strand: Strand, mask: Mask, offset: Value, place: tuple[str, int]) -> Bytes:
        """``(lanes, width)`` bytes at a pointer."""
        index = strand.full(offset, np.int64)[:, None] + np.arange(place[1])
        return self.load(strand, mask, index, np.dtype(np.uint8))

    def write(self, strand: Strand, mask: Mask, offset: Value, place: tuple[str, Bytes]) -> None:
        """Writes ``(lanes, width)`` bytes at a pointer."""
        data = place[1]
        index = strand.full(offset, np.int64)[:, None] + np.arange(data.shape[1])
        self.store(strand, mask, index, data)
