"""Operators of ONNX that pick elements: gathers, scatters, orders, masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value, dtype_of
from nybble.frontend.extents import Refused, Symbolic
from nybble.frontend.onnx_node import Node

Convert = Callable[[Node, Builder], Value]
REDUCTIONS = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def _gather(node: Node, build: Builder) -> Value:
    x, indices = node.inputs
    axis = node.attrs.get("axis", 0) % extents.rank(x)
    if isinstance(indices, np.ndarray) and indices.ndim == 0 and isinstance(x, relax.Var):
        size = extents.shape(x)[axis]
        index = int(indices)
        start: Any = size + index if index < 0 else index
        one = general.cut(build, x, {axis: (start, start + 1)}, f"{node.name}.slice")
        return build.squeeze(one, [axis], node.name)
    return general.take(build, x, indices, axis, node.name)


def _tensors(node: Node, build: Builder, count: int) -> list[Any]:
    """The first operands as Relax tensors of their own types."""
    return [build.tensor(v, node.name, dtype_of(v)) for v in node.inputs[:count]]


def _positive(node: Node, build: Builder, indices: Value, *sizes: Any) -> Value:
    """Indices with negative ones counted from the end.

    Args:
        node: that reads them.
        build: the builder.
        indices: into one axis, or with a last axis of one index for each of several axes.
        sizes: of these axes.
    """
    is_known = not isinstance(indices, relax.Var)
    if is_known and (np.asarray(indices) >= 0).all():
        return indices
    is_open = any(isinstance(size, Symbolic) for size in sizes)
    around = _as_tensor(node, build, sizes) if is_open else np.array(sizes, np.int64)
    if is_known and not is_open:
        return np.where(indices < 0, indices + around, indices)
    places = build.cast(build.tensor(indices, node.name, "int64"), "int64", f"{node.name}.places")
    below = build.binary("less", places, 0, f"{node.name}.negative")
    wrapped = build.binary("add", places, around, f"{node.name}.wrapped")
    return build.where(below, wrapped, places, f"{node.name}.positive")


def _inside(node: Node, build: Builder, indices: Value, *sizes: Any) -> Value:
    """Indices as `_positive` gives them, and none outside.

    A kernel would read and write beside its tensors there. Computed ones are taken for the first
    or the last place.

    Raises:
        Refused: known ones lie outside.
    """
    places = _positive(node, build, indices, *sizes)
    is_open = any(isinstance(size, Symbolic) for size in sizes)
    if not isinstance(places, relax.Var) and not is_open:
        if ((np.asarray(places) < 0) | (np.asarray(places) >= np.array(sizes))).any():
            raise Refused(f"has indices outside of the extents {list(sizes)}")
        return places
    ends = _as_tensor(node, build, sizes) if is_open else np.array(sizes, np.int64)
    last = build.binary("subtract", ends, 1, f"{node.name}.last")
    wide = build.cast(build.tensor(places, node.name, dtype_of(places)), "int64", node.name)
    least = build.binary("minimum", wide, last, f"{node.name}.least")
    return build.binary("maximum", least, 0, f"{node.name}.inside")


def _as_tensor(node: Node, build: Builder, sizes: Sequence[Any]) -> relax.Var:
    """Extents as a tensor of the running network."""
    ends = [extents.expressions([size, size + 1]) for size in sizes]
    parts = [
        build.emit(relax.op.arange(*bounds, dtype="int64"), f"{node.name}.size") for bounds in ends
    ]
    return parts[0] if len(parts) == 1 else build.concat(parts, 0, f"{node.name}.sizes")


def _static(node: Node) -> list[int]:
    sizes = extents.shape(node.input(0))
    if any(isinstance(size, Symbolic) for size in sizes):
        raise Refused("needs a known shape of its operand")
    return [int(size) for size in sizes]  # type: ignore[arg-type]


def _gather_elements(node: Node, build: Builder) -> Value:
    sizes = extents.shape(node.input(0))
    axis = node.attrs.get("axis", 0) % len(sizes)
    indices = _inside(node, build, node.inputs[1], sizes[axis])
    x, places = (build.tensor(v, node.name, dtype_of(v)) for v in (node.inputs[0], indices))
    return build.emit(relax.op.gather_elements(x, places, axis), node.name)


def _gather_nd(node: Node, build: Builder) -> Value:
    sizes, batch = extents.shape(node.input(0)), node.attrs.get("batch_dims", 0)
    depth = int(extents.shape(node.inputs[1])[-1])  # type: ignore[arg-type]
    indices = _inside(node, build, node.inputs[1], *sizes[batch : batch + depth])
    x, places = (build.tensor(v, node.name, dtype_of(v)) for v in (node.inputs[0], indices))
    return build.emit(relax.op.gather_nd(x, places, batch), node.name)


def _scatter_elements(node: Node, build: Builder) -> Value:
    axis = node.attrs.get("axis", 0) % extents.rank(node.inputs[0])
    reduction = REDUCTIONS[node.attrs.get("reduction", "none")]
    indices = _inside(node, build, node.inputs[1], extents.shape(node.inputs[0])[axis])
    values = (node.inputs[0], indices, node.inputs[2])
    x, places, updates = (build.tensor(v, node.name, dtype_of(v)) for v in values)
    return build.emit(relax.op.scatter_elements(x, places, updates, axis, reduction), node.name)


def _scatter_nd(node: Node, build: Builder) -> Value:
    depth = int(extents.shape(node.inputs[1])[-1])  # type: ignore[arg-type]
    indices = _inside(node, build, node.inputs[1], *extents.shape(node.inputs[0])[:depth])
    values = (node.inputs[0], indices, node.inputs[2])
    x, places, updates = (build.tensor(v, node.name, dtype_of(v)) for v in values)
    reduction = REDUCTIONS[node.attrs.get("reduction", "none")]
    return build.emit(relax.op.scatter_nd(x, places, updates, reduction), node.name)


def _compress(node: Node, build: Builder) -> Value:
    condition, axis, x = node.constant(1), node.attrs.get("axis"), node.input(0)
    assert condition is not None
    if axis is None:
        x, axis = build.reshape(x, [-1], f"{node.name}.flat"), 0
    places = np.flatnonzero(condition)
    if not len(places):
        raise Refused("leaves nothing of its operand")
    return general.take(build, x, places, axis, node.name)


def _one_hot(node: Node, build: Builder) -> Value:
    depth, values = node.constant(1), node.constant(2)
    assert depth is not None
    assert values is not None
    count = int(depth.reshape(()))
    indices = build.cast(node.inputs[0], "int64", f"{node.name}.indices")
    rank = extents.rank(indices) + 1
    axis = node.attrs.get("axis", -1) % rank
    wrapped = _positive(node, build, indices, count)
    places = build.unsqueeze(wrapped, [axis], f"{node.name}.places")
    steps = np.arange(count).reshape([-1 if a == axis else 1 for a in range(rank)])
    hot = build.binary("equal", places, steps, f"{node.name}.hot")
    return build.where(hot, values[1], values[0], node.name)


def _reverse_sequence(node: Node, _build: Builder) -> Value:
    x, lengths = node.inputs
    time, batch = node.attrs.get("time_axis", 0), node.attrs.get("batch_axis", 1)
    sizes = _static(node)
    steps = np.arange(sizes[time]).reshape([-1 if a == time else 1 for a in range(len(sizes))])
    column = np.array([-1 if a == batch else 1 for a in range(len(sizes))])
    ends = node.op("Reshape.lengths", lengths, column)
    back = node.op("Sub.back", node.op("Sub.last", ends, np.array(1)), steps)
    places = node.op("Where.places", node.op("Less.inside", steps, ends), back, steps)
    every = node.op("Expand.every", places, np.array(sizes))
    return node.op("GatherElements", x, every, axis=time)


# ---------------------------------------------------------------- order


def _extreme(op: str) -> Convert:
    """ArgMax and ArgMin."""

    def convert(node: Node, build: Builder) -> Value:
        x, axis = node.input(0), node.attrs.get("axis", 0) % extents.rank(node.input(0))
        keep = bool(node.attrs.get("keepdims", 1))
        function = getattr(relax.op, op)
        if not node.attrs.get("select_last_index", 0):
            return build.emit(function(x, axis, keep), node.name)
        last = build.emit(relax.op.flip(x, axis), f"{node.name}.flip")
        found = build.emit(function(last, axis, keep), f"{node.name}.found")
        size = _static(node)[axis]
        return build.binary("subtract", np.int64(size - 1), found, node.name)

    return convert


def _top_k(node: Node, build: Builder) -> Value:
    k = node.attrs.get("k") or node.constant(1)
    assert k is not None
    options = {
        "k": int(np.asarray(k).reshape(())), "axis": node.attrs.get("axis", -1),
        "largest": bool(node.attrs.get("largest", 1)), "dtype": "int64",
    }  # fmt: skip
    return tuple(
        build.emit(relax.op.topk(node.input(0), ret_type=kind, **options), f"{node.name}.{kind}")
        if read else None
        for kind, read in zip(("values", "indices"), node.read, strict=False)
    )  # fmt: skip


def _hardmax(node: Node, build: Builder) -> Value:
    x, axis = node.input(0), node.attrs.get("axis", -1) % extents.rank(node.input(0))
    if node.opset < 13:
        raise Refused("before opset 13 it flattens its operand; convert the model")
    best = build.emit(relax.op.argmax(x, axis, True), f"{node.name}.best")
    size, rank = _static(node)[axis], extents.rank(x)
    steps = np.arange(size).reshape([-1 if a == axis else 1 for a in range(rank)])
    return build.cast(build.binary("equal", best, steps, f"{node.name}.hot"), "float32", node.name)


def _running(op: str) -> Convert:
    """CumSum and CumProd."""

    def convert(node: Node, build: Builder) -> Value:
        x, axis = node.input(0), int(node.scalar(1) or 0) % extents.rank(node.input(0))
        turned = bool(node.attrs.get("reverse", 0))
        if turned:
            x = build.emit(relax.op.flip(x, axis), f"{node.name}.flip")
        function = getattr(relax.op, op)
        exclusive = bool(node.attrs.get("exclusive", 0))
        whole = build.emit(function(x, axis, dtype_of(x), exclusive), f"{node.name}.whole")
        return build.emit(relax.op.flip(whole, axis), node.name) if turned else whole

    return convert


def _beyond(reason: str) -> Convert:
    def convert(_node: Node, _build: Builder) -> Value:
        raise Refused(reason)

    return convert


OPEN = (
    "gives as many elements as the data has it, and a compiled network has fixed shapes. Cut the "
)
OPEN += "model before it and compute it outside"

INDEX: dict[str, Convert] = {
    "ArgMax": _extreme("argmax"),
    "ArgMin": _extreme("argmin"),
    "Compress": _compress,
    "CumProd": _running("cumprod"),
    "CumSum": _running("cumsum"),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Hardmax": _hardmax,
    "NonMaxSuppression": _beyond(OPEN),
    "NonZero": _beyond(OPEN),
    "OneHot": _one_hot,
    "ReverseSequence": _reverse_sequence,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
    "Unique": _beyond(OPEN),
}
"""Operators by name."""
