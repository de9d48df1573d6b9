"""Operators of ONNX that change a tensor's shape or order, and tensors made from shapes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from onnx import numpy_helper
from tvm import relax

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value, dtype_of
from nybble.frontend.extents import Refused, Symbolic
from nybble.frontend.onnx_layers import shuffled
from nybble.frontend.onnx_math import TYPES
from nybble.frontend.onnx_node import Node

Convert = Callable[[Node, Builder], Value]


def _pad(node: Node, build: Builder) -> Value:
    mode = node.attrs.get("mode", "constant")
    x, pads = node.input(0), node.numbers(1, "pads")
    value = node.attrs["value"] if "value" in node.attrs else node.scalar(2)
    rank = extents.rank(x)
    axes = node.numbers(3, "axes") or list(range(rank))
    if pads is None or len(pads) != 2 * len(axes):
        raise Refused(f"pads {pads} do not fit {len(axes)} axes")
    pairs = {axis % rank: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    if mode != "constant":
        return _wrapped(node, build, pairs, mode)
    cropped = {axis: (max(0, -b), max(0, -e)) for axis, (b, e) in pairs.items() if min(b, e) < 0}
    if cropped:
        sizes = extents.shape(x)
        spans = {axis: (b, sizes[axis] - e) for axis, (b, e) in cropped.items()}
        x = general.cut(build, x, spans, f"{node.name}.crop")
    widths = [max(0, w) for axis in range(rank) for w in pairs.get(axis, (0, 0))]
    return build.pad(x, widths, value or 0.0, node.name)


def _wrapped(node: Node, build: Builder, pairs: dict[int, tuple[int, int]], mode: str) -> Value:
    """A padding with the tensor's own elements, one axis after the other."""
    kinds = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in kinds:
        raise Refused(f"mode '{mode}' is unknown")
    x, sizes = node.input(0), extents.shape(node.input(0))
    for axis, (begin, end) in pairs.items():
        size = sizes[axis]
        if isinstance(size, Symbolic):
            raise Refused("pads an open size with its own elements")
        line = np.arange(size)[max(0, -begin) : size - max(0, -end)]
        index = np.pad(line, (max(0, begin), max(0, end)), mode=kinds[mode])  # type: ignore[call-overload]
        if begin or end:
            x = general.take(build, x, index.astype(np.int64), axis, node.name)
    return x


def _concat(node: Node, build: Builder) -> Value:
    return build.concat(node.inputs, node.attrs["axis"], node.name)


def _flatten(node: Node, build: Builder) -> Value:
    sizes = extents.shape(node.input(0))
    axis = node.attrs.get("axis", 1)
    axis += len(sizes) if axis < 0 else 0
    return build.reshape(node.input(0), [prod(sizes[:axis]), prod(sizes[axis:])], node.name)


def _reshape(node: Node, build: Builder) -> Value:
    before, target = extents.shape(node.input(0)), node.constant(1)
    assert target is not None
    after = list(target.reshape(-1))
    if not node.attrs.get("allowzero", 0):
        after = [
            before[axis] if isinstance(size, int | np.integer) and size == 0 else size
            for axis, size in enumerate(after)
        ]
    return build.reshape(node.input(0), after, node.name)


def _transpose(node: Node, build: Builder) -> Value:
    axes = node.attrs.get("perm") or range(extents.rank(node.input(0)))[::-1]
    return build.transpose(node.input(0), axes, node.name)


def _squeeze(node: Node, build: Builder) -> Value:
    return build.squeeze(node.input(0), node.numbers(1, "axes"), node.name)


def _unsqueeze(node: Node, build: Builder) -> Value:
    return build.unsqueeze(node.input(0), node.numbers(1, "axes") or [], node.name)


# ---------------------------------------------------------------- slices


def _slice(node: Node, build: Builder) -> Value:
    x = node.input(0)
    sizes = extents.shape(x)
    starts, ends, axes, steps = (
        _bounds(node, index, name)
        for index, name in ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps"))
    )
    assert starts is not None
    assert ends is not None
    axes = axes if axes is not None else list(range(len(starts)))
    for place, axis in enumerate(axes):
        at, step = int(axis) % len(sizes), 1 if steps is None else int(steps[place])
        x = _sliced(build, x, at, (starts[place], ends[place], step), node.name)
    return x


def _bounds(node: Node, index: int, name: str) -> list[Any] | None:
    if name in node.attrs:
        return list(node.attrs[name])
    value = node.constant(index)
    return None if value is None else list(value.reshape(-1))


