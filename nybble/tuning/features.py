"""A candidate as numbers for the cost model: the layer, the plan, and what the plan makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from math import ceil, log2
from typing import Any

import numpy as np

from nybble.ir import numerics
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.kernel import Problem
from nybble.tuning.space import Variant
from nybble.tuning.tasks import Point

Features = dict[str, float]
PRODUCTS = ("conv2d", "linear")


def features(variant: Variant, point: Point) -> Features:
    """What a candidate's time may depend on; names are alike for all kernels, where they have it.

    Args:
        variant: the kernel and the layer as it sees it.
        point: one of its points.
    """
    plan = variant.plan(point)
    found = {f"kernel {variant.kernel.name}": 1.0, **_layer(variant.problem)}
    found |= {f"plan {name}": value for name, value in _numbers(plan, "")}
    if variant.problem.op in PRODUCTS:
        found |= _cut(geometry_of(variant.problem), found)
    return found


def _layer(problem: Problem) -> Features:
    """The sizes of a layer, on a logarithmic scale, and its widths."""
    specs = {"x": problem.inputs[0], "y": problem.output, "w": problem.weights}
    found: Features = {}
    for name, spec in specs.items():
        if spec is None:
            continue
        found[f"{name} bits"] = _bits(spec.dtype)
        for axis, extent in enumerate(reversed(spec.shape)):
            found[f"{name} extent {axis}"] = log2(extent) if isinstance(extent, int) else 0.0
    found["macs"] = log2(1 + problem.macs)
    found["flush"] = float(problem.flush)
    return found


def _bits(dtype: str) -> float:
    return 32.0 if dtype.startswith(("float", "bool")) else float(numerics.width(dtype)[1])


def _numbers(plan: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """Every number of a plan, by the name of its field; those of parts are merged in."""
    if not is_dataclass(plan):
        return
    for field in fields(plan):
        value = getattr(plan, field.name)
        if field.name == "single":  # what a symbolic number of rows leaves over
            continue
        if is_dataclass(value):
            yield from _numbers(value, prefix)
        elif isinstance(value, bool | int | float | np.integer):
            yield prefix + field.name, float(value)


def _cut(geometry: Geometry, found: Features) -> Features:
    """What the cut costs: tasks, work done twice where nothing divides, bytes that a task reads."""
    total, cols = geometry.static_rows or 1, geometry.cols
    rows = max(int(found.get("plan rows", total)), 1)
    high, wide = (max(int(found.get(f"plan {n}", 1)), 1) for n in ("high", "wide"))
    splits = found.get("plan splits", 1.0)
    runs = ceil(total / rows)
    steps = geometry.tap_rows * geometry.tap_cols * geometry.run
    read = geometry.rows_read(rows) * max(geometry.width, geometry.reach) * geometry.c
    return {
        "tasks": log2(runs * splits),
        "rows twice": runs * rows / total,
        "tile rows twice": ceil(rows / high) * high / rows,
        "tile columns twice": ceil(cols / wide) * wide / cols,
        "outputs of a tile": high * wide * found.get("plan vectors", 1.0),
        "steps": log2(steps),
        "bytes read": log2(1 + read),
        "bytes of weights": log2(1 + geometry.o * geometry.groups * steps),
        "weights read again": log2(1 + geometry.o * geometry.groups * steps * runs),
        "input read again": log2(1 + read * runs * splits),
    }
