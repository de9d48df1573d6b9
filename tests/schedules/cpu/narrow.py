"""Inputs below 8 bits: a graph receives floats and quantizes them first."""

from typing import Any

import numpy as np

from nybble.ir import graph, numerics, ops


def given(dtype: str) -> str:
    """What the graph receives for a tensor of ``dtype``."""
    return dtype if numerics.width(dtype)[1] >= 8 else "float32"


def entered(e: graph.Emitter, x: Any, dtype: str, step: float = 0.1) -> Any:
    """The graph's input as a tensor of ``dtype``."""
    if graph.dtype_of(x) == dtype:
        return x
    zero = 0 if dtype.startswith("i") else 1 << numerics.width(dtype)[1] - 1
    constants = [graph.constant(np.float32(step)), graph.constant(np.int32(zero))]
    name = f"{x.name}.quantize"
    return e.emit(ops.call("quantize", [x, *constants], dtype=dtype), name)
