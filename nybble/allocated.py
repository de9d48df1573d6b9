"""The widths of a network with what came of them: scales, and the kernels that compute them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm

from nybble.allocation.result import Allocation
from nybble.ir import graph, numerics
from nybble.model import QuantizedModel
from nybble.passes.view import View
from nybble.passes.widths import overridden
from nybble.recipe import TERNARY, Recipe, Widths
from nybble.runtime.manifest import Manifest

LINEAR = ("relax.nn.conv2d", "relax.matmul")
STEP = "nybble.dequantize"


def allocated(quantized: QuantizedModel, manifest: Manifest) -> Allocation:
    """The allocation of a compiled network, chosen or given, with its ``layers``.

    Args:
        quantized: with integer activations.
        manifest: of its artifact.
    """
    kernels = {layer["name"]: layer["kernel"] for layer in manifest.layers}
    stored = {layer["name"]: layer["weights"] for layer in manifest.layers}
    found = {
        name: {"weights": stored[name], **of, "kernel": kernels[name]}
        for name, of in _grids(quantized.module).items()
    }
    if quantized.allocation is not None:
        return replace(quantized.allocation, layers=found)
    widths = {n: _width(n, of["weights"], quantized.recipe or Recipe()) for n, of in found.items()}
    return Allocation(widths, float("nan"), None, {}, {}, layers=found)


def _grids(module: tvm.IRModule) -> dict[str, dict[str, Any]]:
    """What enters every quantized layer, and the scales of both operands."""
    view, found = View(module), dict[str, dict[str, Any]]()
    for name in view.calls:
        steps = [view.calls.get(source) for source in view.sources(name)]
        if view.op(name) not in LINEAR or [graph.op_name(s) for s in steps] != [STEP, STEP]:
            continue  # a layer that stays float
        x, weights = steps
        assert x is not None
        assert weights is not None
        found[name] = {
            "activations": graph.dtype_of(x.args[0]),
            "input_scale": float(graph.numpy_of(x.args[1])),
            "scales": graph.numpy_of(weights.args[1]).reshape(-1).tolist(),
        }
    return found


def _width(name: str, stored: str, recipe: Recipe) -> Any:
    """A layer's width as recipes name it; ternary weights lie in 2 bits."""
    asked, _ = overridden(name, Widths(), recipe)
    asked = asked or recipe.weights
    bits = numerics.width(stored)[1]
    return TERNARY if asked == TERNARY and bits == 2 else bits
