"""Weight-only quantization: linear layers with integer weights between float activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from nybble.errors import NybbleError
from nybble.ir import graph, ops, specs
from nybble.ir.graph import Emitter
from nybble.ir.weight_only import HALF
from nybble.passes.base import module_pass
from nybble.passes.grids import quantize_groups, weight_levels
from nybble.passes.plan import classify
from nybble.passes.view import View, first_variable, per_channel, with_attribute
from nybble.passes.widths import check_patterns, overridden
from nybble.recipe import BOOKS, Recipe, Widths

REASON = "the recipe quantizes the weights of linear layers only"


@module_pass
def weights_only(mod: tvm.IRModule, recipe: Recipe) -> tvm.IRModule:
    """Gives every linear layer integer weights; everything else stays float, and is listed.

    before: add(matmul(x, w), b)
    --->
    after: nybble.weight_only(x, w as (O, K) integers, scale, zero_point, b)

    Raises:
        NybbleError: there is no linear layer, or a pattern of the recipe matches none.
    """
    view = View(mod)
    kinds, kept = classify(view, recipe)
    linear = [n for n in view.calls if kinds[n] == "linear" and view.op(n) == "relax.matmul"]
    if not linear:
        raise NybbleError(
            f"Recipe: activations='{recipe.activations}' quantizes linear layers only, and the "
            "network has none to quantize. Give activations 1 to 8 bits."
        )
    check_patterns(linear, recipe)
    biases = {name: reader for name in linear if (reader := _bias_of(view, kinds, name))}
    layers = _Layers(view, recipe, set(linear), biases)
    lowered = graph.rewrite(mod, layers.visit, "integer")
    silent = {"nybble.weight_only", *specs.STRUCTURAL}
    stays = [
        f"{name}: {op}: {kept.get(name, REASON)}"
        for name, op, _ in graph.walk(lowered)
        if op and op not in silent and kinds[name] != "bias"  # part of its convolution
    ]
    return with_attribute(lowered, specs.KEPT_FLOAT, stays)


@module_pass
def in_half(mod: tvm.IRModule) -> tvm.IRModule:
    """Lets weight-only layers multiply in half precision, as GPUs do.

    before: nybble.weight_only(…, compute="int8")
    --->
    after: nybble.weight_only(…, compute="float16")
    """

    def visit(_emitter: Emitter, _name: str, call: Any) -> Any:
        if graph.op_name(call) != "nybble.weight_only":
            return None
        return ops.call("weight_only", call.args, **graph.attributes(call) | {"compute": HALF})

    return graph.rewrite(mod, visit, graph.stage(mod))


@module_pass
def in_float(mod: tvm.IRModule) -> tvm.IRModule:
    """What `weights_only` made, with the weights' rounding but in float arithmetic.

    before: nybble.weight_only(x, w, scale, zero_point, b)
    --->
    after: add(matmul(x, scale * (w - zero_point)), b)
    """

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        if graph.op_name(call) != "nybble.weight_only":
            return None
        x, *constants = call.args
        w, scale, zero_point, bias = map(graph.numpy_of, constants)
        group = np.arange(w.shape[1]) // graph.attributes(call)["group"]
        real = (w.astype(np.float32) - zero_point[:, group]) * scale[:, group]
        product = relax.op.matmul(x, graph.constant(real.T.astype(np.float32)))
        return relax.op.add(emitter.emit(product, f"{name}.matmul"), graph.constant(bias))

    return graph.rewrite(mod, visit, "quantized")


def _bias_of(view: View, kinds: dict[str, str], name: str) -> str | None:
    reader = view.sole_reader(name)
    return reader if reader is not None and kinds[reader] == "bias" else None


class _Layers:
    """Rewrites the linear layers; the bias behind one is its own."""

    def __init__(self, view: View, recipe: Recipe, linear: set[str], biases: dict[str, str]):
        self.view, self.recipe, self.linear, self.biases = view, recipe, linear, biases
        self.absorbed = set(biases.values())

    def visit(self, _emitter: Emitter, name: str, call: Any) -> Any:
        if name in self.absorbed:
            return first_variable(call)
        return self._integer(name, call) if name in self.linear else None

    def _integer(self, name: str, call: Any) -> Any:
        weights = graph.numpy_of(call.args[1]).T
        width, _ = overridden(name, Widths(self.recipe.weights), self.recipe)
        group = min(self.recipe.group or weights.shape[1], weights.shape[1])
        q, scale, zero = quantize_groups(weights, group, width, self.recipe.symmetric)
        constants = [
            graph.constant(q, weight_levels(width).dtype),
            graph.constant(scale),
            graph.constant(zero),
            graph.constant(self._bias(name, len(weights))),
        ]
        book = width if width in BOOKS else ""
        return ops.call("weight_only", [call.args[0], *constants], group=group, book=book)

    def _bias(self, name: str, channels: int) -> Any:
        if name not in self.biases:
            return np.zeros(channels, np.float32)
        tensors = graph.operands(self.view.calls[self.biases[name]])
        values = per_channel(next(t for t in tensors if graph.is_constant(t)), channels)
        assert values is not None  # or its kind were not bias
        return values.astype(np.float32)
