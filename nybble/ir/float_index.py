"""NumPy meaning of the ops that move elements: slices, gathers, scatters, order, interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Law = Callable[..., Any]


def strided_slice(x: Array, *bounds: Any, **_: Any) -> Array:
    """A slice along some axes.

    Args:
        x: the tensor.
        bounds: axes, begins, ends and strides one after the other, as many of each.
    """
    count = len(bounds) // 4
    axes, begins, ends, strides = (bounds[i * count : (i + 1) * count] for i in range(4))
    index = [slice(None)] * x.ndim
    for axis, begin, end, stride in zip(axes, begins, ends, strides, strict=True):
        # running backwards past the first element is written as an end before the tensor
        stop = None if stride < 0 and end < -x.shape[axis] else end
        index[axis] = slice(begin, stop, stride)
    return x[tuple(index)]


def gather_nd(x: Array, indices: Array, *, batch_dims: int) -> Array:
    """Slices of x at the index vectors in the last axis of ``indices``."""
    at = np.moveaxis(indices, -1, 0)
    if batch_dims == 0:
        return x[tuple(at)]
    lead = np.ix_(*[np.arange(size) for size in x.shape[:batch_dims]])
    extra = at.ndim - 1 - batch_dims
    return x[tuple(a.reshape(a.shape + (1,) * extra) for a in lead) + tuple(at)]


def scatter_elements(
    x: Array, indices: Array, updates: Array, *, axis: int, reduction: str
) -> Array:
    """A copy of x with single elements along ``axis`` replaced or combined."""
    grid = list(np.ogrid[tuple(slice(size) for size in indices.shape)])
    grid[axis] = np.where(indices < 0, indices + x.shape[axis], indices)
    return _combined(x, tuple(np.broadcast_arrays(*grid)), updates, reduction)


def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str) -> Array:
    """A copy of x with the slices at the index vectors replaced or combined."""
    return _combined(x, tuple(np.moveaxis(indices, -1, 0)), updates, reduction)


def _combined(x: Array, at: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    result = x.copy()
    if reduction == "update":
        result[at] = updates
        return result
    steps: dict[str, Any] = {
        "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum,
    }  # fmt: skip
    steps[reduction].at(result, at, updates)
    return result


def topk(x: Array, *, k: int, axis: int, ret_type: str, largest: bool, dtype: Any) -> Array:
    """The k largest (or smallest) values or their positions; the earlier of equals comes first."""
    key = -x.astype(np.float64) if largest else x
    order = np.argsort(key, axis=axis, kind="stable")
    order = np.take(order, np.arange(k), axis=axis)
    if ret_type == "indices":
        return order.astype(str(dtype))
    return np.take_along_axis(x, order, axis=axis)


def resize2d(
    x: Array, size: Sequence[int], *, layout: str, method: str,
    coordinate_transformation_mode: str, rounding_method: str, **_: Any,
) -> Array:  # fmt: skip
    """Nearest or linear interpolation of the two image axes."""
    first = 2 if layout == "NCHW" else 1
    for axis, extent in zip((first, first + 1), size, strict=True):
        source = positions(x.shape[axis], int(extent), coordinate_transformation_mode)
        x = (_nearest(x, source, axis, rounding_method) if method == "nearest_neighbor"
             else _linear(x, source, axis))  # fmt: skip
    return x


def positions(before: int, after: int, mode: str) -> Array:
    """Where the pixels of the result lie in the source, by the coordinate transformation's name."""
    at = np.arange(after, dtype=np.float64)
    if mode == "align_corners":
        return at * ((before - 1) / (after - 1) if after > 1 else 0)
    if mode == "half_pixel":
        return (at + 0.5) * (before / after) - 0.5
    return at * (before / after)  # asymmetric


def _nearest(x: Array, source: Array, axis: int, rounding: str) -> Array:
    kinds: dict[str, Law] = {
        "floor": np.floor, "ceil": np.ceil, "round": lambda v: np.floor(v + 0.5),
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }  # fmt: skip
    index = kinds[rounding or "round"](source).astype(np.int64)
    return np.take(x, index.clip(0, x.shape[axis] - 1), axis=axis)


def _linear(x: Array, source: Array, axis: int) -> Array:
    low = np.floor(source).astype(np.int64)
    share = (source - low).astype(np.float32)
    share = share.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    last = x.shape[axis] - 1
    below, above = (np.take(x, (low + i).clip(0, last), axis=axis) for i in (0, 1))
    return np.asarray(below * (1 - share) + above * share, x.dtype)


def one_hot(indices: Array, on: Any, off: Any, *, depth: int, axis: int) -> Array:
    """``on`` where the new axis's index is the element, ``off`` elsewhere."""
    place = axis % (indices.ndim + 1)
    steps = np.arange(depth).reshape([-1 if a == place else 1 for a in range(indices.ndim + 1)])
    return np.where(np.expand_dims(indices, place) == steps, on, off)


def take(x: Array, indices: Array, *, axis: int | None, mode: str) -> Array:
    """The slices of x at ``indices``; in mode ``wrap`` negative ones count from the end."""
    return np.take(x, indices, axis=axis, mode="wrap" if mode == "wrap" else "clip")


def gather_elements(x: Array, at: Array, *, axis: int) -> Array:
    """The elements at indices along an axis; the other extents may be less than those of x."""
    corner = [slice(None) if a == axis % at.ndim else slice(n) for a, n in enumerate(at.shape)]
    wrapped = np.where(at < 0, at + x.shape[axis], at)
    return np.take_along_axis(x[tuple(corner)], wrapped, axis=axis)


def arange(start: Any, end: Any, step: Any, *, dtype: Any) -> Array:
    """Evenly spaced values, the end left out."""
    return np.arange(start, end, step, dtype=str(dtype))


OPS: dict[str, Law] = {
    "relax.strided_slice": strided_slice,
    "relax.take": take,
    "relax.gather_elements": gather_elements,
    "relax.gather_nd": gather_nd,
    "relax.scatter_elements": scatter_elements,
    "relax.scatter_nd": scatter_nd,
    "relax.topk": topk,
    "relax.one_hot": one_hot,
    "relax.flip": lambda x, *, axis: np.flip(x, axis),
    "relax.tile": lambda x, *, repeats: np.tile(x, repeats),
    "relax.broadcast_to": lambda x, shape: np.broadcast_to(x, shape).copy(),
    "relax.full": lambda shape, value, *, dtype: np.full(shape, value, str(dtype)),
    "relax.arange": arange,
    "relax.tril": np.tril,
    "relax.triu": np.triu,
    "relax.image.resize2d": resize2d,
}
