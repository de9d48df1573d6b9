"""Removes ops that do nothing, merges chains of reshapes and permutes, drops unread bindings."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from nybble.ir import graph
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.view import View

NEUTRAL = {"relax.add": 0, "relax.subtract": 0, "relax.multiply": 1, "relax.divide": 1}
COMMUTES = {"relax.add", "relax.multiply"}


@module_pass
def drop_identities(mod: tvm.IRModule) -> tvm.IRModule:
    """Makes the graph as small as its meaning.

    before: permute_dims(permute_dims(x, p), inverse of p), reshape(reshape(x, s), t), x * 1
    --->
    after: x, reshape(x, t), x
    """
    made: dict[Any, Any] = {}

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        merged = _merge(call, made)
        same = _identity(merged)
        if same is not None:
            return same
        var = emitter.emit(merged, name)
        made[var] = merged
        return var

    return drop_unread(graph.rewrite(mod, visit))


@module_pass
def drop_unread(mod: tvm.IRModule) -> tvm.IRModule:
    """Removes bindings whose value nobody reads.

    before: a = relu(x); b = relu(x); return b
    --->
    after: b = relu(x); return b
    """
    view, live = View(mod), set[str]()
    for name in reversed(list(view.calls)):
        if name in view.outputs or any(reader in live for reader in view.readers[name]):
            live.add(name)

    def visit(emitter: Emitter, name: str, _call: Any) -> Any:
        return None if name in live else emitter.params[0]  # stands for what nobody reads

    return graph.rewrite(mod, visit)


def _merge(call: Any, made: dict[Any, Any]) -> Any:
    """Two reshapes in a row are the last one; two permutes are their product."""
    op = graph.op_name(call)
    if op not in ("relax.reshape", "relax.permute_dims"):
        return call
    inner = made.get(call.args[0])
    if inner is None or graph.op_name(inner) != op:
        return call
    if op == "relax.reshape":
        return relax.op.reshape(inner.args[0], call.args[1])
    outer_axes, inner_axes = _axes(call), _axes(inner)
    return relax.op.permute_dims(inner.args[0], [inner_axes[a] for a in outer_axes])


def _identity(call: Any) -> Any:
    """The operand that a call equals, or None."""
    op = graph.op_name(call)
    if isinstance(call, relax.Var):
        return call
    if op == "relax.reshape" and _same_shape(call):
        return call.args[0]
    if op == "relax.permute_dims" and _axes(call) == list(range(len(_axes(call)))):
        return call.args[0]
    if op == "relax.concat" and len(graph.operands(call)) == 1:
        return graph.operands(call)[0]
    return _neutral(call) if op in NEUTRAL else None


def _neutral(call: Any) -> Any:
    """The x of x + 0, x - 0, x * 1 and x / 1, where the constant does not broadcast x."""
    op = graph.op_name(call)
    pairs = [tuple(call.args)] + ([tuple(call.args)[::-1]] if op in COMMUTES else [])
    for x, constant in pairs:
        if isinstance(x, relax.Var) and graph.is_constant(constant):
            values = graph.numpy_of(constant)
            if np.all(values == NEUTRAL[op]) and values.size == 1:
                return x if values.ndim <= len(graph.shape_of(x)) else None
    return None


def _same_shape(call: Any) -> bool:
    target = [int(d) if isinstance(d, int | tvm.tirx.IntImm) else str(d) for d in call.args[1]]
    return tuple(target) == graph.shape_of(call.args[0])


def _axes(call: Any) -> list[int]:
    rank = len(graph.shape_of(call.args[0]))
    axes = graph.attributes(call)["axes"]
    return [a % rank for a in axes] if axes is not None else list(range(rank))[::-1]
