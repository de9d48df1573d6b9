"""Puts what only moves values on the grid of those values, so that it moves integers."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from nybble.ir import graph, ops
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.plan import pads_zeros
from nybble.passes.resize import copies
from nybble.passes.view import View, repeats

MOVES = {
    "relax.reshape", "relax.permute_dims", "relax.strided_slice", "relax.nn.max_pool2d",
    "relax.nn.pad",
}  # fmt: skip
"""Every result is one of the operand's values, the largest of some, or 0: all commute with a
rounding to a grid, which holds 0 and keeps the order."""


def is_move(call: Any) -> bool:
    """Whether a call commutes with the rounding to a grid."""
    op = graph.op_name(call)
    moves = copies(call) or repeats(call) or op in MOVES
    return moves and (op != "relax.nn.pad" or pads_zeros(call))


@module_pass
def round_before_moves(mod: tvm.IRModule) -> tvm.IRModule:
    """Rounds what is computed before it is moved, where it is rounded behind that.

    before: quantize(reshape(avg_pool2d(x)))
    --->
    after: quantize(reshape(dequantize(quantize(avg_pool2d(x)))))
    """
    view = View(mod)
    wanted: dict[str, Any] = {}
    for name in reversed(list(view.calls)):
        reader = view.sole_reader(name)
        if reader is not None and is_move(view.calls[name]):
            is_end = view.op(reader) == "nybble.quantize" and is_single(view.calls[reader])
            found = view.calls[reader] if is_end else wanted.get(reader)
            if found is not None:
                wanted[name] = found

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        source = view.sources(name)[0] if name in wanted else ""
        starts = source in view.calls and source not in wanted
        if not starts or view.op(source) == "nybble.dequantize":
            return None
        x = call.args[0]
        return graph.substitute(call, {x: on_grid(emitter, x, wanted[name])})

    return graph.rewrite(mod, visit)


@module_pass
def round_behind_moves(mod: tvm.IRModule) -> tvm.IRModule:
    """Rounds integers that were moved to the grid on which they stand already.

    before: conv2d(reshape(dequantize(x)))
    --->
    after: conv2d(dequantize(quantize(reshape(dequantize(x)))))
    """
    view, grids = View(mod), dict[Any, Any]()

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        if graph.op_name(call) == "nybble.dequantize" and is_single(call):
            var = emitter.emit(call, name)
            if not graph.is_constant(call.args[0]):
                grids[var] = call
            return var
        grid = grids.get(call.args[0]) if is_move(call) else None
        readers = {view.op(reader) for reader in view.readers[name]}
        if grid is None or readers <= {"nybble.quantize"}:
            return None
        var = on_grid(emitter, emitter.emit(call, name), grid)
        grids[var] = grid
        return var

    return graph.rewrite(mod, visit)


def is_single(border: Any) -> bool:
    """Whether a quantize or dequantize treats the whole tensor alike."""
    return all(graph.is_constant(a) and graph.numpy_of(a).size == 1 for a in border.args[1:])


def on_grid(emitter: Emitter, x: relax.Var, border: Any) -> relax.Var:
    """``x`` rounded to the grid of a quantize or dequantize."""
    is_end = graph.op_name(border) == "nybble.dequantize"
    dtype = graph.dtype_of(border.args[0] if is_end else border)
    grid = list(border.args[1:])
    q = emitter.emit(ops.call("quantize", [x, *grid], dtype=dtype), f"{x.name}.quantize")
    return emitter.emit(ops.call("dequantize", [q, *grid]), f"{x.name}.dequantize")
