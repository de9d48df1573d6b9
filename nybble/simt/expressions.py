"""TensorIR expressions as code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nybble.simt.arithmetic import binary, unwrapped
from nybble.simt.calls import call
from nybble.simt.codes import (
    Buffer,
    Code,
    Kind,
    Run,
    Scope,
    build,
    choose,
    columns,
    constant,
    np_dtype,
    within,
)
from nybble.simt.memory import Pointer
from nybble.simt.registers import Local
from nybble.simt.strand import Strand
from nybble.simt.values import BINARY, Mask, Value, cast


def expression(scope: Scope, node: Any) -> Code:
    """Code for an expression of any kind; parts that stand in several places are shared."""
    key = node.__chandle__()
    if key not in scope.made:
        scope.made[key] = (node, _translated(scope, node))
    return scope.made[key][1]


def _translated(scope: Scope, node: Any) -> Code:
    name = type(node).__name__
    if name in BINARY:
        return binary(scope, node)
    translate = _NODES.get(name)
    if translate is None:
        raise scope.refuse(f"the expression {name} ({node})")
    return translate(scope, node)


def _immediate(scope: Scope, node: Any) -> Code:
    return constant(np_dtype(str(node.ty.dtype)).type(node.value))


def _string(scope: Scope, node: Any) -> Code:
    return constant(str(node.value))


def _variable(scope: Scope, node: Any) -> Code:
    slot = scope.slot(node)
    scope.read.add(slot)
    return Code(lambda s, m: s.env[slot], scope.kind(node))


def _cast(scope: Scope, node: Any) -> Code:
    dtype = np_dtype(str(node.ty.dtype))
    return build(scope, lambda v: cast(v, dtype), unwrapped(scope, node.value))


def _not(scope: Scope, node: Any) -> Code:
    return build(scope, np.logical_not, expression(scope, node.a))


def _bitwise_not(scope: Scope, node: Any) -> Code:
    return build(scope, np.invert, expression(scope, node.a))


def _and(scope: Scope, node: Any) -> Code:
    a, b = expression(scope, node.a), expression(scope, node.b)
    if max(a.kind, b.kind) < Kind.VARYING:
        return build(scope, np.logical_and, a, b)

    def run(s: Strand, m: Mask) -> Value:
        left = a.run(s, m)
        inner, some = within(m, left)
        return np.logical_and(left, b.run(s, inner)) if some else left

    return Code(run, Kind.VARYING)


def _or(scope: Scope, node: Any) -> Code:
    a, b = expression(scope, node.a), expression(scope, node.b)
    if max(a.kind, b.kind) < Kind.VARYING:
        return build(scope, np.logical_or, a, b)

    def run(s: Strand, m: Mask) -> Value:
        left = a.run(s, m)
        inner, some = within(m, np.logical_not(left))
        return np.logical_or(left, b.run(s, inner)) if some else left

    return Code(run, Kind.VARYING)


def _select(scope: Scope, node: Any) -> Code:
    parts = (node.condition, node.true_value, node.false_value)
    return choose(*(expression(scope, part) for part in parts))


def _ramp(scope: Scope, node: Any) -> Code:
    base, stride = expression(scope, node.base), expression(scope, node.stride)
    steps = np.arange(int(node.lanes))

    def run(first: Value, step: Value) -> Value:
        return columns(first) + columns(step) * steps.astype(first.dtype)

    return build(scope, run, base, stride)


def _broadcast(scope: Scope, node: Any) -> Code:
    lanes = int(node.lanes)

    def run(value: Value) -> Value:
        return np.repeat(columns(value), lanes, axis=1)

    return build(scope, run, expression(scope, node.value))


def _shuffle(scope: Scope, node: Any) -> Code:
    parts = [expression(scope, part) for part in node.vectors]
    indices = [int(i) for i in node.indices]

    def run(*values: Value) -> Value:
        wide = [v if np.ndim(v) == 2 else columns(v) for v in values]
        rows = max(len(v) for v in wide)
        every = np.concatenate([np.broadcast_to(v, (rows, v.shape[1])) for v in wide], axis=1)
        picked = every[:, indices]
        return picked if len(indices) > 1 else picked[:, 0]

    return build(scope, run, *parts)


def _let(scope: Scope, node: Any) -> Code:
    value = expression(scope, node.value)
    slot = scope.define(node.var, value.kind)
    body = expression(scope, node.body)

    def run(s: Strand, m: Mask) -> Value:
        s.env[slot] = value.run(s, m)
        return body.run(s, m)

    return Code(run, Kind.VARYING)


def element(scope: Scope, buffer: Buffer, indices: Any) -> tuple[Run, int]:
    """An access's place.

    Returns:
        code for the element's number, which is one a lane, or ``(lanes, n)`` where the elements do
        not follow one another; and how many elements go at once.
    """
    if len(indices) != 1:
        raise scope.refuse(f"buffer {buffer.name} with {len(indices)} indices (not flattened)")
    node = indices[0]
    if type(node).__name__ == "Ramp" and buffer.scope != "local":
        stride = expression(scope, node.stride)
        if stride.kind == Kind.CONSTANT and stride.value == 1:
            if int(node.lanes) * buffer.dtype.itemsize not in (1, 2, 4, 8, 16):
                raise scope.refuse(f"an access to {buffer.name} of {node.lanes} elements at once")
            return expression(scope, node.base).run, int(node.lanes)
    return expression(scope, node).run, 1


def _load(scope: Scope, node: Any) -> Code:
    buffer = scope.buffer(node.source)
    index, count = element(scope, buffer, node.indices)
    dtype, width = buffer.dtype, buffer.dtype.itemsize * count
    if buffer.scope.startswith("shared"):
        scope.access(width)
    if buffer.scope == "local":
        return Code(_load_local(buffer, index), Kind.VARYING)
    kind = f"ld.{buffer.scope.split('.')[0]}.b{8 * width}"

    def run(s: Strand, m: Mask) -> Value:
        pointer, where = s.env[buffer.slot], index(s, m)
        s.tally(kind, m)
        if np.ndim(where) == 2:
            return _gather(s, m, buffer, where)
        offset = pointer.offset + where.astype(np.int64) * dtype.itemsize
        found = pointer.memory.read(s, m, offset, (buffer.name, width)).view(dtype)
        return found if count > 1 else found[:, 0]

    return Code(run, Kind.VARYING)


def _gather(s: Strand, m: Mask, buffer: Buffer, where: Value) -> Value:
    """Elements here and there, one access for each."""
    pointer, item = s.env[buffer.slot], buffer.dtype.itemsize
    offsets = pointer.offset + where.astype(np.int64) * item
    columns = [
        pointer.memory.read(
            s, m, offsets[:, i] if len(offsets) > 1 else offsets[0, i], (buffer.name, item)
        )
        for i in range(where.shape[1])
    ]
    return np.concatenate(columns, axis=1).view(buffer.dtype)


def local_place(pointer: Pointer, index: Value, dtype: np.dtype[Any]) -> tuple[Local, Value]:
    """Registers and the number of an element in them."""
    if np.ndim(pointer.offset) or pointer.offset:
        index = index + pointer.offset // dtype.itemsize
    return pointer.memory, index


def _load_local(buffer: Buffer, index: Run) -> Run:
    def run(s: Strand, m: Mask) -> Value:
        local, where = local_place(s.env[buffer.slot], index(s, m), buffer.dtype)
        return local.load(s, m, where, buffer.dtype)

    return run


_NODES: dict[str, Callable[[Scope, Any], Code]] = {
    "IntImm": _immediate,
    "FloatImm": _immediate,
    "StringImm": _string,
    "Var": _variable,
    "Cast": _cast,
    "Not": _not,
    "BitwiseNot": _bitwise_not,
    "And": _and,
    "Or": _or,
    "Select": _select,
    "Ramp": _ramp,
    "Broadcast": _broadcast,
    "Shuffle": _shuffle,
    "Let": _let,
    "TensorLoad": _load,
    "Call": call,
}
