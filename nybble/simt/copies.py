"""``cp.async``: copies from global to shared memory that do not wait.

The bytes move when the copy is issued, but the shared memory counts as on its way until the issuing
thread has waited for the group (PTX ISA, "Data Movement and Conversion Instructions: cp.async",
"cp.async.wait_group"): then it is as if the thread had written there just now, which others may see
after a barrier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nybble.simt.issue import Issue
from nybble.simt.memory import Bytes, Pointer
from nybble.simt.shared import UNFENCED
from nybble.simt.strand import Ints, Strand
from nybble.simt.values import Mask


@dataclass
class Copy:
    """Copies of one instruction on their way.

    Attributes:
        lanes: numbers of the lanes that issued them and have not waited yet.
        grains: ``(lanes, n)``: where they go.
        group: by lane, how many groups it had committed before.
    """

    lanes: Ints
    grains: Ints
    group: Ints


def _copy(issue: Issue, s: Strand, m: Mask) -> None:
    width = issue.number("cp_size", s)
    target, source = issue.address("dst_mem", s, m), issue.address("src_mem", s, m)
    size = np.full(s.lanes, width)
    if issue.has("src_size"):
        size = issue.one("src_size", s, m).astype(np.int64)
    if issue.has("ignore_src"):
        size = np.where(issue.one("ignore_src", s, m) != 0, 0, width)
    data = _source(s, m, source, size, width)
    shared = s.launch.shared
    start = target.memory.start
    chosen = s.chosen(m)
    where = s.full(target.offset, np.int64)
    target.memory.write(s, m, where, (target.name, data))
    grains = shared.grains(s, chosen, where[chosen] + start, width)
    shared.flying[grains] += 1
    s.copies.append(Copy(chosen, grains, s.groups[chosen]))


def _source(s: Strand, m: Mask, source: Pointer, size: Ints, width: int) -> Bytes:
    """``width`` bytes a lane, zeros from ``size`` on, which are not read."""
    active = np.ones(s.lanes, np.bool_) if m is None else m
    offset = s.full(source.offset, np.int64)
    whole = active & (size == width)
    data = np.zeros((s.lanes, width), np.uint8)
    if whole.any():
        data = source.memory.read(s, whole, offset, (source.name, width))
    for i in range(int(size[active & ~whole].max(initial=0))):
        part: npt.NDArray[np.bool_] = active & ~whole & (size > i)
        data[part, i] = source.memory.read(s, part, offset + i, (source.name, 1))[part, 0]
    return data


def _commit(issue: Issue, s: Strand, m: Mask) -> None:
    s.groups[s.chosen(m)] += 1


def _wait_group(issue: Issue, s: Strand, m: Mask) -> None:
    _land(s, m, s.groups - issue.number("group", s))


def _wait_all(issue: Issue, s: Strand, m: Mask) -> None:
    _land(s, m, s.groups + 1)


def _land(s: Strand, m: Mask, before: Ints) -> None:
    """Ends the copies of groups below ``before``, a number for each lane."""
    shared, order = s.launch.shared, s.launch.order
    active = np.ones(s.lanes, np.bool_) if m is None else m
    left = []
    for copy in s.copies:
        done = active[copy.lanes] & (copy.group < before[copy.lanes])
        lanes, grains = copy.lanes[done], copy.grains[done]
        np.subtract.at(shared.flying, grains, 1)
        shared.writer[grains] = s.thread[lanes][:, None]
        shared.write_clock[grains] = order.clock[s.block[lanes], s.warp[lanes]][:, None]
        shared.fence_clock[grains] = UNFENCED
        if not done.all():
            left.append(Copy(copy.lanes[~done], copy.grains[~done], copy.group[~done]))
    s.copies = left


INSTRUCTIONS: dict[str, Callable[[Issue, Strand, Mask], None]] = {
    "cp_async_ca": _copy,
    "cp_async_ca_src_size": _copy,
    "cp_async_ca_ignore_src": _copy,
    "cp_async_cg": _copy,
    "cp_async_cg_src_size": _copy,
    "cp_async_cg_ignore_src": _copy,
    "cp_async_commit_group": _commit,
    "cp_async_wait_group": _wait_group,
    "cp_async_wait_all": _wait_all,
}
