"""TMA: copies of boxes of a tensor by one thread's order, and plain bulk copies.

The engine writes in its own time; who may read is decided by the ``mbarrier`` that it tells of the
bytes. So the bytes move at once, and the engine counts as their writer: a thread that has not
waited for the phase reads in a race (PTX ISA, "cp.async.bulk", "cp.async.bulk.tensor"; the tensor
map as of CUDA's ``cuTensorMapEncodeTiled``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.simt import mbarriers
from nybble.simt.codes import Code, Kind, Scope, np_dtype
from nybble.simt.errors import MisalignedError, OutOfBoundsError, SimtError
from nybble.simt.fences import check_fences
from nybble.simt.issue import Issue
from nybble.simt.memory import Bytes, Global, Pointer
from nybble.simt.strand import WARP, Ints, Strand
from nybble.simt.swizzles import swizzled
from nybble.simt.values import Mask

LINE = 128


@dataclass(frozen=True)
class Tiling:
    """A tensor in global memory and the boxes that are copied of it; innermost dimension first.

    Attributes:
        source: the array.
        start: byte where the tensor begins.
        item: bytes of an element.
        extents: of the tensor.
        strides: bytes from one element to the next, in each dimension.
        box: extents of a box.
        span: bytes of the swizzle; 16 for none.
    """

    source: Global
    start: int
    item: int
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    span: int

    @property
    def bytes(self) -> int:
        """Of a box."""
        return int(np.prod(self.box)) * self.item

    def fetch(self, first: Sequence[int]) -> tuple[Bytes, int]:
        """A box from ``first`` on, zeros outside of the tensor; and the bytes that were read."""
        shape = self.box[::-1]
        inside = np.ones(shape, np.bool_)
        offset = np.full(shape, self.start, np.int64)
        grid = np.indices(shape)[::-1]
        for axis, begin in enumerate(first):
            place = grid[axis] + begin
            inside &= (place >= 0) & (place < self.extents[axis])
            offset += place * self.strides[axis]
        data = np.zeros((*shape, self.item), np.uint8)
        data[inside] = self.source.data[offset[inside][:, None] + np.arange(self.item)]
        return data.reshape(-1), int(inside.sum()) * self.item


class TensorMap:
    """The opaque object that the host fills in."""

    space = "tensormap"
    tiling: Tiling | None = None


def _allocate(scope: Scope, node: Any) -> Code:
    if str(node.args[0].value) != "tensormap":
        raise scope.refuse(f"the host's memory for {node.args[0].value}")
    return Code(lambda s, m: Pointer(TensorMap(), 0, "tensor map"), Kind.VARYING)


def _encode(scope: Scope, node: Any) -> Code:
    name = str(node.args[0].value)
    if name != "runtime.cuTensorMapEncodeTiled":
        raise scope.refuse(f"the host's call of {name}")
    parts = [scope.expression(part).run for part in node.args[1:]]

    def run(s: Strand, m: Mask) -> None:
        target, dtype, rank, data, *rest = (part(s, m) for part in parts)
        numbers = [int(one) for one in rest]
        target.memory.tiling = _tiling(np_dtype(dtype).itemsize, int(rank), data, numbers)

    return Code(run, Kind.VARYING)


def _tiling(item: int, rank: int, data: Pointer, numbers: list[int]) -> Tiling:
    extents, numbers = numbers[:rank], numbers[rank:]
    strides, numbers = [item, *numbers[: rank - 1]], numbers[rank - 1 :]
    box, numbers = numbers[:rank], numbers[rank:]
    steps, (interleave, swizzle, _, fill) = numbers[:rank], numbers[rank:]
    if any(step != 1 for step in steps) or interleave or fill:
        raise SimtError(
            "a tensor map with element strides, interleaving or NaN fill is not modelled"
        )
    if any(stride % 16 for stride in strides[1:]):
        raise MisalignedError(
            f"a tensor map needs strides of multiples of 16 bytes, not {strides[1:]}"
        )
    span = 16 << swizzle
    if any(not 0 < extent <= 256 for extent in box) or (swizzle and box[0] * item > span):
        raise OutOfBoundsError(f"a tensor map's box {box} of {item} bytes with a swizzle of {span}")
    if box[0] * item % 16:
        raise MisalignedError(
            f"a tensor map's box is {box[0] * item} bytes wide, no multiple of 16"
        )
    start = int(data.offset)
    return Tiling(data.memory, start, item, tuple(extents), tuple(strides), tuple(box), span)


def _copy_box(issue: Issue, s: Strand, m: Mask) -> None:
    if issue.has("cta_mask") or issue.mods["load_mode"] not in ("", "tile"):
        raise issue.scope.refuse(issue.text)
    map_pointer = issue.address("tmap", s, m)
    tiling: Tiling | None = map_pointer.memory.tiling
    if tiling is None:
        raise SimtError(f"{s.launch.kernel}: the tensor map of {issue.text} was never encoded")
    first = issue.read("coords", s, m)
    target = issue.address("dst_mem", s, m)
    for lane in s.chosen(m):
        data, count = tiling.fetch([int(one) for one in first[lane]])
        s.launch.report.global_read += count
        _deliver(issue, s, int(lane), (target, data, tiling.span))


def _copy_run(issue: Issue, s: Strand, m: Mask) -> None:
    """``cp.async.bulk`` from global memory: a run of bytes."""
    if issue.has("cta_mask"):
        raise issue.scope.refuse(issue.text)
    source, target = issue.address("src_mem", s, m), issue.address("dst_mem", s, m)
    size, start = issue.one("size", s, m), s.full(source.offset, np.int64)
    for lane in s.chosen(m):
        begin, count = int(start[lane]), int(size[lane])
        if begin % 16 or count % 16:
            what = f"{issue.text}: {count} bytes at byte {begin} of {source.name}"
            s.fail(MisalignedError, what, int(lane))
        if begin < 0 or begin + count > source.memory.data.size:
            what = f"{source.name}: {count} bytes at byte {begin} of {source.memory.data.size}"
            s.fail(OutOfBoundsError, what, int(lane))
        s.launch.report.global_read += count
        data = source.memory.data[begin : begin + count]
        _deliver(issue, s, int(lane), (target, data, 16))


def _deliver(issue: Issue, s: Strand, lane: int, box: tuple[Pointer, Bytes, int]) -> None:
    """Writes a box to shared memory as the engine, and tells the mbarrier."""
    target, data, span = box
    shared, order, block = s.launch.shared, s.launch.order, int(s.block[lane])
    start = int(s.full(target.offset, np.int64)[lane]) + target.memory.start
    if start % (LINE if span > 16 else 16):
        s.fail(MisalignedError, f"{target.name}: a box at byte {start} of shared memory", lane)
    if start + data.size > shared.limit:
        what = f"{target.name}: {data.size} bytes at byte {start} of {shared.limit}"
        s.fail(OutOfBoundsError, what, lane)
    at = swizzled(start + np.arange(0, data.size, 16), span)
    chosen: Ints = np.full(len(at), lane)
    grains = shared.check_write(s, chosen, (target.name, at, 16))
    shared.writer[grains] = order.engine * WARP
    shared.write_clock[grains] = order.clock[block, order.engine]
    shared.fence_clock[grains] = 0
    shared.data[(block * shared.size + at)[:, None] + np.arange(16)] = data.reshape(-1, 16)
    pointer = issue.address("mbar", s, None)
    chosen, where = mbarriers.seen(s, _only(s, lane), pointer)
    grains = shared.grains(s, chosen, where, mbarriers.BYTES)
    check_fences(s, chosen, grains, f"{pointer.name} as an mbarrier of {issue.entry}")
    mbarriers.complete(s, lane, int(where[0]), data.size)


def _only(s: Strand, lane: int) -> npt.NDArray[np.bool_]:
    return np.arange(s.lanes) == lane


INSTRUCTIONS: dict[str, Callable[[Issue, Strand, Mask], None]] = {
    "cp_async_bulk_tensor_g2s_cluster": _copy_box,
    "cp_async_bulk_tensor_g2s_cta": _copy_box,
    "cp_async_bulk_g2s_cluster": _copy_run,
    "cp_async_bulk_g2s_cta": _copy_run,
}
CALLS: dict[str, Callable[[Scope, Any], Code]] = {
    "tirx.tvm_stack_alloca": _allocate,
    "tirx.tvm_call_packed": _encode,
}
