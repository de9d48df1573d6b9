"""``cuda.generic`` pooling: a thread takes the windows of neighbouring channels."""

from __future__ import annotations

from typing import Any

from nybble.schedules.cpu import loops, pooling
from nybble.schedules.cuda import bind
from nybble.schedules.cuda.arch import KIND
from nybble.schedules.cuda.elementwise import NAME
from nybble.schedules.kernel import Kernel, Knobs, Problem

_LANES = 4  # TVM writes vectors of 32-bit sums of as many


def _build(problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    sch = pooling.define(problem)
    is_fused = problem.epilogue.kind != "none"
    pooled = sch.get_sblock("pooled")
    out = sch.get_sblock("out") if is_fused else sch.cache_write(pooled, 0, "local")
    *outer, channels = sch.get_loops(out)
    lanes = loops.lanes_of(problem.output.shape[-1], _LANES)
    many, lane = sch.split(channels, [None, lanes])
    thread = bind.rows(sch, [*outer, many])
    sch.compute_at(pooled, thread)
    if is_fused:
        sch.set_scope(pooled, 0, "local")
        sch.unroll(lane)
    else:
        sch.vectorize(lane)
    *spatial, i, j = bind.within(sch, pooled, thread)
    if spatial:
        sch.reorder(i, j, *spatial)
        sch.vectorize(spatial[-1])
    bind.clear_first(sch, pooled, i)
    return sch.mod["main"]


def _always(_problem: Problem, _target: Any) -> str | None:
    return None


KERNELS = tuple(
    Kernel(NAME, op, _always, pooling.pack, _build, arch=KIND)
    for op in ("max_pool2d", "sum_pool2d")
)
