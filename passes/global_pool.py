"""Writes every form of global and evenly divided average pooling as avg_pool2d."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from nybble.ir import graph
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass


@module_pass
def spell_out_global_pool(mod: tvm.IRModule) -> tvm.IRModule:
    """Gives averages over an image one form: a window.

    before: mean(x, axis=(1, 2)), adaptive_avg_pool2d(x, (1, 1)), mean(tokens, axis=1)
    --->
    after: reshape(avg_pool2d(x, (H, W)), (N, C)), avg_pool2d(x, (H, W)), the same of a column
    """

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        op = graph.op_name(call)
        if op not in ("relax.mean", "relax.nn.adaptive_avg_pool2d"):
            return None
        if op == "relax.mean" and len(graph.shape_of(call.args[0])) == 3:
            return _of_tokens(emitter, name, call)
        window = _window(op, call)
        if window is None:
            return None
        pool = relax.op.nn.avg_pool2d(call.args[0], window, window, layout="NHWC")
        if op != "relax.mean" or graph.attributes(call)["keepdims"]:
            return pool
        batch, _, _, channels = call.args[0].ty.shape
        return relax.op.reshape(emitter.emit(pool, f"{name}.pool"), [batch, channels])

    return graph.rewrite(mod, visit)


def _of_tokens(emitter: Emitter, name: str, call: Any) -> Any:
    """The mean over tokens, (N, T, C) or (N, C, T), as a pool of a column; None for other axes.

    One over the last axis that keeps it is a norm's, whose 8 bits would be too few.
    """
    x, attrs = call.args[0], graph.attributes(call)
    axes = [axis % 3 for axis in attrs["axis"] or range(3)]
    if axes not in ([1], [2]) or not isinstance(graph.shape_of(x)[axes[0]], int):
        return None
    if axes == [2] and attrs["keepdims"]:
        return None
    if axes == [2]:
        x = emitter.emit(relax.op.permute_dims(x, [0, 2, 1]), f"{name}.tokens")
    batch, count, channels = x.ty.shape
    column = emitter.emit(relax.op.reshape(x, [batch, count, 1, channels]), f"{name}.column")
    pool = relax.op.nn.avg_pool2d(column, (int(count), 1), (int(count), 1), layout="NHWC")
    shape = [batch, 1, channels] if attrs["keepdims"] else [batch, channels]
    return relax.op.reshape(emitter.emit(pool, f"{name}.pool"), shape)


def _window(op: str, call: Any) -> tuple[int, int] | None:
    """The pooling window (height, width), or None where there is no even one."""
    shape, attrs = graph.shape_of(call.args[0]), graph.attributes(call)
    if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[2], int):
        return None
    if op == "relax.mean":
        axes = sorted(a % 4 for a in attrs["axis"] or range(4))
        return (shape[1], shape[2]) if axes == [1, 2] else None
    rows, columns = attrs["output_size"]
    if attrs["layout"] != "NHWC" or shape[1] % rows or shape[2] % columns:
        return None
    return shape[1] // rows, shape[2] // columns
