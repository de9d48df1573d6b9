"""Every op without a kernel family of its own: TVM's definition of it, with a schedule of ours.

The stock CPU pipeline leaves such functions unscheduled. Here element-wise stages join their
readers; what remains is scheduled by `nybble.schedules.cpu.float_schedule`, by default decisions.
Those of the ops that `nybble.schedules.cpu.stock` makes kernels of are tuned.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from nybble.errors import ScheduleError
from nybble.ir import graph
from nybble.schedules.cpu import float_math, float_order, float_schedule
from nybble.schedules.kernel import Knobs

NAME = "cpu.stock"


def legalized(call: relax.Call, name: str) -> tuple[Any, list[Any]]:
    """TVM's function for one call, scheduled; arguments, result and errors as of `defined`."""
    func, args = defined(call, name)
    return scheduled(func), args


def defined(call: relax.Call, name: str) -> tuple[Any, list[Any]]:
    """TVM's function for one call, unscheduled.

    Args:
        call: a call of a Relax op on variables and constants.
        name: the binding's name, for the error.

    Returns:
        (PrimFunc, its tensor operands in order).

    Raises:
        ScheduleError: TVM does not lower the op to one function.
    """
    params = [o for o in dict.fromkeys(graph.operands(call)) if isinstance(o, relax.Var)]
    # A model's own names may be none in C.
    plain = {param: relax.Var(f"x{i}", param.ty) for i, param in enumerate(params)}
    builder = relax.BlockBuilder()
    with builder.function("main", list(plain.values())):
        result = builder.emit(graph.substitute(call, plain))
        builder.emit_func_output(result)
    is_float = graph.dtype_of(result) == "float32"
    ours = {**float_order.LEGALIZATIONS, **(float_math.LEGALIZATIONS if is_float else {})}
    mod = relax.transform.LegalizeOps(ours)(builder.get())
    calls = [b for b in graph.bindings(mod) if graph.op_name(b.value) == "relax.call_tir"]
    if len(calls) != 1 or len(graph.bindings(mod)) != 1 or len(calls[0].value.args) != 2:
        raise ScheduleError(
            f"'{name}': {graph.op_name(call)} has no kernel, and TVM does not lower it to one "
            "function. Rewrite it with supported ops."
        )
    symbol, args = calls[0].value.args
    given = {variable: param for param, variable in plain.items()}
    return mod[symbol], [given.get(arg, arg) for arg in args.fields]


def scheduled(func: Any) -> Any:
    """The generic schedule of a function whose blocks are element-wise or reductions."""
    if not has_root(func):  # written as loops by TVM: scatters
        return func
    sch = inlined(func)
    return float_schedule.scheduled(
        sch, float_schedule.decide(float_schedule.outline(sch), Knobs())
    )


def inlined(func: Any) -> Any:
    """A schedule in which element-wise stages have joined their readers, as far as they can."""
    sch = tvm.s_tir.Schedule(func)
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    for block in blocks[:-1]:
        if not float_schedule.reduces(sch, block) and not _reduces_any(
            sch, sch.get_consumers(block)
        ):
            _try_inline(sch, block)
    return sch


def has_root(func: Any) -> bool:
    """Whether a function is made of blocks, which can be scheduled, and not of bare loops."""
    block = getattr(func.body, "block", None)
    return block is not None and str(block.name_hint) == "root"


def _try_inline(sch: Any, block: Any) -> None:
    try:
        sch.compute_inline(block)
    except tvm.s_tir.ScheduleError:
        return  # it stays a stage of its own, scheduled like the others


def _reduces_any(sch: Any, blocks: Any) -> bool:
    return any(float_schedule.reduces(sch, block) for block in blocks)
