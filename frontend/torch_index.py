"""ATen operators that compare, choose and write: masks, and caches that are written into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tvm import relax

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value, dtype_of
from nybble.frontend.extents import Refused
from nybble.frontend.torch_layers import filled

aten = torch.ops.aten
Convert = Callable[..., Value]


def _compared(op: str) -> Convert:
    """A comparison, or a logical operator, of two tensors or a tensor and a number."""
    return lambda build, name, left, right: build.binary(op, left, right, name)


def _not(build: Builder, name: str, x: Value) -> Value:
    if dtype_of(x) != "bool":
        raise Refused("inverts the bits of integers")
    return build.emit(relax.op.logical_not(x), name)


def _logical(op: str) -> Convert:
    """An operator on bits, which are truth values here."""

    def convert(build: Builder, name: str, left: Value, right: Value) -> Value:
        if {dtype_of(left), dtype_of(right)} != {"bool"}:
            raise Refused("combines the bits of integers")
        return build.binary(op, left, right, name)

    return convert


def _where(build: Builder, name: str, condition: Value, yes: Value, no: Value) -> Value:
    return build.where(condition, yes, no, name)


def _masked_fill(build: Builder, name: str, x: Value, mask: Value, value: Value) -> Value:
    return build.where(mask, np.asarray(value, dtype_of(x)), x, name)


def _full(
    build: Builder, name: str, sizes: Sequence[Any], value: Any, *, dtype: Any = None, **_: Any
) -> Value:
    """``aten.full`` of an open size."""
    if dtype not in (None, torch.float32):
        raise Refused(f"fills a tensor of open size with {dtype}")
    return general.filled(build, sizes, np.float32(value), name)


def _triangle(function: Callable[..., Any]) -> Convert:
    return lambda build, name, x, diagonal=0: build.emit(function(x, diagonal), name)


def _index_select(build: Builder, name: str, x: Value, axis: int, places: Value) -> Value:
    return general.take(build, x, places, axis % extents.rank(x), name)


# ---------------------------------------------------------------- writing


def _index_copy(build: Builder, name: str, x: Value, axis: int, places: Value, new: Value) -> Value:
    """``aten.index_copy``: rows of an axis replaced by others."""
    axis %= extents.rank(x)
    sizes = [*extents.shape(x)[:axis], extents.shape(places)[0], *extents.shape(x)[axis + 1 :]]
    return general.written(build, x, axis, places, general.broadcast(build, new, sizes, name), name)


def _index_put(
    build: Builder, name: str, x: Value, indices: Sequence[Value], new: Value, add: bool = False
) -> Value:
    """``aten.index_put`` along one axis: ``x[:, :, places] = new``."""
    axes = [axis for axis, places in enumerate(indices) if places is not None]
    if add or len(axes) != 1 or extents.rank(indices[axes[0]]) != 1:
        raise Refused("writes other than whole rows along one axis")
    if dtype_of(indices[axes[0]]) == "bool":
        raise Refused("writes where a mask says, which is as many elements as the data has it")
    return _index_copy(build, name, x, axes[0], indices[axes[0]], new)


def _scatter(build: Builder, name: str, x: Value, axis: int, places: Value, new: Value) -> Value:
    """``aten.scatter`` of a tensor; places that are none are the nearest ones."""
    axis %= extents.rank(x)
    inside = general.inside(build, places, extents.shape(x)[axis], f"{name}.places")
    operands = [build.tensor(v, name, dtype_of(v)) for v in (x, inside, new)]
    return build.emit(relax.op.scatter_elements(*operands, axis, "update"), name)


def _slice_scatter(build: Builder, name: str, x: Value, new: Value, *span: Any) -> Value:
    """``aten.slice_scatter``: a part of an axis replaced, by (axis, start, end, step)."""
    axis, start, end, step = filled(span, (0, None, None, 1))
    axis %= extents.rank(x)
    size, begin = extents.shape(x)[axis], start or 0
    if begin == 0 and step == 1 and extents.shape(new)[axis] == size:
        return new
    if not isinstance(size, int) or not isinstance(begin, int) or step != 1:
        raise Refused("writes to a place that is computed; use index_copy with a tensor of places")
    first, stop, _ = slice(begin, end).indices(size)
    before = [general.cut(build, x, {axis: (0, first)}, f"{name}.before")] if first else []
    behind = [general.cut(build, x, {axis: (stop, size)}, f"{name}.behind")] if stop < size else []
    return build.concat([*before, new, *behind], axis, name)


def _copy(build: Builder, name: str, x: Value, new: Value, *_: Any) -> Value:
    """``aten.copy``: what is written, in the shape of what it replaces."""
    return general.broadcast(build, new, extents.shape(x), name)


_COMPARED = {
    "eq": "equal", "ge": "greater_equal", "gt": "greater", "le": "less_equal", "lt": "less",
    "ne": "not_equal",
}  # fmt: skip

CONVERTERS: dict[Any, Any] = {
    **{
        getattr(getattr(aten, name), kind): _compared(op)
        for name, op in _COMPARED.items()
        for kind in ("Tensor", "Scalar")
    },
    aten.bitwise_and.Tensor: _logical("logical_and"),
    aten.bitwise_not.default: _not,
    aten.bitwise_or.Tensor: _logical("logical_or"),
    aten.copy.default: _copy,
    aten.full.default: _full,
    aten.index_copy.default: _index_copy,
    aten.index_put.default: _index_put,
    aten.index_select.default: _index_select,
    aten.logical_and.default: _logical("logical_and"),
    aten.logical_not.default: _not,
    aten.logical_or.default: _logical("logical_or"),
    aten.masked_fill.Scalar: _masked_fill,
    aten.scatter.src: _scatter,
    aten.slice_scatter.default: _slice_scatter,
    aten.tril.default: _triangle(relax.op.tril),
    aten.triu.default: _triangle(relax.op.triu),
    aten.where.self: _where,
}
