"""Everything that quantization decides in numbers, before anything is rewritten.

What `settle` gives is round-to-nearest; corrections (`nybble.passes.correction`) take it and return
a better one; `nybble.passes.quantize` writes it into the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from nybble.ir import graph
from nybble.ir.two_levels import PROTECTED, second_level
from nybble.passes.calibrate import Ranges
from nybble.passes.grids import Grid, grid, quantize_weights, share_grid, shifted_grid
from nybble.passes.plan import Plan, non_negative, plan
from nybble.passes.view import View
from nybble.recipe import Recipe

Array = NDArray[Any]
LOPSIDED = ("table", "product")  # kinds whose values often lie on one side of 0, but not all


@dataclass(frozen=True)
class Rounded:
    """The weights of a layer as they will be deployed.

    Attributes:
        integers: (O, …) int8, one row for each output channel.
        scale: (O,) float32; a weight is its integer times its row's scale.
        group: of inputs for weights of 4 bits on two levels (`nybble.ir.two_levels`), whose
            integers have 8; 0 for others.
    """

    integers: Array
    scale: Array
    group: int = 0

    def values(self) -> Array:
        """The weights as floats, (O, …)."""
        steps = self.scale.reshape(-1, *[1] * (self.integers.ndim - 1))
        return np.asarray(self.integers.astype(np.float32) * steps)


@dataclass(frozen=True)
class Settled:
    """A canonical float module with the numbers of its quantization.

    Attributes:
        module: float canonical; its biases are the ones that will be deployed.
        plan: where the borders go, and every width.
        grids: of every tensor that owns one.
        weights: of every quantized convolution and linear layer.
        goal: the float module that corrections aim at, where ``module`` has other biases.
    """

    module: tvm.IRModule
    plan: Plan
    grids: Mapping[str, Grid]
    weights: Mapping[str, Rounded]
    goal: tvm.IRModule | None = None

    @property
    def aim(self) -> tvm.IRModule:
        """The float module whose values are the right ones."""
        return self.goal or self.module

    def points(self) -> dict[str, Grid]:
        """The grid of every tensor that gets one."""
        return {point: self.grids[owner] for point, owner in self.plan.owner.items()}


def settle(mod: tvm.IRModule, ranges: Ranges, recipe: Recipe) -> Settled:
    """Grids from the calibrated ranges, weights rounded to nearest.

    Raises:
        CalibrationError: ``ranges`` lacks a tensor.
    """
    view, borders = View(mod), plan(mod, recipe)
    settled = Settled(mod, borders, _grids(view, borders, ranges), {})
    rounded = {name: nearest(view, settled, name) for name in borders.weights}
    if recipe.group:
        rounded |= {n: w for n in rounded if (w := _on_two_levels(view, settled, n, recipe.group))}
    return Settled(mod, borders, settled.grids, rounded)


def nearest(view: View, settled: Settled, name: str) -> Rounded:
    """A layer's weights rounded to nearest."""
    weights = rows_of(view.calls[name])
    scale_in = settled.points()[view.sources(name)[0]].scale
    bias = bias_of(view, settled.plan, name, len(weights))
    return Rounded(*quantize_weights(weights, bias, scale_in, settled.plan.weights[name]))


def _on_two_levels(view: View, settled: Settled, name: str, group: int) -> Rounded | None:
    """The weights of a linear layer of 4 bits; None for other layers."""
    weights = rows_of(view.calls[name])
    if weights.ndim != 2 or settled.plan.weights[name] != 4:
        return None
    bias = bias_of(view, settled.plan, name, len(weights))
    scale_in = settled.points()[view.sources(name)[0]].scale
    steps = np.abs(weights.astype(np.float64)).max(axis=1) / PROTECTED
    _, scale = quantize_weights(weights, bias, scale_in, 8, steps)
    rows = weights / scale.astype(np.float64)[:, None]
    return Rounded(second_level(rows, group), scale, group)


def rows_of(call: Any) -> Array:
    """The float weights of a layer, output channels first: (O, height, width, C) or (O, K)."""
    return np.moveaxis(graph.numpy_of(call.args[1]), channel_axis(call), 0)


def channel_axis(call: Any) -> int:
    """The axis of output channels in a layer's weights."""
    return 0 if graph.op_name(call) == "relax.nn.conv2d" else 1


def bias_of(view: View, borders: Plan, name: str, channels: int) -> Array:
    """The (O,) bias that is added behind a layer, zeros where none is."""
    reader = view.sole_reader(name)
    if reader is None or borders.kinds[reader] != "bias":
        return np.zeros(channels, np.float32)
    constant = next(t for t in graph.operands(view.calls[reader]) if graph.is_constant(t))
    return np.broadcast_to(graph.numpy_of(constant).reshape(-1), (channels,))


def _grids(view: View, borders: Plan, ranges: Ranges) -> dict[str, Grid]:
    arriving = [n for n in borders.owner if borders.kinds.get(n, "arriving") == "arriving"]
    never_negative = non_negative(view, [n for n in arriving if ranges[n][0] >= 0])
    found: dict[str, Grid] = {}
    for owner in borders.owners():
        bits, positive = borders.bits[owner], owner in never_negative
        is_shifted = borders.kinds.get(owner) in LOPSIDED and not positive and bits > 1
        limits = ranges[owner]
        if borders.kinds.get(owner) == "softmax":
            found[owner] = share_grid(bits)
            continue
        found[owner] = shifted_grid(*limits, bits) if is_shifted else grid(*limits, positive, bits)
    return found
