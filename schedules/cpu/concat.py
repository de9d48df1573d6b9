"""``cpu.concat``: rows of bytes copied side by side, on any target.

Along the axis and behind it each input is one run of consecutive elements for every outer index:

    task = a run of outer indices
      outer index, input:  its run copied in vectors, the last one overlapping its predecessor
"""

from __future__ import annotations

from math import prod
from typing import Any

import tvm
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.buffers import Symbols, product
from nybble.schedules.cpu.loops import PARALLEL_WORK
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

BYTES = 32  # of a vector
TASK = 1 << 14  # elements
EAGER = 16  # short runs of at most so many vectors are unrolled


def runs_of(inputs: tuple[TensorSpec, ...], axis: int) -> list[int] | None:
    """Elements of each input for one outer index; None when symbolic."""
    found = []
    for spec in inputs:
        tail = spec.shape[axis:]
        if any(isinstance(extent, str) for extent in tail):
            return None
        found.append(prod(int(extent) for extent in tail))
    return found


def supports(problem: Problem, _target: Any) -> str | None:
    """Why a concatenation cannot be compiled, None when it can."""
    if runs_of(problem.inputs, problem.attr("axis")) is None:
        return "an extent along the axis or behind it is symbolic"
    return None


def pack(_problem: Problem, _constants: Constants) -> list[NDArray[Any]]:
    """No constants."""
    return []


def declare(problem: Problem, symbols: Symbols) -> list[Any]:
    """Declares the parameters, inputs and output; flat buffers of them."""
    inputs = {f"x{i}": spec.stored for i, spec in enumerate(problem.inputs)}
    specs = inputs | {"output": problem.output.stored}
    given = {}
    for name, spec in specs.items():
        extents = [product((extent,), symbols) for extent in spec.shape]
        given[name] = T.arg(name, T.buffer(extents, spec.dtype, layout=None))
    sizes = {name: product(spec.shape, symbols) for name, spec in specs.items()}
    return [
        T.decl_buffer((sizes[name],), spec.dtype, data=given[name].data, layout=None)
        for name, spec in specs.items()
    ]


def _build(problem: Problem, target: Any, _knobs: Knobs) -> tirx.PrimFunc:
    axis, symbols = int(problem.attr("axis")), dict[str, Any]()
    runs = runs_of(problem.inputs, axis)
    assert runs is not None
    dtype = problem.output.stored.dtype
    size = max(tvm.DataType(dtype).bits // 8, 1)
    lanes = 1 if target.is_c else max(BYTES // size, 1)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        *sources, output = declare(problem, symbols)
        outer, line = product(problem.output.shape[:axis], symbols), sum(runs)
        many = max(TASK // line, 1)
        is_large = line * prod(d for d in problem.output.shape[:axis] if isinstance(d, int))
        loop = T.parallel if is_large >= PARALLEL_WORK else T.serial
        with loop(tirx.ceildiv(outer, many)) as task:
            first = T.Bind(task * many)
            with T.serial(tirx.min(many, outer - first)) as i:
                start = T.Bind((first + i) * line)
                for source, run, before in zip(sources, runs, _before(runs), strict=True):
                    _copy(source, (first + i) * run, output, start + before, (run, lanes))
    return builder.get()


def _before(runs: list[int]) -> list[int]:
    return [sum(runs[:i]) for i in range(len(runs))]


def _copy(source: Any, from_: Any, to: Any, start: Any, size: tuple[int, int]) -> None:
    """One run of (elements, lanes)."""
    count, lanes = size
    while lanes > count:
        lanes //= 2
    from_, start = T.Bind(from_ + 0), T.Bind(start + 0)

    def move(at: Any) -> None:
        if lanes == 1:
            T.buffer_store(to, source[from_ + at], [start + at])
        else:
            value = source.vload([from_ + at], f"{source.dtype}x{lanes}")
            T.buffer_store(to, value, [T.ramp(start + at, 1, lanes)])

    if count == 0:
        return
    loop = T.unroll if count // lanes <= EAGER else T.serial
    with loop(count // lanes) as i:
        move(i * lanes)
    if count % lanes:
        move(count - lanes)


CONCAT = Kernel("cpu.concat", "concat", supports, pack, _build)
