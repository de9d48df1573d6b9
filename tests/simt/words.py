"""Kernels of single words, as the checks are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble import simt

Array = NDArray[Any]


def run_words(kernel: Any, lanes: int = 64) -> Array:
    """What a kernel makes of the numbers from 0 on."""
    a, out = np.arange(lanes, dtype=np.int32), np.zeros(lanes, np.int32)
    simt.run(kernel, [a, out])
    return out
