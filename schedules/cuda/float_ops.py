"""Every op without a kernel family of its own: TVM's definition of it, with threads bound.

Element-wise stages join their readers. Each stage that remains is a kernel of its own, in which a
thread computes one element and reduces by itself.
"""

from __future__ import annotations

from typing import Any

from tvm import relax

from nybble.errors import ScheduleError
from nybble.ir import graph
from nybble.schedules.cpu import float_ops, float_schedule
from nybble.schedules.cuda import bind

NAME = "cuda.stock"


def legalized(call: relax.Call, name: str) -> tuple[Any, list[Any]]:
    """TVM's function for one call, scheduled.

    Arguments, result and errors as of `nybble.schedules.cpu.float_ops.defined`.
    """
    func, args = float_ops.defined(call, name)
    if not float_ops.has_root(func):
        raise ScheduleError(
            f"'{name}': {graph.op_name(call)} is written as loops of one thread, for which GPUs "
            "have no kernel. Compile for a CPU, or rewrite it with supported ops."
        )
    sch = float_ops.inlined(func)
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        _bind(sch, block)
    return sch.mod["main"], args


def _bind(sch: Any, block: Any) -> None:
    found = bind.spatial_of(sch, block)
    pairs = list(zip(found, sch.get(block).iter_vars, strict=False))
    steps = [loop for loop, var in pairs if int(var.iter_type) == float_schedule.REDUCE]
    spatial = [loop for loop in found if not any(loop.same_as(step) for step in steps)]
    if not spatial:
        spatial = [sch.add_unit_loop(sch.get_loops(block)[0])]
    sch.reorder(*spatial, *steps)
    bind.grid(sch, spatial)
    if steps:
        bind.clear_first(sch, block, steps[0])
