"""One layer that GPUs are checked and timed with, and operands that are carried in little space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import numerics
from nybble.schedules.kernel import Problem

Arrays = dict[str, NDArray[Any]]
BLOCK = (32, 256)  # of weights
PERIOD = 8191  # of activations: a prime, so that no two matrices of a tensor are alike
SAMPLES = 32  # rows and columns of a large output


@dataclass(frozen=True)
class Row:
    """A layer, operands, and what a kernel must store.

    Attributes:
        name: unique.
        problem: what kernels are asked to compile.
        arrays: inputs ``x`` and ``b``, and constants by operand name.
        expected: values.
        bound: by how much stored floats may differ, of the same shape; None for equal.
        at: (rows, columns) of the output that ``expected`` is of, all axes but the last being
            rows; None for all of it.
        is_timed: whether it is, or is held against the law alone.
        macs: multiply-adds of a call, 0 where nothing is multiplied.
    """

    name: str
    problem: Problem
    arrays: Arrays
    expected: NDArray[Any]
    bound: NDArray[Any] | None = None
    at: tuple[NDArray[Any], NDArray[Any]] | None = None
    is_timed: bool = False
    macs: int = 0


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Integers from the whole range of a dtype."""
    low, high = numerics.limits(dtype)
    return rng.integers(low, high, shape, endpoint=True).astype(numerics.storage(dtype))


def tiled(block: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """A matrix of equal blocks, cut at its end."""
    times = [-(-extent // side) for extent, side in zip(shape, block.shape, strict=True)]
    return np.ascontiguousarray(np.tile(block, times)[: shape[0], : shape[1]])


def some(rng: np.random.Generator, extent: int, count: int = SAMPLES) -> NDArray[Any]:
    """Places of an axis: some and the last one of a long one, all of a short one."""
    if extent <= 2 * count:
        return np.arange(extent)
    return np.unique(np.append(rng.integers(0, extent, count - 1), extent - 1))
