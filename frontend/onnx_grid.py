"""GridSample: an image read at computed places, as gathers and their weighted sum.

place = ((g + 1)·size - 1) / 2, or (g + 1)/2·(size - 1) with align_corners
y = Σ over taps of the product of the axes' weights · x[floor(place) + tap]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_node import Node

Convert = Callable[[Node, Builder], Value]
MODES = {"bilinear": "linear", "bicubic": "cubic"}  # as opset 16 calls them
KEYS = -0.75  # a of Keys' cubic convolution


def _grid_sample(node: Node, build: Builder) -> Value:
    x, grid = node.inputs
    batch, channels, *image = extents.shape(x)
    if not all(isinstance(size, int) for size in image):
        raise Refused("reads an image of open size")
    _, *out, count = extents.shape(grid)
    flat: Any = 1
    for size in out:
        flat = flat * size
    places = build.reshape(grid, [batch, flat, count], f"{node.name}.places")
    axes = [
        _taps(node, general.cut(build, places, {2: (count - 1 - a, count - a)},
                                f"{node.name}.axis"), int(size))  # type: ignore[arg-type]
        for a, size in enumerate(image)
    ]  # fmt: skip
    rows = build.reshape(x, [batch, channels, int(np.prod(image))], f"{node.name}.rows")  # type: ignore[arg-type]
    rows = build.transpose(rows, (0, 2, 1), f"{node.name}.pixels")
    total: Any = None
    for taps in product(*axes):
        read = _read(node, build, rows, taps, image)
        total = read if total is None else node.op("Add.sum", total, read)
    turned = build.transpose(total, (0, 2, 1), f"{node.name}.channels")
    return build.reshape(turned, [batch, channels, *out], node.name)


def _read(
    node: Node, build: Builder, rows: Value, taps: Sequence[tuple[Value, Value]], image: Any
) -> Value:
    """One pixel for each place, times its weights."""
    index: Any = None
    for (at, _), size in zip(taps, image, strict=True):
        scaled = at if index is None else node.op("Mul.row", index, float(size))
        index = at if index is None else node.op("Add.index", scaled, at)
    whole = build.cast(index, "int64", f"{node.name}.whole")
    last = int(np.prod(image)) - 1  # places that are NaN must not be read
    whole = build.binary("maximum", build.binary("minimum", whole, last, f"{node.name}.last"), 0,
                         f"{node.name}.first")  # fmt: skip
    value = node.op("GatherND.read", rows, whole, batch_dims=1)
    for _, weight in taps:
        value = value if weight is None else node.op("Mul.weight", value, weight)
    return value


def _taps(node: Node, g: Value, size: int) -> list[tuple[Value, Value]]:
    """Of one axis: the indices that are read (as floats, inside the image) and their weights."""
    mode = MODES.get(node.attr("mode", "linear"), node.attr("mode", "linear"))
    padding = node.attr("padding_mode", "zeros")
    if mode not in ("nearest", "linear", "cubic") or padding not in PADDING:
        raise Refused(f"mode '{mode}' with padding '{padding}' is unknown")
    if node.attr("align_corners", 0):
        place, borders = node.op("Mul.place", g, (size - 1) / 2), (0.0, size - 1.0)
        place = node.op("Add.place", place, (size - 1) / 2)
    else:
        place, borders = node.op("Mul.place", g, size / 2), (-0.5, size - 0.5)
        place = node.op("Add.place", place, (size - 1) / 2)
    if mode == "nearest":
        place = node.op("Round", place)
    if mode != "cubic":  # whose pixels are placed one by one, as torch and ONNX Runtime do
        place = PADDING[padding](node, place, size, borders)
    if mode == "nearest":
        return [_inside(node, place, None, size, borders)]
    low = node.op("Floor", place)
    share = node.op("Sub.share", place, low)
    weights = _linear(node, share) if mode == "linear" else _cubic(node, share)
    return [
        _inside(node, node.op("Add.tap", low, float(tap)), weight, size, borders)
        for tap, weight in weights
    ]


def _inside(
    node: Node, at: Value, weight: Value, size: int, borders: tuple[float, float]
) -> tuple[Value, Value]:
    """An index inside the image, and the weight of what stands for the pixel beside it."""
    padding = node.attr("padding_mode", "zeros")
    known = node.op("Clip.index", at, 0.0, size - 1.0)
    if padding == "zeros":
        same = node.op("Cast.same", node.op("Equal.same", known, at), to=1)
        return known, same if weight is None else node.op("Mul.same", same, weight)
    if padding == "reflection":
        mirrored = _reflected(node, at, size, borders)
        known = node.op("Clip.index", node.op("Round.index", mirrored), 0.0, size - 1.0)
    return known, weight


def _linear(node: Node, share: Value) -> list[tuple[int, Value]]:
    return [(0, node.op("Sub.rest", 1.0, share)), (1, share)]


def _cubic(node: Node, share: Value) -> list[tuple[int, Value]]:
    """Keys' cubic convolution: polynomials of the distance to each of four pixels."""
    near = (KEYS + 2, -(KEYS + 3), 0.0, 1.0)
    far = (KEYS, -5 * KEYS, 8 * KEYS, -4 * KEYS)
    rest = node.op("Sub.rest", 1.0, share)
    distances = [
        (-1, node.op("Add.before", share, 1.0), far), (0, share, near), (1, rest, near),
        (2, node.op("Add.behind", rest, 1.0), far),
    ]  # fmt: skip
    return [(tap, _polynomial(node, at, factors)) for tap, at, factors in distances]


def _polynomial(node: Node, x: Value, factors: Sequence[float]) -> Value:
    first, *others = factors
    value = node.op("Mul.cube", x, first)
    for factor in others[:-1]:
        value = node.op("Mul.power", node.op("Add.power", value, factor), x)
    return node.op("Add.power", value, others[-1])


def _unchanged(_node: Node, place: Value, _size: int, _borders: tuple[float, float]) -> Value:
    return place


def _clamped(node: Node, place: Value, size: int, _borders: tuple[float, float]) -> Value:
    return node.op("Clip.place", place, 0.0, size - 1.0)


def _reflected(node: Node, place: Value, size: int, borders: tuple[float, float]) -> Value:
    """Mirrored at the borders as often as it takes: a triangle wave."""
    low, span = borders[0], borders[1] - borders[0]
    if size == 1:
        return node.op("Mul.place", place, 0.0)
    far = node.op("Sub.low", place, low)
    turns = node.op("Floor.turns", node.op("Mul.turns", far, 0.5 / span))
    within = node.op("Sub.within", far, node.op("Mul.whole", turns, 2 * span))
    peak = node.op("Abs.peak", node.op("Sub.peak", within, span))
    return node.op("Sub.reflected", low + span, peak)


PADDING: dict[str, Callable[..., Value]] = {
    "border": _clamped, "reflection": _reflected, "zeros": _unchanged,
}  # fmt: skip

GRID: dict[str, Convert] = {"GridSample": _grid_sample}
"""Operators by name."""
