"""Staging copies for tiles: rows with their padding, or planes for narrow images.

Narrow images, 7 pixels across, would leave tiles half empty. Their copy holds a plane for every
kernel column, of just those pixels that meet it, so that the pixels of several rows follow each
other in memory. With a stride along the rows a plane is a section for each remainder of the row:

    plane kx, section r, row i:  the pixels (row i·stride + r, column x·stride + kx·dilation), all x

An output row then reads consecutive rows of a section, and a task is one long line of pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import staging
from nybble.schedules.cpu.amx_plan import DEPTH, depth_of, is_folded
from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.geometry import Geometry

SLACK = 16 * DEPTH  # bytes that tiles may read on, against zero weights


def laid_out(geometry: Geometry) -> Geometry:
    """The geometry with a run for each kernel column, where tasks read planes."""
    if not is_folded(geometry) or geometry.tap_cols > 1:
        return geometry
    return replace(geometry, tap_cols=geometry.run // geometry.c, run=geometry.c)


def needs_staging(geometry: Geometry) -> bool:
    """Whether tiles cannot be loaded from the input as it lies."""
    depth = depth_of(geometry)
    is_ragged = depth.count * depth.size != geometry.run
    return is_folded(geometry) or any(geometry.padding) or is_ragged


def section_rows(geometry: Geometry, rows: int) -> int:
    """Rows of a section of a plane for ``rows`` output rows."""
    return ceil(geometry.rows_read(rows) / geometry.stride[0])


def plane_size(geometry: Geometry, rows: int) -> int:
    """Bytes of a plane."""
    return geometry.stride[0] * section_rows(geometry, rows) * geometry.cols * geometry.c


def staged_size(geometry: Geometry, dot: Dot, rows: int) -> int:
    """Bytes of the copy for ``rows`` output rows, with room to read on."""
    if is_folded(geometry):
        return geometry.tap_cols * plane_size(geometry, rows) + SLACK
    return staging.staged_size(geometry, dot, rows)


def tap_offset(geometry: Geometry, rows: int, ky: Any, kx: Any) -> Any:
    """Where a tap's pixels begin in the planes, seen from those of the first tap."""
    row, down = geometry.cols * geometry.c, geometry.stride[0]
    along = ky * geometry.dilation[0]
    section = tirx.floormod(along, down) * section_rows(geometry, rows)
    start = (section + tirx.floordiv(along, down)) * row
    return kx * plane_size(geometry, rows) + start


def stage_planes(
    geometry: Geometry, source: Any, scratch: Any, rows: int, where: tuple[Any, Any]
) -> None:
    """Emits the copy.

    Args:
        geometry: of the layer, as `laid_out` gives it.
        source: the input as a flat buffer.
        scratch: the planes, a flat buffer of `staged_size` bytes.
        rows: output rows that will be computed from it.
        where: (first element of the image in ``source``, first output row).
    """
    image, first = where
    pad = tirx.const(geometry.pad_value, scratch.dtype)
    line_size, down = geometry.cols * geometry.c, geometry.stride[0]
    for kx in range(geometry.tap_cols):
        begin, end = _inside(geometry, kx)
        with T.serial(geometry.rows_read(rows)) as y:
            section = tirx.floormod(y, down) * section_rows(geometry, rows)
            row = T.Bind(
                kx * plane_size(geometry, rows) + (section + tirx.floordiv(y, down)) * line_size
            )
            line = T.Bind(first * down + (y - geometry.padding[0]))
            _fill(scratch, row, begin * geometry.c, pad)
            _fill(scratch, row + end * geometry.c, line_size - end * geometry.c, pad)
            with T.If(tirx.all(line >= 0, line < geometry.height)):
                with T.Then():
                    from_ = T.Bind(image + line * (geometry.width * geometry.c))
                    _pixels(geometry, (source, from_), (scratch, row), kx)
                with T.Else():
                    _fill(scratch, row + begin * geometry.c, (end - begin) * geometry.c, pad)


def _inside(geometry: Geometry, kx: int) -> tuple[int, int]:
    """The output columns for which kernel column ``kx`` lies in the image."""
    across, at = geometry.stride[1], kx * geometry.dilation[1] - geometry.padding[1]
    begin = min(max(ceil(-at / across), 0), geometry.cols)
    end = min(max(ceil((geometry.width - at) / across), begin), geometry.cols)
    return begin, end


def _pixels(geometry: Geometry, source: tuple[Any, Any], to: tuple[Any, Any], kx: int) -> None:
    """The pixels of one row that kernel column ``kx`` meets."""
    begin, end = _inside(geometry, kx)
    (flat, from_), (scratch, row), c = source, to, geometry.c
    across = geometry.stride[1]
    at = kx * geometry.dilation[1] - geometry.padding[1]
    if across == 1:
        _copy(flat, from_ + (begin + at) * c, scratch, row + begin * c, (end - begin) * c)
        return
    with T.serial(end - begin) as x:
        column = T.Bind(x + begin)
        _copy(flat, from_ + (column * across + at) * c, scratch, row + column * c, c)


def _copy(source: Any, from_: Any, to: Any, start: Any, count: int) -> None:
    def move(at: Any, lanes: int) -> None:
        there = T.ramp(start + at, 1, lanes) if lanes > 1 else start + at
        vector = f"{source.dtype}x{lanes}" if lanes > 1 else str(source.dtype)
        T.buffer_store(to, source.vload([from_ + at], vector), [there])

    _sweep(move, count)


def _fill(to: Any, start: Any, count: int, value: Any) -> None:
    def put(at: Any, lanes: int) -> None:
        there = T.ramp(start + at, 1, lanes) if lanes > 1 else start + at
        T.buffer_store(to, T.broadcast(value, lanes) if lanes > 1 else value, [there])

    _sweep(put, count)


def _sweep(visit: Callable[[Any, int], None], count: int) -> None:
    """Visits ``count`` bytes in vectors; the last one may overlap its predecessor."""
    if count <= 0:
        return
    lanes = next(size for size in (64, 32, 16, 8, 4, 2, 1) if size <= count)
    with T.serial(count // lanes) as i:
        visit(i * lanes, lanes)
    if count % lanes:
        visit(count - lanes, lanes)
