"""Weights that the source model holds as integers, and how they stand for floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.frontend.extents import Refused
from nybble.ir import numerics, ops

Array = NDArray[Any]
SINGLE_BITS = 8  # types up to here are narrowed to what their values need


@dataclass(frozen=True, eq=False)
class Affine:
    """value = (q - zero_point) * scale.

    Attributes:
        scale: float32, a scalar, a vector along ``axis``, or of q's rank with blocks along it.
        zero_point: int32 of the same shape.
        axis: what vectors and blocks run along.
        block: integers that share an entry along ``axis``; 0 unless there are blocks.
    """

    scale: Array
    zero_point: Array
    axis: int = 0
    block: int = 0

    @property
    def is_single(self) -> bool:
        """Whether the whole tensor has one scale."""
        return self.scale.ndim == 0


def affine(scale: Any, zero_point: Any = None, axis: int = 0, block: int = 0) -> Affine:
    """An `Affine` from a file's arrays: 16-bit scales widened, single numbers as scalars.

    Raises:
        Refused: a scale that is not finite, or a zero point of another shape.
    """
    steps = np.asarray(scale).astype(np.float32)
    if not np.isfinite(steps).all():
        raise Refused("a scale is not finite")
    zeros = np.zeros(steps.shape, np.int32) if zero_point is None else _int32(zero_point)
    if zeros.size == 1:
        zeros = np.broadcast_to(zeros.reshape(()), steps.shape)
    if steps.size == 1 and not block:
        steps, zeros = steps.reshape(()), zeros.reshape(()) if zeros.size == 1 else zeros
    if steps.ndim == zeros.ndim == 0:
        axis = -1  # of no meaning, and in every tensor
    if steps.ndim == 0 and zeros.ndim:
        steps = np.broadcast_to(steps, zeros.shape)
    if steps.shape != zeros.shape or (not block and steps.ndim > 1):
        raise Refused(f"scales of shape {steps.shape} and zero points of {zeros.shape}")
    return Affine(np.array(steps), np.array(zeros), axis if steps.ndim else 0, block)


def _int32(zero_point: Any) -> Array:
    array = np.asarray(zero_point)
    integer_type(array)
    return array.astype(np.int32)


def integer_type(array: Array) -> str:
    """The width of a file's integers: ``int4`` where NumPy only knows an extension type.

    Raises:
        Refused: they are no integers.
    """
    name = str(array.dtype)
    if not name.startswith(("int", "uint")):
        raise Refused(f"its type {name} is no integer type")
    return name


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant of integers; wherever an array is asked for, it is the array of its floats.

    Attributes:
        integers: unpacked, signed.
        dtype: the narrowest width that holds them (and the zero points).
        affine: what they stand for.
    """

    integers: Array
    dtype: str
    affine: Affine

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        return self.integers.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.integers.ndim

    @property
    def T(self) -> Stored:  # noqa: N802  (NumPy's name)
        """The transposed matrix."""
        return self.transposed(range(self.ndim)[::-1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """The float32 values."""
        on = self.affine
        law = ops.VOCABULARY["dequantize"].law
        values = law(self.integers, on.scale, on.zero_point, axis=on.axis, block=on.block)
        return np.asarray(values, dtype)

    def transposed(self, axes: Sequence[int]) -> Stored:
        """With its axes in another order."""
        order, on = [axis % self.ndim for axis in axes], self.affine
        if not on.is_single:
            moved = {"axis": order.index(on.axis % self.ndim)}
            if on.block:
                tables = {"scale": on.scale, "zero_point": on.zero_point}
                moved |= {k: v.transpose(order) for k, v in tables.items()}  # type: ignore[misc]
            on = replace(on, **moved)  # type: ignore[arg-type]
        return Stored(np.ascontiguousarray(self.integers.transpose(order)), self.dtype, on)

    def reshaped(self, shape: tuple[int, ...], axis: int) -> Stored:
        """A vector in another shape, its scales along ``axis``."""
        return Stored(self.integers.reshape(shape), self.dtype, replace(self.affine, axis=axis))


def stored(integers: Any, on: Affine, dtype: str | None = None) -> Stored:
    """A constant of the file: unsigned integers are shifted to signed ones, and types narrowed.

    Args:
        integers: as the file holds them, unpacked.
        on: what they stand for.
        dtype: their width; that of the array unless given.
    """
    array = np.asarray(integers)
    signed, bits = numerics.width(dtype or integer_type(array))
    values, zeros = array.astype(np.int64), on.zero_point.astype(np.int64)
    if not signed:
        half = 1 << (bits - 1)
        values, zeros = values - half, zeros - half
    held = f"int{bits}"
    if bits <= SINGLE_BITS:
        held = f"int{max(2, needed_bits(values), needed_bits(zeros))}"
    _check_shape(array.shape, on)
    centred = replace(on, zero_point=zeros.astype(np.int32))
    return Stored(values.astype(numerics.storage(held)), held, centred)


def needed_bits(values: Array) -> int:
    """Bits of the narrowest signed integer that holds all values."""
    if values.size == 0:
        return 1
    largest = max(int(values.max()), -int(values.min()) - 1, 0)
    return largest.bit_length() + 1


def _check_shape(shape: tuple[int, ...], on: Affine) -> None:
    """Refuses scales that do not fit the tensor."""
    if on.is_single:
        return
    if not -len(shape) <= on.axis < len(shape):
        raise Refused(f"its axis {on.axis} is none of a tensor of {len(shape)} axes")
    axis = on.axis % len(shape)
    wanted: tuple[int, ...] = (shape[axis],)
    if on.block:
        wanted = (*shape[:axis], -(-shape[axis] // on.block), *shape[axis + 1 :])
    if on.scale.shape != wanted:
        raise Refused(f"scales of shape {on.scale.shape} do not fit a tensor of shape {shape}")
