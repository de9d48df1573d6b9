"""What vision transformers do between images and tokens, in forms that integers have."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.drop_identities import drop_unread

MOVES = {"relax.reshape", "relax.permute_dims"}


@module_pass
def add_constant_tokens(mod: tvm.IRModule) -> tvm.IRModule:
    """Joins a class token by a padding and a sum, and positions with it.

    before: add(concat(broadcast_to(token), x), positions)
    --->
    after: add(pad(x), token and positions)
    """
    made: dict[Any, Any] = {}

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        joined = _joined(call, made)
        if joined is not None:
            x, widths, constant = joined
            padded = emitter.emit(relax.op.nn.pad(x, widths, "constant", 0.0), f"{name}.pad")
            call = relax.op.add(padded, graph.constant(constant))
        merged = _merged(call, made)
        var = emitter.emit(call if merged is None else merged, name)
        made[var] = call if merged is None else merged
        return var

    return drop_unread(graph.rewrite(mod, visit))


def _joined(call: Any, made: Mapping[Any, Any]) -> tuple[Any, list[int], NDArray[Any]] | None:
    """(x, padding, constant) of a concat of x with constants, which does not run along a batch."""
    if graph.op_name(call) != "relax.concat":
        return None
    fields, shape = list(call.args[0].fields), graph.shape_of(call.args[0].fields[0])
    axis = graph.attributes(call)["axis"] % len(shape)
    known = [_constant(field, made) for field in fields]
    computed = [field for field, value in zip(fields, known, strict=True) if value is None]
    if axis == 0 or len(computed) != 1 or len(fields) == 1:
        return None
    _, *sizes = graph.shape_of(computed[0])
    if any(isinstance(size, str) for size in sizes):
        return None
    zeros = np.zeros((1, *map(int, sizes)), np.float32)
    parts = [zeros if value is None else value for value in known]
    if any(part.shape[0] != 1 or part.ndim != zeros.ndim for part in parts):
        return None
    place = fields.index(computed[0])
    widths = [0] * (2 * zeros.ndim)
    widths[2 * axis] = sum(part.shape[axis] for part in parts[:place])
    widths[2 * axis + 1] = sum(part.shape[axis] for part in parts[place + 1 :])
    return computed[0], widths, np.concatenate(parts, axis=axis).astype(np.float32)


def _constant(expr: Any, made: Mapping[Any, Any]) -> NDArray[Any] | None:
    """The values of a constant; of one image where it is repeated along the batch."""
    if graph.is_constant(expr):
        return _of_one_image(graph.numpy_of(expr))
    call: Any = made.get(expr)
    if graph.op_name(call) != "relax.broadcast_to" or not graph.is_constant(call.args[0]):
        return None
    (_, *sizes), values = graph.shape_of(expr), graph.numpy_of(call.args[0])
    if any(isinstance(size, str) for size in sizes):
        return None
    full = values.reshape((1,) * (1 + len(sizes) - values.ndim) + values.shape)
    return np.broadcast_to(full, (1, *map(int, sizes))) if full.shape[0] == 1 else None


def _of_one_image(values: NDArray[Any]) -> NDArray[Any]:
    """The first of equal entries: exporters write out a token of which the batch is known."""
    first = values[:1]
    return first if np.array_equal(np.broadcast_to(first, values.shape), values) else values


def _merged(call: Any, made: Mapping[Any, Any]) -> Any:
    """A sum of x and two constants that vary over more than channels as one sum."""
    if graph.op_name(call) != "relax.add" or not graph.is_constant(call.args[1]):
        return None
    inner: Any = made.get(call.args[0])
    if graph.op_name(inner) != "relax.add" or not graph.is_constant(inner.args[1]):
        return None
    first, second = (graph.numpy_of(one.args[1]) for one in (inner, call))
    if first.ndim < 2 or prod(first.shape[:-1]) == 1:
        return None  # channels' biases belong to the layer in front of them
    return relax.op.add(inner.args[0], graph.constant((first + second).astype(np.float32)))


@module_pass
def reshape_where_nothing_moves(mod: tvm.IRModule) -> tvm.IRModule:
    """Replaces moves that cancel each other by one reshape.

    before: permute_dims(reshape(permute_dims(x, (0, 3, 1, 2)), (N, C, H·W)), (0, 2, 1))
    --->
    after: reshape(x, (N, H·W, C))
    """
    made: dict[Any, Any] = {}

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        source = _unmoved(call, made) if graph.op_name(call) == "relax.permute_dims" else None
        if source is not None:
            axes = graph.attributes(call)["axes"]
            call = relax.op.reshape(source, [call.args[0].ty.shape[axis] for axis in axes])
        var = emitter.emit(call, name)
        made[var] = call
        return var

    return drop_unread(graph.rewrite(mod, visit))


def _unmoved(call: Any, made: Mapping[Any, Any]) -> Any:
    """The tensor whose elements a chain of moves leaves in their order, None where it does not."""
    chain = [call]
    while graph.op_name(made.get(chain[-1].args[0])) in MOVES:
        chain.append(made[chain[-1].args[0]])
        root = chain[-1].args[0]
        if graph.op_name(chain[-1]) == "relax.permute_dims" and _keeps_order(root, chain[::-1]):
            return root
    return None


def _keeps_order(root: Any, chain: list[Any]) -> bool:
    """Whether the elements of one image come out of a chain of moves as they went in."""
    batch, *sizes = graph.shape_of(root)
    if any(isinstance(size, str) for size in sizes):
        return False
    order = np.arange(prod(int(size) for size in sizes)).reshape(1, *sizes)
    for call in chain:
        if graph.op_name(call) == "relax.permute_dims":
            axes = [axis % order.ndim for axis in graph.attributes(call)["axes"] or ()]
            if not axes or axes[0] != 0:
                return False
            order = order.transpose(axes)
        else:
            first, *rest = [
                int(d) if isinstance(d, int | tvm.tirx.IntImm) else str(d) for d in call.args[1]
            ]
            if first != batch or any(isinstance(size, str) for size in rest):
                return False
            order = order.reshape(1, *rest)
    return bool(np.array_equal(order.ravel(), np.arange(order.size)))
