"""Interpolation: Resize and Upsample, as image operators or as one small matrix for each axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused, Symbolic
from nybble.frontend.onnx_node import Node

Convert = Callable[[Node, Builder], Value]
Matrix = NDArray[np.float32]
ROUNDING: dict[str, Callable[[float], Any]] = {
    "round_prefer_floor": lambda v: np.ceil(v - 0.5), "round_prefer_ceil": lambda v: floor(v + 0.5),
    "floor": np.floor, "ceil": np.ceil,
}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """How one axis is resampled.

    Attributes:
        before: its extent.
        after: the result's.
        scale: that the model gives, which may differ from their ratio.
        roi: start and end of the part that is resampled, of ``tf_crop_and_resize``.
    """

    before: int
    after: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def _resize(node: Node, build: Builder) -> Value:
    x, mode = node.input(0), node.attr("mode", "nearest")
    rank = extents.rank(x)
    old = node.opset < 11  # Upsample, and Resize of opset 10
    axes = [a % rank for a in node.attr("axes") or range(rank)]
    scales = node.attr("scales") or node.constant(1 if old else 2)
    sizes = None if old else node.constant(3)
    plain = _by_image_op(node, build, axes, scales, sizes)
    if plain is not None:
        return plain
    plans = _plan(node, axes, scales, sizes)
    coordinates = node.attr("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    for axis, plan in plans.items():
        if plan.before == plan.after and plan.scale == 1 and coordinates != "tf_crop_and_resize":
            continue
        matrix = matrix_of(plan, mode, node, coordinates)
        x = _resampled(build, x, axis, matrix, f"{node.name}.{axis}")
    outside = _outside(node, plans, coordinates)
    value = np.float32(node.attr("extrapolation_value", 0.0))
    return x if outside is None else build.where(outside, value, x, f"{node.name}.outside")


def _by_image_op(
    node: Node, build: Builder, axes: Sequence[int], scales: Any, sizes: Any
) -> Value | None:
    """Nearest by whole factors, and linear, of images: what kernels exist for."""
    x, given = node.input(0), extents.shape(node.input(0))
    if len(given) != 4 or node.attr("antialias", 0):
        return None
    factors = _factors(given, axes, scales, sizes)
    if factors is None or factors[:2] != [1, 1] or any(f < 1 for f in factors):
        return None
    mode, whole = node.attr("mode", "nearest"), all(float(f).is_integer() for f in factors)
    coordinates = node.attr("coordinate_transformation_mode",
                            "asymmetric" if node.opset < 11 else "half_pixel")  # fmt: skip
    rounding = node.attr("nearest_mode", "floor" if node.opset < 11 else "round_prefer_floor")
    target = [n * int(f) for n, f in zip(given[2:], factors[2:], strict=True)]
    if mode == "nearest" and whole:
        # a pixel's copies lie around it: floor of the asymmetric one, rounding of half pixels
        copies = (coordinates == "asymmetric" and rounding == "floor") or (
            coordinates.endswith("half_pixel") and rounding.startswith("round")
        )
        method, coordinates = "nearest_neighbor", "asymmetric"
        if not copies:
            return None
    elif (
        mode == "linear" and whole and coordinates in ("half_pixel", "asymmetric", "align_corners")
    ):
        method = "linear"
    else:
        return None
    call = relax.op.image.resize2d(
        x, tuple(extents.expressions(target)), layout="NCHW", method=method,
        coordinate_transformation_mode=coordinates, rounding_method="floor",
    )  # fmt: skip
    return build.emit(call, node.name)


def _factors(
    given: Sequence[Any], axes: Sequence[int], scales: Any, sizes: Any
) -> list[float] | None:
    factors = [1.0] * len(given)
    for place, axis in enumerate(axes):
        if sizes is not None and np.size(sizes):
            size = sizes.reshape(-1)[place]
            if isinstance(given[axis], Symbolic) or isinstance(size, Symbolic):
                if isinstance(size, Symbolic) and size == given[axis]:
                    continue
                ratio = _whole_ratio(size, given[axis])
                if ratio is None:
                    return None
                factors[axis] = ratio
            else:
                factors[axis] = size / given[axis]
        elif scales is None or not np.size(scales):
            return None
        else:
            factors[axis] = float(np.asarray(scales).reshape(-1)[place])
    return factors


def _whole_ratio(size: Any, given: Any) -> float | None:
    return next((float(f) for f in range(2, 17) if given * f == size), None)


def _plan(node: Node, axes: Sequence[int], scales: Any, sizes: Any) -> dict[int, Axis]:
    given = extents.shape(node.input(0))
    roi = node.constant(1) if node.opset >= 11 and len(node.inputs) > 1 else None
    plans: dict[int, Axis] = {}
    for place, axis in enumerate(axes):
        before = given[axis]
        part = (0.0, 1.0)
        if roi is not None and roi.size:
            part = (float(roi[place]), float(roi[place + len(axes)]))
        if sizes is not None and np.size(sizes):
            after = sizes.reshape(-1)[place]
        else:
            factor = float(np.asarray(scales).reshape(-1)[place])
            if isinstance(before, Symbolic):
                after = before if factor == 1 else None
            else:
                span = part[1] - part[0] if _crops(node) else 1.0
                after = floor(before * span * factor)
        if isinstance(before, Symbolic):
            if after is None or not (isinstance(after, Symbolic) and after == before):
                raise Refused("resamples an open size by other than whole factors")
            continue
        after = int(after)
        scale = after / before if sizes is not None and np.size(sizes) else factor
        plans[axis] = Axis(before, after, scale, part)
    return _keeping_aspect(node, plans) if sizes is not None else plans


def _crops(node: Node) -> bool:
    return bool(node.attr("coordinate_transformation_mode") == "tf_crop_and_resize")


def _keeping_aspect(node: Node, plans: dict[int, Axis]) -> dict[int, Axis]:
    policy = node.attr("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return plans
    pick = min if policy == "not_larger" else max
    scale = pick(plan.scale for plan in plans.values())
    return {
        axis: Axis(plan.before, floor(plan.before * scale + 0.5), scale, plan.roi)
        for axis, plan in plans.items()
    }


def _resampled(build: Builder, x: Value, axis: int, matrix: Matrix, name: str) -> Value:
    """A tensor times a matrix (after, before) along an axis; a row of a single 1 is a copy."""
    if ((matrix == 1).sum(axis=1) == 1).all() and (np.count_nonzero(matrix, axis=1) == 1).all():
        return general.take(build, x, matrix.argmax(axis=1), axis, name)
    rank = extents.rank(x)
    order = [a for a in range(rank) if a != axis] + [axis]
    turned = build.transpose(x, order, f"{name}.last")
    mixed = build.linear(turned, np.ascontiguousarray(matrix.T), None, name)
    return build.transpose(mixed, np.argsort(order).tolist(), f"{name}.back")


# ---------------------------------------------------------------- where values come from


def matrix_of(plan: Axis, mode: str, node: Node, coordinates: str) -> Matrix:
    """Row i holds the share that every element of the source has in element i of the result."""
    antialias = node.attr("antialias", 0)
    stretch = min(plan.scale, 1.0) if antialias and mode != "nearest" else 1.0
    matrix = np.zeros((plan.after, plan.before), np.float64)
    for row in range(plan.after):
        at = position(row, plan, coordinates)
        if mode == "nearest":
            rounding = ROUNDING[
                node.attr("nearest_mode", "floor" if node.opset < 11 else "round_prefer_floor")
            ]
            matrix[row, int(np.clip(rounding(at), 0, plan.before - 1))] = 1
            continue
        for index, share in _shares(at, mode, stretch, node):
            inside = 0 <= index < plan.before
            if inside or not node.attr("exclude_outside", 0):
                matrix[row, int(np.clip(index, 0, plan.before - 1))] += share
        if antialias or node.attr("exclude_outside", 0):
            matrix[row] /= matrix[row].sum()
    return matrix.astype(np.float32)


def position(row: int, plan: Axis, coordinates: str) -> float:
    """Where an element of the result lies in the source."""
    before, after, scale = plan.before, plan.after, plan.scale
    if coordinates == "align_corners":
        reach = scale * before - 1  # of the exact size, which ``after`` is rounded down from
        return row * (before - 1) / reach if after > 1 else 0.0
    if coordinates == "asymmetric":
        return row / scale
    if coordinates == "tf_crop_and_resize":
        start, end = plan.roi
        if after == 1:
            return 0.5 * (start + end) * (before - 1)
        return start * (before - 1) + row * (end - start) * (before - 1) / (after - 1)
    if coordinates == "pytorch_half_pixel" and after == 1:
        return -0.5
    if coordinates == "half_pixel_symmetric":
        adjustment = after / (scale * before)
        return before / 2 * (1 - adjustment) + (row + 0.5) / scale - 0.5
    if coordinates not in ("half_pixel", "pytorch_half_pixel"):
        raise Refused(f"coordinate_transformation_mode '{coordinates}' is unknown")
    return (row + 0.5) / scale - 0.5


def _shares(at: float, mode: str, stretch: float, node: Node) -> list[tuple[int, float]]:
    """(source index, weight) of linear or cubic interpolation; antialiasing widens the kernel."""
    reach = (1 if mode == "linear" else 2) / stretch
    kernel = _triangle if mode == "linear" else _cubic(node.attr("cubic_coeff_a", -0.75))
    if stretch == 1:
        low = floor(at)
        indices = range(low, low + 2) if mode == "linear" else range(low - 1, low + 3)
    else:
        indices = range(floor(at - reach) + 1, floor(at + reach) + 1)
    return [(i, kernel((i - at) * stretch)) for i in indices]


def _triangle(distance: float) -> float:
    return max(0.0, 1 - abs(distance))


def _cubic(a: float) -> Callable[[float], float]:
    """Keys's kernel."""

    def kernel(distance: float) -> float:
        d = abs(distance)
        if d <= 1:
            return ((a + 2) * d - (a + 3)) * d * d + 1
        return (((d - 5) * d + 8) * d - 4) * a if d < 2 else 0.0

    return kernel


def _outside(node: Node, plans: dict[int, Axis], coordinates: str) -> Any:
    """A mask of the elements that lie outside of the source, which have a value of their own."""
    if coordinates != "tf_crop_and_resize":
        return None
    rank, mask = extents.rank(node.input(0)), np.zeros((), bool)
    for axis, plan in plans.items():
        at = np.array([position(row, plan, coordinates) for row in range(plan.after)])
        line = (at < 0) | (at > plan.before - 1)
        mask = mask | line.reshape([-1 if a == axis else 1 for a in range(rank)])
    return mask if mask.any() else None


RESIZE: dict[str, Convert] = {"Resize": _resize, "Upsample": _resize}
"""Operators by name."""
