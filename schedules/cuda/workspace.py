"""Memory that a kernel's device functions share, handed in by the network in place of the pool.

A function that stores partial sums, or planes of bits, for a second device function allocates them
itself. TVM takes such memory from a pool of the thread's, which gives it back, and frees it when
another kernel asks for more. A CUDA graph keeps the address: it would write to memory that is no
longer its own. So in networks that are captured the function takes the memory as a parameter, and
the call gives it as one more output, which the planner places among the other tensors:

    y = call_tir(f, (x, w), out_ty=y)    ->    both = call_tir(f, (x, w), out_ty=[workspace, y])
                                               y = both[1]

The output stays the last parameter, as instruments expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax, s_tir, tirx

from nybble.ir import graph


def lifted(func: tirx.PrimFunc) -> tuple[tirx.PrimFunc, tuple[Any, ...]]:
    """A function that gets its workspaces as parameters, in front of the output.

    Args:
        func: a kernel; memory that all of its device functions share is allocated outside of them.

    Returns:
        The function, and the buffers, in the order of the parameters; none where it needs none.
    """
    body, buffers = _without(func.body)
    if not buffers:
        return func, ()
    *inputs, output = func.params
    made = tirx.PrimFunc([*inputs, *buffers, output], body, func.ret_type, func.attrs)
    return made, buffers


def _without(body: Any) -> tuple[Any, tuple[Any, ...]]:
    """A function's body without its allocations: of code for threads, or of a schedule's root."""
    if isinstance(body, tirx.SeqStmt):
        given = [one for one in body.seq if isinstance(one, tirx.AllocBuffer)]
        rest = [one for one in body.seq if not isinstance(one, tirx.AllocBuffer)]
        return tirx.SeqStmt(rest), tuple(one.buffer for one in given)
    if not isinstance(body, s_tir.SBlockRealize):
        return body, ()
    root = body.block
    given = [one for one in root.alloc_buffers if one.scope() == "global"]
    kept = [one for one in root.alloc_buffers if one.scope() != "global"]
    block = s_tir.SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, root.body, root.init, kept,
        root.match_buffers, root.annotations,
    )  # fmt: skip
    return s_tir.SBlockRealize(body.iter_values, body.predicate, block), tuple(given)


def planned(mod: tvm.IRModule) -> tvm.IRModule:
    """The module with every workspace of a kernel among the network's own tensors.

    Args:
        mod: stage ``scheduled``, of static shapes.
    """
    made = {n: lifted(f) for n, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}
    if not any(buffers for _, buffers in made.values()):
        return mod
    fresh = {name: relax.BlockBuilder().add_func(f, str(name.name_hint))
             for name, (f, buffers) in made.items() if buffers}  # fmt: skip
    emitter, replace = graph.Emitter(graph.inputs(mod)), dict[Any, Any]()
    for binding in graph.bindings(mod):
        value, name = graph.substitute(binding.value, replace), str(binding.var.name)
        symbol = value.args[0] if graph.op_name(value) == "relax.call_tir" else None
        if symbol in fresh:
            kinds = [_kind(one) for one in made[symbol][1]]
            call = relax.call_tir(
                fresh[symbol], list(value.args[1].fields), [*kinds, *value.ty_args]
            )
            both = emitter.emit(call, f"{name}.workspace")
            value = relax.TupleGetItem(both, len(kinds))
        replace[binding.var] = emitter.emit(value, name)
    found = _finished(mod, emitter, replace)
    for name, (func, _) in made.items():
        found[fresh.get(name, name)] = func
    return found


def _kind(buffer: Any) -> relax.TensorType:
    return relax.TensorType([int(extent) for extent in buffer.shape], str(buffer.dtype))


def _finished(
    mod: tvm.IRModule, emitter: graph.Emitter, replace: Mapping[Any, Any]
) -> tvm.IRModule:
    results = [replace.get(v, v) for v in graph.outputs(mod)]
    own = (graph.OUTPUT_NAMES, graph.STAGE)
    attrs = {k: v for k, v in dict(mod["main"].attrs).items() if k not in own}
    return emitter.finish(results, graph.output_names(mod), graph.stage(mod), attrs)
