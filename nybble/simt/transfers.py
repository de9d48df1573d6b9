"""PTX's loads, stores and fences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nybble.simt.issue import Issue
from nybble.simt.scalars import dtype_of
from nybble.simt.strand import Strand
from nybble.simt.values import Mask


def width_of(issue: Issue) -> int:
    """Bytes that a load or store moves for each lane."""
    count = int(issue.mods.get("vec", "")[1:] or 1)
    return count * dtype_of(issue.mods["type"]).itemsize


def _load(issue: Issue, s: Strand, m: Mask) -> None:
    pointer = issue.address("addr", s, m)
    place = (pointer.name, width_of(issue))
    data = pointer.memory.read(s, m, pointer.offset, place).view(dtype_of(issue.mods["type"]))
    target, _, _ = issue.destination("d", s, m)
    if target.memory.item > data.dtype.itemsize:  # a narrow load fills a wider register
        data = data.astype(f"{data.dtype.kind}{target.memory.item}")
    issue.write("d", s, m, data)


def _store(issue: Issue, s: Strand, m: Mask) -> None:
    pointer = issue.address("addr", s, m)
    value = np.ascontiguousarray(issue.read("value", s, m))
    narrow = dtype_of(issue.mods["type"])
    if narrow.itemsize < value.dtype.itemsize:
        value = value.astype(narrow)
    data = np.ascontiguousarray(value).view(np.uint8)
    pointer.memory.write(s, m, pointer.offset, (pointer.name, data))


def _nothing(issue: Issue, s: Strand, m: Mask) -> None:
    """Orders nothing that the model does not order already, or only costs or saves time."""


INSTRUCTIONS: dict[str, Callable[[Issue, Strand, Mask], None]] = {
    "ld": _load,
    "ld_vec": _load,
    "st": _store,
    "st_vec": _store,
    "fence": _nothing,
    "setmaxnreg": _nothing,
}
