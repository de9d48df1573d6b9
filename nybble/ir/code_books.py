"""Code books: weights of 4 bits, each the number of one of 16 levels that need no even steps.

    nf4   quantiles of the normal distribution (Dettmers et al., arXiv 2305.14314), dense near 0
    fp4   e2m1: a sign, two bits of exponent and one of mantissa, as in OCP's MX formats

Levels are integers, so that products with integer activations stay exact: those of e2m1 are twice
its values, those of nf4 are rounded to 1/127 of the largest, by less than 1/20 of a step.
A weight is kept as its level in int8; only what is stored for a kernel is the number of the level.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = 4
"""Of a level's number."""
DTYPE = "int8"
"""Of a level."""

_HALF_OF_FP4 = (0, 1, 2, 3, 4, 6, 8, 12)
_LEVELS: dict[str, tuple[int, ...]] = {
    "nf4": (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127),
    "fp4": (*_HALF_OF_FP4, *(-level for level in _HALF_OF_FP4)),
}
NAMES = tuple(_LEVELS)


def levels(book: str) -> NDArray[np.int8]:
    """The 16 levels of a book by their numbers; of two equal ones the first is used."""
    return np.array(_LEVELS[book], np.int8)


def nearest(values: NDArray[np.float64], book: str) -> NDArray[np.int8]:
    """The level nearest to each value, the lower of two; values are in units of the levels."""
    ordered = np.unique(levels(book))
    borders = (ordered[1:].astype(np.float64) + ordered[:-1]) / 2
    return ordered[np.searchsorted(borders, values)]


def numbers(weights: NDArray[Any], book: str) -> NDArray[np.uint8]:
    """The numbers of levels, 0 to 15.

    Raises:
        ValueError: a weight is no level of the book.
    """
    by_level = np.full(256, -1, np.int16)
    for number, level in reversed(list(enumerate(_LEVELS[book]))):
        by_level[level + 128] = number
    found = by_level[np.asarray(weights).astype(np.int16) + 128]
    if found.min(initial=0) < 0:
        raise ValueError(f"{weights[found < 0].flat[0]} is no level of the code book {book}")
    return found.astype(np.uint8)
