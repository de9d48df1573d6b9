"""Layers and moves that CNNs seldom need, shared by the importers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax

from nybble.frontend import extents
from nybble.frontend.build import Builder, Value, dtype_of
from nybble.frontend.extents import Extent, Refused, Symbolic, Window
from nybble.ir import graph


def matmul(build: Builder, left: Value, right: Value, name: str) -> relax.Var:
    """Product of two tensors of any rank, at most one of them constant."""
    dtype = dtype_of(left if isinstance(left, relax.Var) else right)
    operands = [build.tensor(value, name, dtype) for value in (left, right)]
    return build.emit(relax.op.matmul(*operands), name)


def prelu(build: Builder, x: Value, slopes: Any, name: str) -> Value:
    """max(x, 0) + slope·min(x, 0) by constant slopes that broadcast: a form that integers have."""
    low = build.binary("minimum", x, 0.0, f"{name}.low")
    bent = build.binary("multiply", low, slopes, f"{name}.slope")
    return build.binary("add", build.relu(x, f"{name}.high"), bent, name)


def pool3d(build: Builder, kind: str, x: Value, window: Window, counted: bool, name: str) -> Value:
    """``max`` or ``avg`` pooling over three axes; ``counted`` is whether padding counts."""
    padding = window.full_padding(*extents.shape(x)[2:])
    if kind == "avg" and (window.ceil_mode and counted and any(window.padding)):
        raise Refused("counts its padding and rounds up")
    pool = relax.op.nn.max_pool3d if kind == "max" else relax.op.nn.avg_pool3d
    call = pool(
        x, pool_size=window.size, strides=window.strides, padding=padding,
        dilation=window.dilation, count_include_pad=counted and padding == window.padding,
    )  # fmt: skip
    return build.emit(call, name)


def cut(
    build: Builder, x: Value, spans: Mapping[int, tuple[Any, Any]], name: str, step: int = 1
) -> relax.Var:
    """The elements from begin to end (exclusive) of some axes; bounds lie inside of them."""
    chosen = {
        axis: (begin, end) for axis, (begin, end) in spans.items()
        if step != 1 or isinstance(begin, Symbolic) or begin or end != extents.shape(x)[axis]
    }  # fmt: skip
    if not chosen:
        return x
    if any(isinstance(e, int) and isinstance(b, int) and e <= b for b, e in chosen.values()):
        return _empty(x, dict.fromkeys(chosen, 0))
    begins, ends = ([span[i] for span in chosen.values()] for i in (0, 1))
    call = relax.op.strided_slice(
        x, list(chosen), extents.expressions(begins), extents.expressions(ends),
        [step] * len(chosen),
    )  # fmt: skip
    return build.emit(call, name)


def _empty(x: Value, axes: Mapping[int, int]) -> Value:
    """What is left of a tensor without elements along some axes; joining it changes nothing."""
    sizes = extents.shape(x)
    known = [axes.get(i, 1 if isinstance(s, Symbolic) else s) for i, s in enumerate(sizes)]
    return np.zeros(known, dtype_of(x))


def take(build: Builder, x: Value, indices: Value, axis: int, name: str) -> relax.Var:
    """Slices along an axis; negative indices count from the end."""
    if not isinstance(indices, relax.Var):
        indices = np.asarray(indices)
    if not isinstance(x, relax.Var):
        x = build.tensor(x, f"{name}.table", dtype_of(x))
    places = build.tensor(indices, f"{name}.indices", dtype_of(indices))
    return build.emit(relax.op.take(x, places, axis, mode="wrap"), name)


def broadcast(build: Builder, x: Value, target: Sequence[Extent], name: str) -> Value:
    """A tensor repeated along axes of extent 1, to what broadcasting with a shape gives."""
    sizes = extents.shape(x)
    rank = max(len(sizes), len(target))
    ours, theirs = ([*[1] * (rank - len(s)), *s] for s in (sizes, target))
    result = [theirs[i] if _is_one(ours[i]) else ours[i] for i in range(rank)]
    if result == sizes:
        return x
    given = build.tensor(x, name, dtype_of(x))
    return build.emit(relax.op.broadcast_to(given, extents.expressions(result)), name)


def _is_one(extent: Extent) -> bool:
    return not isinstance(extent, Symbolic) and extent == 1


def filled(build: Builder, target: Sequence[Extent], value: Any, name: str) -> relax.Var:
    """A tensor of one value, of a shape that only the running network knows."""
    single = np.asarray(value).reshape(())
    constant = graph.constant(single, dtype_of(single))
    return build.emit(relax.op.broadcast_to(constant, extents.expressions(target)), name)


# ---------------------------------------------------------------- caches


def steps(build: Builder, begin: Extent, end: Extent, name: str) -> Value:
    """The whole numbers from begin to end, int64."""
    if isinstance(begin, int) and isinstance(end, int):
        return np.arange(begin, end)
    bounds = extents.expressions([begin, end])
    return build.emit(relax.op.arange(*bounds, dtype="int64"), name)


def inside(build: Builder, places: Value, size: Extent, name: str) -> Value:
    """Places along an axis; negative ones count from its end.

    A kernel would write outside of its tensor at others: those are the first or the last place.
    """
    wide = build.cast(places, "int64", f"{name}.wide")
    if not isinstance(wide, relax.Var):
        wide = build.tensor(wide, name, "int64")
    last = steps(build, size - 1, size, f"{name}.last")
    length = steps(build, size, size + 1, f"{name}.length")
    below = build.binary("less", wide, 0, f"{name}.negative")
    wrapped = build.binary("add", wide, length, f"{name}.wrapped")
    known = build.where(below, wrapped, wide, f"{name}.positive")
    return build.binary("maximum", build.binary("minimum", known, last, f"{name}.least"), 0, name)


def written(build: Builder, x: Value, axis: int, places: Value, new: Value, name: str) -> relax.Var:
    """A tensor with new rows in place of those at some places along an axis.

    Args:
        build: the builder.
        x: the tensor; its axes in front of ``axis`` are those of ``new``.
        axis: that is written along.
        places: integers that broadcast to the extents of ``new`` up to ``axis``.
        new: the rows.
        name: of the result.
    """
    lead = list(extents.shape(new)[: axis + 1])
    known = inside(build, places, extents.shape(x)[axis], f"{name}.places")
    known = build.reshape(known, [*[1] * (axis + 1 - extents.rank(known)), *extents.shape(known)],
                          f"{name}.rows")  # fmt: skip
    columns = [
        build.reshape(steps(build, 0, size, f"{name}.{at}"), _along(at, axis + 1, size),
                      f"{name}.column")
        for at, size in enumerate(lead[:-1])
    ]  # fmt: skip
    parts = [
        build.unsqueeze(broadcast(build, part, lead, f"{name}.every"), [axis + 1], f"{name}.place")
        for part in (*columns, known)
    ]
    index = build.concat(parts, axis + 1, f"{name}.index") if len(parts) > 1 else parts[0]
    operands = [build.tensor(v, name, dtype_of(v)) for v in (x, index, new)]
    return build.emit(relax.op.scatter_nd(*operands, "update"), name)


def _along(axis: int, rank: int, size: Extent) -> list[Extent]:
    return [size if at == axis else 1 for at in range(rank)]
