"""Calls in TensorIR: its own intrinsics, CUDA's functions, PTX, injected source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from nybble.simt import barriers, functions, hosts, mbarriers, tensors, warpgroups, warps
from nybble.simt.codes import Code, Kind, Scope, build, choose, np_dtype
from nybble.simt.instructions import instruction
from nybble.simt.memory import Pointer
from nybble.simt.shared import Room
from nybble.simt.strand import Strand
from nybble.simt.values import Mask, Value, bitcast

Translate = Callable[[Scope, Any], Code]


def call(scope: Scope, node: Any) -> Code:
    """Code for a call; its value is None where the call gives none."""
    name = str(node.op.name)
    if scope.leaves_out(name.rpartition(".")[2]):
        return Code(lambda s, m: None, Kind.VARYING)
    if name.startswith("tirx.ptx."):
        return instruction(scope, node)
    for table in (_TIR, hosts.CALLS, *_TABLES):
        if name in table:
            return table[name](scope, node)
    if name in functions.EXTERNAL:
        return functions.external(scope, node)
    if name == "tirx.cuda.func_call":
        return functions.injected(scope, node)
    raise scope.refuse(f"the call {name}")


def _if_then_else(scope: Scope, node: Any) -> Code:
    return choose(*(scope.expression(part) for part in node.args))


def _first(scope: Scope, node: Any) -> Code:
    return scope.expression(node.args[0])


def _pure(operation: Callable[..., Value]) -> Translate:
    def translate(scope: Scope, node: Any) -> Code:
        return build(scope, operation, *(scope.expression(part) for part in node.args))

    return translate


def _is_pointer(ty: Any) -> bool:
    return not isinstance(ty, tvm.ir.PrimType)


def _reinterpret(scope: Scope, node: Any) -> Code:
    value = scope.expression(node.args[0])
    if _is_pointer(node.ty):
        return value
    data = tvm.DataType(str(node.ty.dtype))
    dtype, vector = np_dtype(str(data)), data.lanes > 1
    return build(scope, lambda v: bitcast(v, dtype, vector), value)


def _address_of(scope: Scope, node: Any) -> Code:
    load = node.args[0]
    if isinstance(load, tvm.ir.Var):
        return scope.expression(load)  # a parameter in constant memory: a tensor map
    buffer = scope.buffer(load.source)
    index = scope.expression(load.indices[0])
    item = buffer.dtype.itemsize

    def run(s: Strand, m: Mask) -> Value:
        base: Pointer = s.env[buffer.slot]
        where = np.asarray(index.run(s, m)).astype(np.int64)[()] * item
        return Pointer(base.memory, base.offset + where, buffer.name)

    return Code(run, Kind.VARYING)


def _buffer_data(scope: Scope, node: Any) -> Code:
    slot = scope.slot(node.args[0])
    return Code(lambda s, m: s.env[slot], Kind.VARYING)


def _add_bytes(scope: Scope, node: Any) -> Code:
    base, count = (scope.expression(part) for part in node.args)
    return Code(lambda s, m: base.run(s, m).plus(count.run(s, m)), Kind.VARYING)


def to_shared(pointer: Pointer) -> Value:
    """A pointer's address in the window of shared memory, as the hardware counts: uint32."""
    room = pointer.memory
    start = room.start if isinstance(room, Room) else 0
    return np.asarray(pointer.offset + start).astype(np.uint32)[()]


def _cvta(scope: Scope, node: Any) -> Code:
    pointer = scope.expression(node.args[0])

    def run(s: Strand, m: Mask) -> Value:
        target = pointer.run(s, m)
        if target.memory.space != "shared":
            raise scope.refuse(f"a shared address of {target.memory.space} memory")
        return to_shared(target)

    return Code(run, Kind.VARYING)


def _read_only(scope: Scope, node: Any) -> Code:
    """``__ldg``: one element, through the read-only cache."""
    if len(node.args) != 2:
        raise scope.refuse("__ldg of vectors (load a vector of the buffer)")
    pointer, dtype = scope.expression(node.args[0]).run, np_dtype(str(node.args[1].value))

    def run(s: Strand, m: Mask) -> Value:
        source = pointer(s, m)
        s.tally(f"ld.global.nc.b{8 * dtype.itemsize}", m)
        data = source.memory.read(s, m, source.offset, (source.name, dtype.itemsize))
        return data.view(dtype)[:, 0]

    return Code(run, Kind.VARYING)


def _atomic_add(scope: Scope, node: Any) -> Code:
    """``atomicAdd`` on global memory, lane after lane; its old value."""
    pointer, value = (scope.expression(part).run for part in node.args)

    def run(s: Strand, m: Mask) -> Value:
        target, data = pointer(s, m), s.full(value(s, m))
        if target.memory.space != "global":
            raise scope.refuse(f"atomicAdd on {target.memory.space} memory")
        s.tally("atomicAdd", m)
        return target.memory.add(s, m, target.offset, (target.name, data))

    return Code(run, Kind.VARYING)


def _rank(scope: Scope, node: Any) -> Code:
    return Code(lambda s, m: s.thread.astype(np.int32), Kind.VARYING)


_TABLES = (barriers.CALLS, warps.CALLS, mbarriers.CALLS, tensors.CALLS, warpgroups.CALLS)
_TIR: dict[str, Translate] = {
    "prim.if_then_else": _if_then_else,
    "prim.likely": _first,
    "tirx.popcount": _pure(lambda v: functions.popcount(v).astype(v.dtype)),
    "tirx.isnan": _pure(np.isnan),
    "tirx.isinf": _pure(np.isinf),
    "tirx.isfinite": _pure(np.isfinite),
    "tirx.cuda.half2float": _pure(lambda v: v.astype(np.float32)),
    "tirx.cuda.uint_as_float": _pure(lambda v: bitcast(v, np.dtype(np.float32), False)),
    "tirx.cuda.float_as_uint": _pure(lambda v: bitcast(v, np.dtype(np.uint32), False)),
    "tirx.cuda.ldg": _read_only,
    "tirx.cuda.atomic_add": _atomic_add,
    "tirx.cuda.thread_rank": _rank,
    "tirx.reinterpret": _reinterpret,
    "tirx.address_of": _address_of,
    "tirx.buffer_data": _buffer_data,
    "tirx.handle_add_byte_offset": _add_bytes,
    "tirx.cuda.cvta_generic_to_shared": _cvta,
}
