"""Arrays in little space: of one that repeats itself, as large operands here do, one period."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGE = 1 << 16  # bytes
BEGINNING = 64  # bytes that are looked for again
TRIES = 16
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
    """Elements after which an array begins again, None for one that is small or does not.

    Parts repeat themselves within a period: where its beginning comes again, but not for long, the
    search goes on with all of the beginning that was alike and the byte behind it.
    """
    if flat.nbytes < LARGE:
        return None
    data = flat.view(np.uint8)
    text, known = data.tobytes(), BEGINNING
    for _ in range(TRIES):
        at = text.find(text[:known], 1, data.size // 2 + known)
        if at < 0:
            return None
        differs = data[at:] != data[:-at]
        alike = int(differs.argmax()) if differs.any() else None
        if alike is None:
            return at // flat.itemsize if at % flat.itemsize == 0 else None
        known = alike + 1
    return None
