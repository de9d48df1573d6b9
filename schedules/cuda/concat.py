"""``cuda.generic`` concatenation: a thread copies up to 16 bytes.

Along the axis and behind it each input is one run of consecutive elements for every outer index, so
the output is rows of runs. What a thread copies divides all runs, and so is of one of them.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.buffers import product
from nybble.schedules.cpu.concat import declare, pack, runs_of, supports
from nybble.schedules.cuda.arch import KIND
from nybble.schedules.cuda.bind import ACCESS, THREADS
from nybble.schedules.cuda.elementwise import NAME
from nybble.schedules.kernel import Kernel, Knobs, Problem


def _build(problem: Problem, _target: Any, _knobs: Knobs) -> tirx.PrimFunc:
    axis, symbols = int(problem.attr("axis")), dict[str, Any]()
    runs = runs_of(problem.inputs, axis)
    assert runs is not None
    dtype = problem.output.stored.dtype
    lanes = gcd(ACCESS // max(tvm.DataType(dtype).bits // 8, 1), *runs)
    line = sum(runs) // lanes
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        *sources, output = declare(problem, symbols)
        count = product(problem.output.shape[:axis], symbols) * line
        with T.thread_binding(tirx.ceildiv(count, THREADS), thread="blockIdx.x") as block:  # noqa: SIM117
            with T.thread_binding(THREADS, thread="threadIdx.x") as thread:
                at = T.Bind(block * THREADS + thread)
                with T.If(at < count), T.Then():
                    row, place = T.Bind(at // line), T.Bind(at % line * lanes)
                    _copy(list(zip(sources, runs, strict=True)), output, (row, place, lanes))
    return builder.get()


def _copy(runs: list[tuple[Any, int]], output: Any, where: tuple[Any, Any, int]) -> None:
    """Copies from the run that holds (row, place, lanes)."""
    row, place, lanes = where
    line, start = sum(run for _, run in runs), 0
    for source, run in runs:
        with T.If(tirx.all(place >= start, place < start + run)), T.Then():
            from_, to = row * run + place - start, row * line + place
            if lanes == 1:
                T.buffer_store(output, source[from_], [to])
            else:
                value = source.vload([from_], f"{source.dtype}x{lanes}")
                T.buffer_store(output, value, [T.ramp(to, 1, lanes)])
        start += run


CONCAT = Kernel(NAME, "concat", supports, pack, _build, arch=KIND)
