"""The staging copy: a task's input rows, converted for the dot product and padded.

It exists only where the input cannot be read in place: padding, another dtype, or runs that are no
multiple of the dot product's depth (which then reads a little further, against zero weights). A
strided 1x1 window is copied too, without the pixels between: it becomes a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.loops import stored
from nybble.schedules.kernel import Problem


def needs_staging(geometry: Geometry, dot: Dot, dtype: str) -> bool:
    """Whether the activations must be copied before the dot product can read them."""
    converted = dot.offset(dtype) != 0 or stored(dtype) != dot.x
    odd = geometry.run % dot.depth != 0
    return any(geometry.padding) or converted or odd or gathered(geometry) is not None


def is_staged(problem: Problem, geometry: Geometry, dot: Dot) -> bool:
    """Whether a layer reads a staging copy."""
    x = problem.inputs[0]
    return x.form != "values" or needs_staging(geometry, dot, x.dtype)


def staged_size(geometry: Geometry, dot: Dot, rows: int) -> int:
    """Elements of the staging copy for ``rows`` output rows, with room for reading on."""
    return geometry.rows_read(rows) * geometry.reach * geometry.c + 16 * dot.depth


def pitch(geometry: Geometry, staged: bool) -> int:
    """Elements between two input rows."""
    return (geometry.reach if staged else geometry.width) * geometry.c


def gathered(geometry: Geometry) -> Geometry | None:
    """The matrix product that a strided 1x1 window is once the pixels between are left out.

    None for other windows, whose copies keep every pixel.
    """
    single = geometry.tap_rows == geometry.tap_cols == 1
    single = single and geometry.run * geometry.groups == geometry.c
    if not single or geometry.stride == (1, 1) or any(geometry.padding):
        return None
    pixels = int(geometry.static_rows or 0) * geometry.cols
    return replace(geometry, rows=(pixels,), cols=1, stride=(1, 1), height=pixels, width=1)


def gather(
    geometry: Geometry, dot: Dot, source: Source, scratch: Any, rows: int, where: tuple[Any, Any]
) -> None:
    """Emits the copy of a strided 1x1 window; ``rows`` and ``where`` count pixels of the product.

    Args:
        geometry: of the layer itself.
        dot: whose dtype the copy has.
        source: the input.
        scratch: the copy, a flat buffer of `staged_size` elements.
        rows: pixels that will be computed from it.
        where: (first element of the image in ``source``, first pixel).
    """
    image, first = where
    (down, right), cols, c = geometry.stride, geometry.cols, geometry.c
    with T.serial(rows) as n:
        y, x = tirx.floordiv(first + n, cols), tirx.floormod(first + n, cols)
        pixel = y * (down * geometry.width) + x * right
        _copy(dot, scratch, n * c, source, image + pixel * c, c)


Source = tuple[Any, str]
"""The input as a flat buffer, and the dtype of its values."""


def stage(
    geometry: Geometry, dot: Dot, source: Source, scratch: Any, rows: int, where: tuple[Any, Any]
) -> None:
    """Emits the copy.

    Args:
        geometry: of the layer.
        dot: whose dtype the copy has.
        source: the input.
        scratch: the copy, a flat buffer of `staged_size` elements.
        rows: output rows that will be computed from it.
        where: (first element of the image in ``source``, first output row).
    """
    image, first = where
    top, left, bottom, right = geometry.padding
    read, row, c = geometry.rows_read(rows), pitch(geometry, True), geometry.c
    middle = min(geometry.width, geometry.reach - left) * c
    if row == geometry.width * c and not left + right + top + bottom:
        _copy(dot, scratch, 0, source, image + first * (geometry.stride[0] * row), read * row)
        return
    pad = tirx.const(geometry.pad_value + dot.offset(source[1]), dot.x)
    with T.serial(read) as y:
        start = y * row
        line = first * geometry.stride[0] + (y - top)
        from_ = image + line * (geometry.width * c)
        _fill(dot, scratch, start, left * c, pad)
        _fill(dot, scratch, start + (left * c + middle), row - left * c - middle, pad)
        if not top + bottom:
            _copy(dot, scratch, start + left * c, source, from_, middle)
            return
        with T.If(tirx.all(line >= 0, line < geometry.height)):
            with T.Then():
                _copy(dot, scratch, start + left * c, source, from_, middle)
            with T.Else():
                _fill(dot, scratch, start + left * c, middle, pad)


def _copy(dot: Dot, to: Any, start: Any, source: Source, from_: Any, count: int) -> None:
    """``count`` consecutive elements, converted."""

    def move(at: Any, lanes: int) -> None:
        flat, dtype = source
        value = flat.vload([from_ + at], _vector(flat.dtype, lanes))
        T.buffer_store(to, dot.convert(value, dtype), [_span(start + at, lanes)])

    _sweep(move, count, 4 * dot.lanes)


def _fill(dot: Dot, to: Any, start: Any, count: int, value: Any) -> None:
    """``count`` consecutive elements set to one value."""

    def put(at: Any, lanes: int) -> None:
        wide = T.broadcast(value, lanes) if lanes > 1 else value
        T.buffer_store(to, wide, [_span(start + at, lanes)])

    _sweep(put, count, 4 * dot.lanes)


def _span(start: Any, lanes: int) -> Any:
    return T.ramp(start, 1, lanes) if lanes > 1 else start


def _vector(dtype: Any, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else str(dtype)


def _sweep(visit: Callable[[Any, int], None], count: int, lanes: int) -> None:
    """Visits ``count`` elements in vectors; the last one may overlap its predecessor."""
    if count == 0:
        return
    while lanes > count:
        lanes //= 2
    with T.serial(count // lanes) as i:
        visit(i * lanes, lanes)
    if count % lanes:
        visit(count - lanes, lanes)
