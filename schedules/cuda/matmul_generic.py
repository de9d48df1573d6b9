"""``cuda.generic`` products of two tensors: any zero points, any extents, symbolic ones too.

A thread computes one element: a last resort for what `nybble.schedules.cuda.matmul` refuses.
"""

from __future__ import annotations

from typing import Any

from nybble.schedules.cpu import matmul_generic
from nybble.schedules.cuda import bind
from nybble.schedules.cuda.arch import KIND
from nybble.schedules.cuda.elementwise import NAME
from nybble.schedules.cuda.matmul_lying import is_moved
from nybble.schedules.kernel import Kernel, Knobs, Problem


def _build(problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    sch = matmul_generic.define(problem)
    acc = sch.get_sblock("acc")
    out = sch.get_sblock("out") if problem.epilogue.kind != "none" else None
    if out is None:
        out = sch.cache_write(acc, 0, "local")
    thread = bind.rows(sch, bind.spatial_of(sch, out))
    sch.compute_at(acc, thread, preserve_unit_loops=True)
    sch.set_scope(acc, 0, "local")
    bind.clear_first(sch, acc, bind.within(sch, acc, thread)[-1])
    return sch.mod["main"]


def _supports(problem: Problem, _target: Any) -> str | None:
    if is_moved(problem):
        return "reads and writes tensors in the order of the product's axes, not of another"
    return None


MATMUL = Kernel(NAME, "matmul", _supports, matmul_generic.pack, _build, arch=KIND)