def _sliced(build: Builder, x: Value, axis: int, span: tuple[Any, Any, int], name: str) -> Value:
    size, (start, end, step) = extents.shape(x)[axis], span
    if isinstance(size, int) and not isinstance(start, Symbolic) and not isinstance(end, Symbolic):
        places = range(size)[slice(int(start), int(end), step)]
        if step < 0:
            return general.take(build, x, np.array(places, np.int64), axis, name)
        if not places:
            return general.cut(build, x, {axis: (0, 0)}, name)
        return general.cut(build, x, {axis: (places[0], places[-1] + 1)}, name, step)
    if step < 1:
        raise Refused("runs backwards along an open size")
    span_ = {axis: (_inside(start, size), _inside(end, size))}
    return general.cut(build, x, span_, name, step)


def _inside(bound: Any, size: Any) -> Any:
    """A bound of a slice along an open size; numbers beyond any tensor mean its end."""
    if isinstance(bound, Symbolic):
        return bound
    if abs(int(bound)) >= 2**31 - 1:
        return size if bound > 0 else 0
    return size + int(bound) if bound < 0 else int(bound)


def _split(node: Node, build: Builder) -> Value:
    x, axis = node.input(0), node.attrs.get("axis", 0) % extents.rank(node.input(0))
    size, parts = extents.shape(x)[axis], node.numbers(1, "split")
    if parts is None:
        if isinstance(size, Symbolic):
            raise Refused("splits an open size")
        count = len(node.read)
        whole = -(-size // count)
        parts = [min(whole, size - i * whole) for i in range(count)]
    ends = np.cumsum(parts).tolist()
    spans = zip([0, *ends[:-1]], ends, strict=True)
    return tuple(
        general.cut(build, x, {axis: span}, f"{node.name}.{i}") if read else None
        for i, (span, read) in enumerate(zip(spans, node.read, strict=False))
    )


# ---------------------------------------------------------------- repetition


def _expand(node: Node, build: Builder) -> Value:
    target = node.constant(1)
    assert target is not None
    return general.broadcast(build, node.input(0), list(target.reshape(-1)), node.name)


def _tile(node: Node, build: Builder) -> Value:
    repeats = node.numbers(1, "repeats")
    if repeats is None or all(r == 1 for r in repeats):
        return node.input(0)
    return build.emit(relax.op.tile(node.input(0), repeats), node.name)


def _constant_of_shape(node: Node, build: Builder) -> Value:
    target, value = node.constant(0), node.attrs.get("value")
    assert target is not None
    filling = np.float32(0) if value is None else numpy_helper.to_array(value)
    return general.filled(build, list(target), filling, node.name)


def _range(node: Node, build: Builder) -> Value:
    bounds = [node.constant(i).reshape(()).item() for i in range(3)]  # type: ignore[union-attr]
    start, end, step = extents.expressions(bounds)
    return build.emit(relax.op.arange(start, end, step, "int64"), node.name)


# ---------------------------------------------------------------- images


def _depth_to_space(node: Node, build: Builder) -> Value:
    x, block = node.input(0), node.attrs["blocksize"]
    n, channels, height, width = extents.shape(x)
    if node.attrs.get("mode", "DCR") == "CRD":
        return shuffled(build, x, (block, block), node.name)
    inner = channels // (block * block)
    x = build.reshape(x, [n, block, block, inner, height, width], f"{node.name}.split")
    x = build.transpose(x, (0, 3, 4, 1, 5, 2), f"{node.name}.order")
    return build.reshape(x, [n, inner, height * block, width * block], node.name)


def _space_to_depth(node: Node, build: Builder) -> Value:
    x, block = node.input(0), node.attrs["blocksize"]
    n, channels, height, width = extents.shape(x)
    split = [n, channels, height // block, block, width // block, block]
    x = build.reshape(x, split, f"{node.name}.split")
    order = (0, 1, 3, 5, 2, 4) if node.attr("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    x = build.transpose(x, order, f"{node.name}.order")
    joined = [n, channels * block * block, height // block, width // block]
    return build.reshape(x, joined, node.name)


def _trilu(node: Node, build: Builder) -> Value:
    x, above = node.input(0), int(node.scalar(1) or 0)
    rows, columns = extents.shape(x)[-2:]
    is_upper = node.attrs.get("upper", 1)
    if isinstance(rows, Symbolic) or isinstance(columns, Symbolic):
        function = relax.op.triu if is_upper else relax.op.tril
        return build.emit(function(x, above), node.name)
    mask = (np.triu if is_upper else np.tril)(np.ones((rows, columns), bool), above)
    return build.where(mask, x, np.zeros((), dtype_of(x)), node.name)


def _eye_like(node: Node, _build: Builder) -> Value:
    sizes = extents.shape(node.input(0))
    if any(isinstance(size, Symbolic) for size in sizes):
        raise Refused("gives a matrix of open size")
    code = node.attrs.get("dtype")
    dtype = dtype_of(node.input(0)) if code is None else TYPES.get(code, "float32")
    return np.eye(*sizes, k=node.attrs.get("k", 0), dtype=dtype)  # type: ignore[call-overload]


SHAPES: dict[str, Convert] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
"""Operators by name."""
