"""Registers: an array of some elements for each lane."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.simt.errors import InFlightError, OutOfBoundsError, UninitializedError
from nybble.simt.memory import Bytes
from nybble.simt.strand import Strand
from nybble.simt.values import Mask, Value

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
