"""Integer linear layers over few rows on x86: weights of 2 to 8 bits stream past them once.

Activations are staged as signed integers (unsigned 8 bits as x - 128), weights are unsigned codes
c = w - base, and

    Σ x·w = Σ (x - offset)·c + base·Σ (x - offset) + offset·Σ w

where the last sum is known when the weights are packed and joins the bias. A reduction is cut into
groups of some 256, between which sums stay in 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu import epilogue, gemv_template, scaling
from nybble.schedules.cpu.buffers import Buffers, declare, load, product, store
from nybble.schedules.cpu.gemv_codes import Codes
from nybble.schedules.cpu.gemv_dot import INSTRUCTION_SETS, multiply
from nybble.schedules.cpu.gemv_layout import Layout
from nybble.schedules.cpu.gemv_rows import sweep, total
from nybble.schedules.cpu.gemv_template import Plan
from nybble.schedules.cpu.gemv_tile import Job, Where
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

FEW = 8  # rows up to which the blocked template would read weights too often
GROUP = 256
LONGEST = (2**31 - 1) // (255 * 128)  # a channel's sum of codes times activations


def layout_of(problem: Problem, isa: str) -> Layout:
    """Where the weights of a problem lie for an instruction set."""
    assert problem.weights is not None
    o, k = (int(d) for d in problem.weights.shape)
    codes = Codes(numerics.width(problem.weights.dtype)[1])
    dot = multiply(isa, codes.bits)
    unit = max(codes.steps * dot.depth, 8)
    units = ceil(k / unit)
    group = ceil(units / ceil(units * unit / GROUP)) * unit
    return Layout(codes, dot, o, k, group)


def _offset(problem: Problem, layout: Layout) -> int:
    """What staging takes off the activations."""
    return 128 if problem.inputs[0].dtype == "uint8" and layout.dot.x == "int8" else 0


def _base(problem: Problem, layout: Layout) -> int:
    """The weight whose stored byte is 0."""
    assert problem.weights is not None
    return numerics.limits(problem.weights.dtype)[0] + layout.dot.centre


def _most(problem: Problem, layout: Layout) -> int:
    """Largest magnitude of a staged activation."""
    lo, hi = (end - _offset(problem, layout) for end in numerics.limits(problem.inputs[0].dtype))
    return max(-lo, hi)


# ---------------------------------------------------------------- supports and pack


def _supports(isa: str, bits: int, problem: Problem, target: Any) -> str | None:
    dot = multiply(isa, bits)
    if target.arch != "x86_64" or not target.has(*dot.features):
        return f"needs {', '.join(dot.features)}"
    return _refuse_dtypes(bits, problem) or _refuse_rows(problem) or epilogue.refuse(problem)


def _refuse_dtypes(bits: int, problem: Problem) -> str | None:
    assert problem.weights is not None
    x, w, y = problem.inputs[0].dtype, problem.weights.dtype, problem.output.dtype
    if not epilogue.is_narrow(x) or not epilogue.is_narrow(w):
        return f"computes integers of up to 8 bits, not {x} x {w}"
    if numerics.width(w)[1] != bits:
        return f"computes {bits}-bit weights, not {w}"
    if y != "int32" and not epilogue.is_narrow(y):
        return f"cannot store {y}"
    return None


def _refuse_rows(problem: Problem) -> str | None:
    assert problem.weights is not None
    if int(problem.weights.shape[1]) > LONGEST:
        return f"the sum of more than {LONGEST} products could exceed 32 bits"
    rows = product(problem.inputs[0].shape[:-1], {})
    if isinstance(rows, int) and rows > FEW:
        return f"{rows} rows are more than {FEW}"
    if not isinstance(rows, int) and len(problem.inputs[0].shape) != 2:
        return "many rows for each image"
    return None


def _pack(isa: str, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """The stream of codes, and the table of per-channel numbers (bias in row 0)."""
    layout = layout_of(problem, isa)
    w = np.asarray(constants["w"]).astype(np.int64)
    bias = np.asarray(constants["bias"]).astype(np.int64)
    bias = bias + _offset(problem, layout) * w.sum(1)
    table = scaling.table(problem, constants, bias, layout.width)
    return [layout.pack((w - _base(problem, layout)).astype(np.uint8)), table]


# ---------------------------------------------------------------- build


@dataclass(frozen=True)
class _Integers:
    """The finish of `gemv_template` that applies an integer epilogue.

    Attributes:
        problem: the layer.
        layout: of the weights.
        sums: (rows,) base·Σ of the staged activations; None where base is 0.
        buffers: the kernel's parameters.
    """

    problem: Problem
    layout: Layout
    sums: Any
    buffers: Buffers

    @property
    def dtype(self) -> str:
        """Of the running accumulators."""
        return "int32"

    def combine(self, running: Any, total: Any, _where: Where) -> Any:
        """The sum."""
        return running + total

    def store(self, running: Any, row: Any, start: Any) -> None:
        """Bias, correction, epilogue."""
        lanes, o = self.layout.dot.lanes, self.layout.o
        table, valid = self.buffers.constants[1], min(o, lanes)
        acc = running + table.vload([tirx.const(0), start], f"int32x{lanes}")
        if self.sums is not None:
            acc = acc + T.broadcast(self.sums[row], lanes)
        at, other = T.Bind(row * o + start), None
        if self.buffers.other is not None:
            other = load(self.buffers.other, at, lanes, valid)
        entries = self.buffers.entries
        column = epilogue.Column(self.problem, table, start, lanes, entries=entries)
        store(self.buffers.output, at, column.apply(acc, other), valid)


def _plan(isa: str, problem: Problem, _target: Any, knobs: Knobs) -> Plan:
    return gemv_template.plan_of(problem, layout_of(problem, isa), knobs)


def _build(isa: str, problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The function: stages rows, then multiplies."""
    layout, symbols = layout_of(problem, isa), dict[str, Any]()
    constants = (
        TensorSpec((layout.panels, layout.groups * layout.record), "uint8"),
        TensorSpec((scaling.table_rows(problem.epilogue), layout.width), "int32"),
    )
    plan = _plan(isa, problem, target, knobs)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        buffers = declare(problem, constants, symbols)
        count = product(problem.inputs[0].shape[:-1], symbols)
        staged, sums = _stage(problem, layout, buffers.x, plan, count)
        finish = _Integers(problem, layout, sums, buffers)
        job = Job(layout, _most(problem, layout), staged, buffers.constants[0], finish)
        gemv_template.emit(job, plan, count)
    return builder.get()


