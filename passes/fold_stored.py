"""Turns stored integers that no integer kernel reads into the floats that they stand for."""

from __future__ import annotations

from typing import Any

import tvm

from nybble.ir import graph, ops
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass


@module_pass
def fold_stored(mod: tvm.IRModule) -> tvm.IRModule:
    """Dequantizes constants now rather than in every call.

    before: conv2d(x, dequantize(integers, scale, zero_point))
    --->
    after: conv2d(x, floats)
    """
    floats: dict[Any, Any] = {}

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        if graph.op_name(call) != "nybble.dequantize" or not graph.is_constant(call.args[0]):
            return graph.substitute(call, floats)
        var = emitter.emit(call, name)
        floats[var] = graph.constant(values_of(call))
        return var

    return graph.rewrite(mod, visit)


def values_of(call: Any) -> Any:
    """The float32 values of a ``dequantize`` of constants."""
    law = ops.VOCABULARY["dequantize"].law
    return law(*map(graph.numpy_of, call.args), **graph.attributes(call))
