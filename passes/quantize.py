"""Inserts quantize / dequantize pairs: the float module that simulates the integers to come."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from nybble.ir import graph, ops, specs
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.calibrate import Ranges
from nybble.passes.grids import Grid, grid, quantize_weights, weight_levels
from nybble.passes.plan import Plan, non_negative, plan
from nybble.passes.view import View, with_attribute
from nybble.recipe import Recipe


@module_pass
def insert_borders(mod: tvm.IRModule, ranges: Ranges, recipe: Recipe) -> tvm.IRModule:
    """Puts every tensor of a quantized layer on its grid.

    before: relu(add(conv2d(x, w), b))
    --->
    after: dequantize(quantize(relu(add(conv2d(dequantize(quantize(x)), dequantize(intK w)), b))))
    """
    view, borders = View(mod), plan(mod, recipe)
    grids = _grids(view, borders, ranges)
    quantized = graph.rewrite(mod, _Borders(view, borders, grids).visit, "quantized")
    kept = [f"{name}: {view.op(name)}: {why}" for name, why in borders.kept.items()]
    return with_attribute(quantized, specs.KEPT_FLOAT, kept)


def _grids(view: View, borders: Plan, ranges: Ranges) -> dict[str, Grid]:
    """The grid of every point."""
    arriving = [n for n in borders.owner if borders.kinds.get(n, "arriving") == "arriving"]
    never_negative = non_negative(view, [n for n in arriving if ranges[n][0] >= 0])
    by_owner = {
        owner: grid(*ranges[owner], owner in never_negative, borders.bits[owner])
        for owner in borders.owners()
    }
    return {point: by_owner[owner] for point, owner in borders.owner.items()}


class _Borders:
    """Rewrites one binding at a time; `simulated` maps a new variable to its dequantized twin."""

    def __init__(self, view: View, borders: Plan, grids: dict[str, Grid]):
        self.view, self.borders, self.grids = view, borders, grids
        self.input_twins: dict[str, Any] = {}

    def visit(self, emitter: Emitter, name: str, call: Any) -> Any:
        kind = self.borders.kinds[name]
        if kind not in ("float", "arriving"):
            call = self._with_quantized_inputs(emitter, name, call)
        if kind == "linear":
            call = self._with_quantized_weights(emitter, name, call)
        if kind == "concat":
            call = self._with_common_grid(emitter, name, call)
        if name not in self.grids:
            return call
        return simulate(emitter, emitter.emit(call, name), self.grids[name], name)

    def _with_quantized_inputs(self, emitter: Emitter, name: str, call: Any) -> Any:
        """Inputs have no binding of their own: their border is emitted on first use."""
        swaps = {}
        for source in self.view.sources(name):
            if source in self.view.inputs and source in self.grids:
                if source not in self.input_twins:
                    x = self.view.variables[source]
                    self.input_twins[source] = simulate(emitter, x, self.grids[source], source)
                swaps[self.view.variables[source]] = self.input_twins[source]
        return graph.substitute(call, swaps)

    def _with_quantized_weights(self, emitter: Emitter, name: str, call: Any) -> Any:
        axis = 0 if graph.op_name(call) == "relax.nn.conv2d" else 1
        weights = np.moveaxis(graph.numpy_of(call.args[1]), axis, 0)
        bias = self._bias(name, len(weights))
        scale_in = self.grids[self.view.sources(name)[0]].scale
        width = self.borders.weights[name]
        integers, scale = quantize_weights(weights, bias, scale_in, width)
        constants = [
            graph.constant(np.moveaxis(integers, 0, axis), weight_levels(width).dtype),
            graph.constant(scale),
            graph.constant(np.int32(0)),
        ]
        simulated = emitter.emit(ops.call("dequantize", constants, axis=axis), f"{name}.weight")
        return relax.Call(call.op, [call.args[0], simulated], call.attrs)

    def _bias(self, name: str, channels: int) -> Any:
        reader = self.view.sole_reader(name)
        if reader is None or self.borders.kinds[reader] != "bias":
            return np.zeros(channels, np.float32)
        constant = next(t for t in graph.operands(self.view.calls[reader]) if graph.is_constant(t))
        return np.broadcast_to(graph.numpy_of(constant).reshape(-1), (channels,))

    def _with_common_grid(self, emitter: Emitter, name: str, call: Any) -> Any:
        """Branches whose grid is not the concat's are requantized to it."""
        swaps = {}
        for source, x in zip(self.view.sources(name), graph.operands(call), strict=True):
            if x not in swaps and self.grids[source] != self.grids[name]:
                swaps[x] = simulate(emitter, x, self.grids[name], f"{name}.{source}")
        return graph.substitute(call, swaps)


def simulate(emitter: Emitter, x: Any, on: Grid, name: str) -> Any:
    """Emits ``name.quantize`` and ``name.dequantize``: x rounded to its grid."""
    scale = graph.constant(np.float32(on.scale))
    zero_point = graph.constant(np.int32(on.zero_point))
    q = ops.call("quantize", [x, scale, zero_point], dtype=on.dtype)
    q = emitter.emit(q, f"{name}.quantize")
    return emitter.emit(ops.call("dequantize", [q, scale, zero_point]), f"{name}.dequantize")
