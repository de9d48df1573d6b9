"""Recognises a rounding to a grid that is written out in float operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from nybble.ir import graph, ops
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass

STEPS = "int32"  # whole steps without bounds: what a residual add sums


@module_pass
def quantize_spelled_rounding(mod: tvm.IRModule) -> tvm.IRModule:
    """Gives a rounding to whole steps the form of all others.

    before: round(x / s) * s
    --->
    after: dequantize(quantize(x, s)) in 32 bits
    """
    made: dict[Any, Any] = {}

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        x, step = _rounded(call, made)
        if step is not None:
            constants = [graph.constant(step), graph.constant(np.int32(0))]
            q = emitter.emit(ops.call("quantize", [x, *constants], dtype=STEPS), f"{name}.quantize")
            call = ops.call("dequantize", [q, *constants])
        var = emitter.emit(call, name)
        made[var] = call
        return var

    return graph.rewrite(mod, visit)


def _rounded(call: Any, made: dict[Any, Any]) -> tuple[Any, Any]:
    """(x, s) of ``round(x / s) * s`` with one positive number s, else (None, None)."""
    step = _number(call, "relax.multiply")
    rounded: Any = made.get(call.args[0]) if step is not None else None
    if graph.op_name(rounded) != "relax.round":
        return None, None
    divided: Any = made.get(rounded.args[0])
    if step is None or _number(divided, "relax.divide") != step or step <= 0:
        return None, None
    return divided.args[0], step


def _number(call: Any, op: str) -> np.float32 | None:
    """The one number on the right of an op, else None."""
    if graph.op_name(call) != op or not isinstance(call.args[0], relax.Var):
        return None
    if not graph.is_constant(call.args[1]) or graph.numpy_of(call.args[1]).size != 1:
        return None
    return np.float32(graph.numpy_of(call.args[1]).item())
