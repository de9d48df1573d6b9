"""``cuda.generic`` convolution and linear: any attributes, any width, int32 or float32.

A thread computes one output element by element: right for every problem, never fast. The layout of
the weights is the CPU's (`nybble.schedules.cpu.fallback`): threads side by side take output
channels side by side, and read their weights in one access.
"""

from __future__ import annotations

from typing import Any

from nybble.schedules.cpu import fallback
from nybble.schedules.cuda import bind
from nybble.schedules.cuda.arch import KIND
from nybble.schedules.cuda.elementwise import NAME
from nybble.schedules.kernel import Kernel, Knobs, Problem


def _build(problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    sch = fallback.define(problem)
    for name, is_there in (
        ("padded", fallback.has_padding(problem)),
        ("unpacked", fallback.is_packed(problem)),
    ):
        if is_there:
            sch.compute_inline(sch.get_sblock(name))
    acc, out = sch.get_sblock("acc"), sch.get_sblock("out")
    thread = bind.grid(sch, sch.get_loops(out))
    sch.compute_at(acc, thread)
    sch.set_scope(acc, 0, "local")
    steps = len(sch.get(acc).iter_vars) - len(problem.output.shape) - 1
    bind.clear_first(sch, acc, sch.get_loops(acc)[-steps])
    return sch.mod["main"]


def _always(_problem: Problem, _target: Any) -> str | None:
    return None


CONV2D = Kernel(NAME, "conv2d", _always, fallback.pack, _build, arch=KIND)
LINEAR = Kernel(NAME, "linear", _always, fallback.pack, _build, arch=KIND)
