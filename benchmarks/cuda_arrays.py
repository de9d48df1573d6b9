"""Arrays in little space: of one that repeats itself, as large operands here do, one period."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGE = 1 << 16  # bytes
BEGINNING = 64  # bytes that are looked for again
TRIES = 64
PERIOD, SHAPE = ".period", ".shape"
Arrays = dict[str, NDArray[Any]]


def save(path: Path, arrays: Arrays) -> None:
    """Writes arrays by name."""
    kept: Arrays = {}
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array).reshape(-1)
        period = period_of(flat)
        if period is None:
            kept[name] = array
        else:
            kept[name + PERIOD] = flat[:period]
            kept[name + SHAPE] = np.array(array.shape, np.int64)
    np.savez(path, **kept)  # type: ignore[arg-type]  # its stub knows no **


def load(path: Path) -> Arrays:
    """What `save` wrote, whole again."""
    found: Arrays = {}
    with np.load(path) as data:
        for name in data.files:
            if name.endswith(PERIOD):
                first = name.removesuffix(PERIOD)
                shape = tuple(int(extent) for extent in data[first + SHAPE])
                found[first] = np.resize(data[name], prod(shape)).reshape(shape)
            elif not name.endswith(SHAPE):
                found[name] = data[name]
    return found


def period_of(flat: NDArray[Any]) -> int | None:
    """Elements after which an array begins again, None for one that is small or does not."""
    if flat.nbytes < LARGE:
        return None
    data = flat.view(np.uint8)
    text, size = data[: data.size // 2 + BEGINNING].tobytes(), flat.itemsize
    at = 0
    for _ in range(TRIES):
        at = text.find(text[:BEGINNING], at + 1)
        if at < 0:
            return None
        if at % size == 0 and np.array_equal(data[at:], data[:-at]):
            return at // size
    return None
