"""Dynamic quantization: integer layers whose activations get their scales at run time."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm

from nybble.ir import graph, ops
from nybble.ir.graph import Emitter
from nybble.ir.weight_only import MOST
from nybble.passes.base import module_pass

LIMIT = 2**31


@module_pass
def quantize_at_run_time(mod: tvm.IRModule) -> tvm.IRModule:
    """Makes integer layers of weight-only ones: the same bits, by kernels for many rows.

    Layers that read one tensor share its integers. Those with zero points, several groups or sums
    beyond 32 bits stay as they are.

    before: nybble.weight_only(x, w, scale, zero_point, bias)
    --->
    after: rescale_rows(linear(quantize_rows(x, t), w, 0), t, scale, bias), t = row_tops(x)
    """
    return graph.rewrite(mod, _Layers().visit)


class _Layers:
    """Rewrites the layers; `rows` holds (tops, integers) of every tensor that one reads."""

    def __init__(self) -> None:
        self.rows: dict[Any, tuple[Any, Any]] = {}

    def visit(self, emitter: Emitter, name: str, call: Any) -> Any:
        if graph.op_name(call) != "nybble.weight_only" or not _is_plain(call):
            return None
        x, w, scale, _, bias = call.args
        top, q = self._quantized(emitter, x)
        none = graph.constant(np.zeros(graph.shape_of(bias), np.int32))
        sums = emitter.emit(ops.call("linear", [q, w, none]), f"{name}.sums")
        scale = graph.constant(graph.numpy_of(scale).reshape(-1))
        return ops.call("rescale_rows", [sums, top, scale, bias])

    def _quantized(self, emitter: Emitter, x: Any) -> tuple[Any, Any]:
        if x not in self.rows:
            top = emitter.emit(ops.call("row_tops", [x]), f"{x.name}.top")
            q = emitter.emit(ops.call("quantize_rows", [x, top]), f"{x.name}.quantize")
            self.rows[x] = top, q
        return self.rows[x]


def _is_plain(call: Any) -> bool:
    """Whether a layer has one scale for each channel, no zero points, and sums within 32 bits."""
    w, scale, zero_point = map(graph.numpy_of, call.args[1:4])
    largest = np.abs(w.astype(np.int64)).sum(axis=1).max(initial=0) * MOST
    return bool(scale.shape[1] == 1 and not zero_point.any() and largest < LIMIT)
