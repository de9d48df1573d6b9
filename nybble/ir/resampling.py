"""THE LAW of resizing NHWC images in integers: nearest and bilinear.

An axis of n pixels becomes one of m = ⌊n·up / down⌋. Pixel i of the result lies in the source at

    asymmetric      i·down/up
    half_pixel      (i + 1/2)·down/up - 1/2
    align_corners   i·(n - 1)/(m - 1)

which is the fraction (slope·i + offset) / unit of `Places`. With its floor l and its remainder r,

    nearest    x[l]                                  (asymmetric only)
    bilinear   (unit - r)·x[l] + r·x[l + 1]          along both axes, indices clamped to the image

so the bilinear sums are exact integers, ``unit`` of the rows times that of the columns larger than
the pixels they stand for; the `requantize` behind them divides, which is the only rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MODES = ("asymmetric", "half_pixel", "align_corners")


@dataclass(frozen=True)
class Places:
    """Where the pixels of a result lie along one axis of the source, as fractions.

    Attributes:
        slope: of the numerator.
        offset: numerator of pixel 0.
        unit: the denominator; the weights of two neighbours add up to it.
    """

    slope: int
    offset: int
    unit: int


def places(mode: str, up: int, down: int, extent: int | None = None) -> Places:
    """The fractions of one axis, in lowest terms.

    Args:
        mode: one of `MODES`.
        up: the axis grows by this factor,
        down: and shrinks by this one.
        extent: of the source; ``align_corners`` alone needs it.
    """
    if mode == "align_corners":
        assert extent is not None
        reach = extent * up // down - 1
        slope, offset, unit = (extent - 1, 0, reach) if reach else (0, 0, 1)
    elif mode == "half_pixel":
        slope, offset, unit = 2 * down, down - up, 2 * up
    else:
        slope, offset, unit = down, 0, up
    common = gcd(slope, offset, unit)
    return Places(slope // common, offset // common, unit // common)


def nearest2d(x: Array, *, up: tuple[int, int], down: tuple[int, int]) -> Array:
    """Copies of pixels; up and down along (H, W)."""
    for axis in (1, 2):
        many, few = up[axis - 1], down[axis - 1]
        index = np.arange(x.shape[axis] * many // few) * few // many
        x = np.take(x, index, axis=axis)
    return x


def bilinear2d(
    x: Array, *, up: tuple[int, int], down: tuple[int, int], mode: str
) -> NDArray[np.int32]:
    """Weighted sums of four pixels in int32.

    Args:
        x: (N, H, W, C) integers of at most 16 bits.
        up: by how much H and W grow,
        down: and by how much they shrink.
        mode: one of `MODES`. That nothing exceeds 32 bits is the lowering's duty to prove.
    """
    total = x.astype(np.int64)
    for axis in (1, 2):
        extent, many, few = x.shape[axis], up[axis - 1], down[axis - 1]
        at = places(mode, many, few, extent)
        low, rest = np.divmod(at.slope * np.arange(extent * many // few) + at.offset, at.unit)
        rest = rest.reshape([-1 if a == axis else 1 for a in range(4)])
        near, far = (np.take(total, (low + i).clip(0, extent - 1), axis=axis) for i in (0, 1))
        total = near * (at.unit - rest) + far * rest
    return total.astype(np.int32)
