"""Which resizes of images have an integer form, and by which factors they grow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any

from tvm import sym

from nybble.ir import graph, numerics, resampling

RESIZE = "relax.image.resize2d"
LARGEST_FACTOR = 16  # of an open extent
SUM_BITS = 31


@dataclass(frozen=True)
class Resize:
    """A resize of an NHWC image.

    Attributes:
        up: by how much height and width grow,
        down: and by how much they shrink.
        mode: of `nybble.ir.resampling`; None copies the nearest pixels.
        unit: the sum of the weights of a bilinear result.
    """

    up: tuple[int, int]
    down: tuple[int, int]
    mode: str | None
    unit: int = 1


def resize_of(call: Any) -> Resize | str:
    """The integer form of a resize2d, or why it has none."""
    attrs = graph.attributes(call)
    if attrs["layout"] != "NHWC":
        return f"resizes an image in {attrs['layout']}"
    before, after = call.args[0].ty.shape.values[1:3], call.args[1].values
    high, wide = (_factor(n, m) for n, m in zip(before, after, strict=True))
    if high is None or wide is None:
        return "grows an open size by no whole factor"
    up, down = (high.numerator, wide.numerator), (high.denominator, wide.denominator)
    mode, method = attrs["coordinate_transformation_mode"], attrs["method"]
    if method == "nearest_neighbor":
        is_floor = mode == "asymmetric" and attrs["rounding_method"] == "floor"
        return Resize(up, down, None) if is_floor else f"takes the nearest pixel by '{mode}'"
    if method != "linear" or mode not in resampling.MODES:
        return f"interpolates by '{method}', '{mode}'"
    return _bilinear(graph.shape_of(call.args[0])[1:3], Resize(up, down, mode))


def copies(call: Any) -> bool:
    """Whether a call is a resize whose pixels are all the operand's own."""
    found = resize_of(call) if graph.op_name(call) == RESIZE else None
    return isinstance(found, Resize) and found.mode is None


def _bilinear(extents: Any, found: Resize) -> Resize | str:
    """The resize with the sum of its weights, or why it has none."""
    mode = str(found.mode)
    if mode == "align_corners" and any(isinstance(extent, str) for extent in extents):
        return "aligns the corners of an image of open size"
    axes = zip(extents, found.up, found.down, strict=True)
    unit = prod(resampling.places(mode, up, down, extent).unit for extent, up, down in axes)
    largest = max(map(abs, numerics.limits("uint8")))
    if unit * largest >= 1 << SUM_BITS:
        return f"has weights of 1/{unit}, whose sums may exceed 32 bits"
    return replace(found, unit=unit)


def _factor(before: Any, after: Any) -> Fraction | None:
    """How many times as large an extent becomes; None where that is not known."""
    sizes = graph.plain(before), graph.plain(after)
    if all(isinstance(size, int) for size in sizes):
        return Fraction(sizes[1], sizes[0])
    analyzer = sym.Analyzer()
    whole = range(1, LARGEST_FACTOR + 1)
    found = next((f for f in whole if analyzer.can_prove_equal(before * f, after)), None)
    return None if found is None else Fraction(found)
