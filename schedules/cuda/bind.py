"""Threads for blocks of TensorIR: a grid of blocks of threads, each with a run of neighbours.

    grid × threads × lanes:   a thread computes ``lanes`` neighbours along the last axis and moves
                              them between registers and memory in accesses of up to 16 bytes

A symbolic batch gets a dimension of the grid for itself, so that indices within an image are of
32 bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import tvm

from nybble.schedules.cpu import loops

Binding = Callable[[Any, Sequence[Any]], Any]
THREADS = 256  # of a block
ACCESS = 16  # bytes, the widest that a thread moves at once
_SIDE = 65535  # blocks along the grid's second dimension
_WARP = 32


def lanes_of(extent: Any, *dtypes: str) -> int:
    """Neighbours along an axis that a thread takes: at most an access of the widest dtype.

    Args:
        extent: of the axis; they divide it (1 if it is symbolic).
        dtypes: of the tensors that are moved.
    """
    size = max(tvm.DataType(dtype).bits // 8 for dtype in dtypes)
    return loops.lanes_of(extent, max(ACCESS // size, 1))


def grid(sch: Any, spatial: Sequence[Any]) -> Any:
    """Binds loops to a grid of blocks of threads; returns the loop of the threads."""
    first, *rest = spatial
    inner = [_static(sch, loop) for loop in rest]
    image = prod(extent or _SIDE * THREADS + 1 for extent in inner)
    if _static(sch, first) is None and rest and image <= _SIDE * THREADS:
        sch.bind(first, "blockIdx.x")
        return _blocks(sch, rest, "blockIdx.y")
    return _blocks(sch, spatial, "blockIdx.x")


def rows(sch: Any, spatial: Sequence[Any]) -> Any:
    """`grid` for blocks that reduce: a row of pixels, or a part of it, for a block of threads.

    TVM vectorizes and splits a reduction only where indices are sums of quotients and remainders of
    the threads; two loops over one dimension of the grid give such, more do not always.
    """
    outer, inner = (spatial[:-2], spatial[-2:]) if len(spatial) > 2 else ([], spatial)
    if len(spatial) == 2:
        outer, inner = spatial[:1], spatial[1:]
    if None in [_static(sch, loop) for loop in inner]:
        return grid(sch, spatial)
    axes = iter(("blockIdx.x", "blockIdx.y", "blockIdx.z"))
    if outer and _static(sch, outer[0]) is None:
        sch.bind(outer[0], next(axes))
        outer = outer[1:]
    if outer:
        sch.bind(sch.fuse(*outer) if len(outer) > 1 else outer[0], next(axes))
    return _blocks(sch, inner, next(axes))


def _blocks(sch: Any, spatial: Sequence[Any], axis: str) -> Any:
    fused = sch.fuse(*spatial) if len(spatial) > 1 else spatial[0]
    extent = _static(sch, fused)
    threads = THREADS if extent is None else min(THREADS, -(-extent // _WARP) * _WARP)
    block, thread = sch.split(fused, [None, threads])
    sch.bind(block, axis)
    sch.bind(thread, "threadIdx.x")
    return thread


def _static(sch: Any, loop: Any) -> int | None:
    extent = sch.get(loop).extent
    return int(extent) if isinstance(extent, tvm.tirx.IntImm) else None


def runs(sch: Any, block: Any, lanes: int, staged: Iterable[str] = (), bind: Binding = grid) -> Any:
    """Schedules a block of spatial loops: a thread computes ``lanes`` elements of the last axis.

    Args:
        sch: the schedule.
        block: writes one tensor.
        lanes: divides the last extent.
        staged: names of the tensors that it reads as runs of as many neighbours.
        bind: `grid` or `rows`.

    Returns:
        The loop of the threads.
    """
    *outer, last = spatial_of(sch, block)
    many, lane = sch.split(last, [None, lanes])
    names = [str(region.source.name) for region in sch.get(block).reads]
    wide = lanes > 1
    given = [sch.cache_read(block, names.index(one), "local") for one in staged if wide]
    stored = sch.cache_write(block, 0, "local") if wide else None
    thread = bind(sch, [*outer, many])
    for stage in given:
        sch.compute_at(stage, thread)
        move(sch, stage, thread)
    if stored is not None:
        sch.reverse_compute_at(stored, thread)
        move(sch, stored, thread)
    sch.unroll(lane)
    return thread


def clear_first(sch: Any, block: Any, step: Any) -> None:
    """Puts the zeroing of a reduction before its outermost loop, where TVM can see that it may.

    Of threads over several symbolic extents it cannot; then the loop's first step does it.
    """
    with contextlib.suppress(tvm.s_tir.ScheduleError):
        sch.decompose_reduction(block, step)


def move(sch: Any, stage: Any, thread: Any) -> None:
    """Makes a copy within the threads' loop one wide access."""
    inside = within(sch, stage, thread)
    sch.vectorize(sch.fuse(*inside) if len(inside) > 1 else inside[0])


def spatial_of(sch: Any, block: Any) -> list[Any]:
    """The loops around a block; one of a single step where there is none."""
    return list(sch.get_loops(block)) or [sch.add_unit_loop(block)]


def within(sch: Any, block: Any, loop: Any) -> list[Any]:
    """The loops of a block within a loop."""
    around = list(sch.get_loops(block))
    position = next(i for i, one in enumerate(around) if sch.get(one).same_as(sch.get(loop)))
    return around[position + 1 :]