def _stage(problem: Problem, layout: Layout, x: Any, plan: Plan, count: Any) -> tuple[Any, Any]:
    """Staged rows, zeros behind each and in the rows that fill up a tile; their corrections."""
    rows, base = plan.staged(count), _base(problem, layout)
    staged = T.alloc_buffer((rows * layout.row,), layout.dot.x, layout=None)
    sums = T.alloc_buffer((count,), "int32", layout=None) if base else None
    with T.serial(count) as row:
        begin, to = T.Bind(row * layout.k), T.Bind(row * layout.row)
        _clear(staged, to + layout.k, layout.row - layout.k)

        def move(at: Any, lanes: int, begin: Any = begin, to: Any = to) -> None:
            value = x.vload([begin + at], f"{x.dtype}x{lanes}") if lanes > 1 else x[begin + at]
            kind = f"{layout.dot.x}x{lanes}" if lanes > 1 else layout.dot.x
            if _offset(problem, layout):
                flip = tirx.const(128, "uint8")
                value = value ^ (T.broadcast(flip, lanes) if lanes > 1 else flip)
                value = T.reinterpret(kind, value)
            spot = T.ramp(to + at, 1, lanes) if lanes > 1 else to + at
            T.buffer_store(staged, T.Cast(kind, value), [spot])

        sweep(move, layout.k, 16)
        if sums is not None:
            T.buffer_store(sums, total(staged, to, layout.row) * base, [row])
    if plan.rows is None or rows != plan.rows:
        _clear(staged, count * layout.row, (rows - count) * layout.row)
    return staged, sums


def _clear(staged: Any, begin: Any, count: Any) -> None:
    with T.serial(count) as i:
        T.buffer_store(staged, tirx.const(0, str(staged.dtype)), [begin + i])


def _families(widths: Iterable[int]) -> tuple[Kernel, ...]:
    """The kernels for some widths of weights, by preference: VNNI before AVX-512 before AVX2."""
    return tuple(
        Kernel(
            f"cpu.int{bits}.gemv.{isa}",
            "linear",
            partial(_supports, isa, bits),
            partial(_pack, isa),
            partial(_build, isa),
            arch="x86_64",
            plan=partial(_plan, isa),
        )
        for isa in INSTRUCTION_SETS
        for bits in widths
    )


KERNELS = _families(range(2, 8))
"""Half the bytes and less: ahead of the blocked template wherever they apply."""

EIGHT_BITS = _families((8,))
"""The same bytes as the blocked template reads: level with it for one row, behind it for more."""
