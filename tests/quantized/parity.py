"""Layer by layer: the integers of a quantized module against its own float simulation."""

from __future__ import annotations

from typing import Any

import numpy as np

from nybble.ir import graph, interpreter
from nybble.passes.to_integer import Visitor


def units_apart(module: Any, inputs: Any) -> dict[str, int]:
    """By how many integers each layer differs where its inputs are equal.

    Args:
        module: of stage ``quantized``.
        inputs: of the network.

    Returns:
        The quantize behind a layer -> the largest difference.
    """
    wanted: dict[str, Any] = {}
    interpreter.run(module, inputs, wanted.__setitem__)
    visitor = Visitor(module, None)
    integer = graph.rewrite(module, visitor.visit, "integer")
    values = dict(zip(graph.inputs(integer), inputs, strict=True))
    ends: dict[str, list[str]] = {}
    for quantize, binding in visitor.equals.items():
        ends.setdefault(binding, []).append(quantize)
    apart = {}
    for binding in graph.bindings(integer):
        name = str(binding.var.name)
        value = interpreter.evaluate(binding.value, values, name)
        for quantize in ends.get(name, []):
            simulated = wanted[quantize]
            apart[quantize] = int(np.abs(value.astype(np.int64) - simulated).max())
            value = simulated  # so that the next layer reads what the simulation reads
        values[binding.var] = value
    return apart
