"""``cuda.generic`` convolution and linear: any attributes, any width, int32 or float32.

A thread computes up to four output channels of a pixel, element by element: right for every
problem, and near what memory allows for depthwise layers; for others a last resort.

    weights [KH][KW][C/groups][O]     as the CPU's kernel has them for vectors of all channels
    for kh, kw, c:  four weights x one input, or in one access the four inputs of four groups

Padding is a condition on the load. Weights below 8 bits are taken out of their bytes one by one.
"""

from __future__ import annotations

from math import gcd
from typing import Any

from numpy.typing import NDArray

from nybble.schedules.cpu import fallback
from nybble.schedules.cuda import bind, row_scales
from nybble.schedules.cuda.arch import KIND
from nybble.schedules.cuda.elementwise import NAME
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem

CHANNELS = 4  # TVM writes vectors of 32-bit sums of as many


def _channels(problem: Problem) -> int:
    """Neighbouring output channels of a thread: of one group, or each of its own."""
    if fallback.is_packed(problem):
        return 1
    groups = int(problem.attr("groups")) if problem.op == "conv2d" else 1
    per_group = _width(problem) // groups
    return gcd(CHANNELS, per_group if per_group > 1 else groups)


def _is_depthwise(problem: Problem) -> bool:
    assert problem.weights is not None
    return problem.op == "conv2d" and int(problem.attr("groups")) == _width(problem) > 1


def _width(problem: Problem) -> int:
    return int(problem.output.shape[-1])


def _pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    if row_scales.is_there(problem.epilogue):
        return row_scales.pack(constants)
    return fallback.pack(problem, constants, _width(problem))


def _defined(problem: Problem) -> Any:
    """Blocks ``acc`` and ``out``; what stands before the products is part of the loads."""
    if row_scales.is_there(problem.epilogue):
        return row_scales.define(problem)
    sch = fallback.define(problem, _width(problem))
    for name, is_there in (
        ("padded", fallback.has_padding(problem)),
        ("unpacked", fallback.is_packed(problem)),
    ):
        if is_there:
            sch.compute_inline(sch.get_sblock(name))
    return sch


def _build(problem: Problem, _target: Any, _knobs: Knobs) -> Any:
    sch, lanes = _defined(problem), _channels(problem)
    acc, out = sch.get_sblock("acc"), sch.get_sblock("out")
    thread = bind.runs(sch, out, lanes, bind=bind.rows)
    sch.compute_at(acc, thread, preserve_unit_loops=True)
    sch.set_scope(acc, 0, "local")
    inside = bind.within(sch, acc, thread)
    steps = inside[len(problem.output.shape) + 1 :]  # behind the block and the lane of a channel
    own = inside[: -len(steps)]
    sch.reorder(*steps, *own)
    # TVM writes no vector of one input; four inputs are one access.
    (sch.vectorize if _is_depthwise(problem) else sch.unroll)(own[-1])
    bind.clear_first(sch, acc, steps[0])
    return sch.mod["main"]


def _always(_problem: Problem, _target: Any) -> str | None:
    return None


CONV2D = Kernel(NAME, "conv2d", _always, _pack, _build, arch=KIND)
LINEAR = Kernel(NAME, "linear", _always, _pack, _build, arch=KIND)
