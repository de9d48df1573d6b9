"""The law of resizing against fractions, pixel by pixel."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import floor, prod
from typing import Any

import numpy as np
import pytest

from nybble.ir.resampling import MODES, bilinear2d, nearest2d, places

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
SCALES = [((2, 2), (1, 1)), ((3, 5), (1, 2)), ((1, 7), (1, 3)), ((4, 1), (5, 2))]


def position(mode: str, i: int, n: int, factor: Fraction) -> Fraction:
    """Where ONNX says that a pixel lies."""
    if mode == "align_corners":
        reach = floor(n * factor) - 1
        return Fraction(i * (n - 1), reach) if reach else Fraction(0)
    if mode == "half_pixel":
        return (i + Fraction(1, 2)) / factor - Fraction(1, 2)
    return i / factor


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("up", "down"), SCALES)
def test_bilinear_sums_are_the_exact_values(mode: str, up: Any, down: Any) -> None:
    got = bilinear2d(PIXELS, up=up, down=down, mode=mode)
    factors = [Fraction(u, d) for u, d in zip(up, down, strict=True)]
    sizes = PIXELS.shape[1:3]
    assert got.shape == (2, *(floor(n * f) for n, f in zip(sizes, factors, strict=True)), 3)
    units = [places(mode, u, d, n).unit for u, d, n in zip(up, down, sizes, strict=True)]
    for y, x in product(range(got.shape[1]), range(got.shape[2])):
        shares = []
        for i, n, f in zip((y, x), sizes, factors, strict=True):
            at = position(mode, i, n, f)
            low, rest = floor(at), at - floor(at)
            clamped = [min(max(low + step, 0), n - 1) for step in (0, 1)]
            shares.append(list(zip(clamped, (1 - rest, rest), strict=True)))
        total = sum(
            (high * wide * PIXELS[:, row, column].astype(object))
            for (row, high), (column, wide) in product(*shares)
        )
        assert (got[:, y, x] == total * prod(units)).all()


@pytest.mark.parametrize(("up", "down"), SCALES)
def test_nearest_takes_the_pixel_to_the_left(up: Any, down: Any) -> None:
    got = nearest2d(PIXELS, up=up, down=down)
    for y, x in product(range(got.shape[1]), range(got.shape[2])):
        row, column = (i * d // u for i, u, d in zip((y, x), up, down, strict=True))
        np.testing.assert_array_equal(got[:, y, x], PIXELS[:, row, column])


def test_fractions_are_in_lowest_terms() -> None:
    """Small denominators keep sums small: by two, quarters; by three, thirds."""
    assert places("half_pixel", 2, 1).unit == 4
    assert places("half_pixel", 3, 1).unit == 3
    assert places("align_corners", 2, 1, 1).unit == 1
