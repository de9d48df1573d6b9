"""The rows of a staging copy in a form of its own: which pixels are padding, which are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.geometry import Geometry

Pad = Callable[[Any, int], None]
Read = Callable[[Any, Any, int], None]


def emit_rows(
    geometry: Geometry, per_pixel: int, rows: int, where: tuple[Any, Any], visit: tuple[Pad, Read]
) -> None:
    """Visits every input row that ``rows`` output rows read.

    Args:
        geometry: of the layer.
        per_pixel: units of the copy that one pixel takes.
        rows: output rows that will be computed from the copy.
        where: (first element of the image in the input, first output row).
        visit: (``pad(unit, pixels)``, ``read(element, unit, pixels)``): what to do with consecutive
            pixels, from a unit of the copy on.
    """
    (image, first), (pad, read) = where, visit
    top, left, bottom, _ = geometry.padding
    middle = min(geometry.width, geometry.reach - left)
    after = geometry.reach - left - middle
    with T.serial(geometry.rows_read(rows)) as y:
        start = T.Bind(y * (geometry.reach * per_pixel))
        line = T.Bind(first * geometry.stride[0] + y - top)
        from_ = T.Bind(image + line * (geometry.width * geometry.c))
        if left:
            pad(start, left)
        if after:
            pad(start + (left + middle) * per_pixel, after)
        inner = T.Bind(start + left * per_pixel)
        if not top + bottom:
            read(from_, inner, middle)
            return
        with T.If(tirx.all(line >= 0, line < geometry.height)):
            with T.Then():
                read(from_, inner, middle)
            with T.Else():
                pad(inner, middle)
