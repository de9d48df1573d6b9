"""Inserts quantize / dequantize pairs: the float module that simulates the integers to come."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from nybble.ir import graph, ops, specs
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.grids import Grid, weight_levels
from nybble.passes.settle import Settled, channel_axis
from nybble.passes.view import View, with_attribute


@module_pass
def insert_borders(mod: tvm.IRModule, settled: Settled) -> tvm.IRModule:
    """Puts every tensor of a quantized layer on its grid.

    before: relu(add(conv2d(x, w), b))
    --->
    after: dequantize(quantize(relu(add(conv2d(dequantize(quantize(x)), dequantize(intK w)), b))))
    """
    view = View(mod)
    quantized = graph.rewrite(mod, _Borders(view, settled).visit, "quantized")
    kept = [f"{name}: {view.op(name)}: {why}" for name, why in settled.plan.kept.items()]
    return with_attribute(quantized, specs.KEPT_FLOAT, kept)


class _Borders:
    """Rewrites one binding at a time; `input_twins` holds the dequantized twins of inputs."""

    def __init__(self, view: View, settled: Settled):
        self.view, self.settled = view, settled
        self.borders, self.grids = settled.plan, settled.points()
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
        rounded, axis = self.settled.weights[name], channel_axis(call)
        width = 8 if rounded.group else self.borders.weights[name]
        dtype = weight_levels(width).dtype
        constants = [
            graph.constant(np.moveaxis(rounded.integers, 0, axis), dtype),
            graph.constant(rounded.scale),
            graph.constant(np.int32(0)),
        ]
        simulated = emitter.emit(ops.call("dequantize", constants, axis=axis), f"{name}.weight")
        return relax.Call(call.op, [call.args[0], simulated], call.attrs)

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
