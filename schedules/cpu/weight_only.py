"""Weight-only linear layers on x86, W2 to W8 and code books, AVX2, AVX-512 and VNNI, any rows.

Rows are quantized first (`weight_only_rows`); then `gemv_template` sums codes times activations in
integers, and each group ends as `nybble.ir.weight_only` says: the codes' zero taken off, one
conversion to float32, one fused multiply-add by the scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.errors import ScheduleError
from nybble.ir import code_books, numerics
from nybble.ir.weight_only import INT8, MOST
from nybble.schedules.cpu import gemv_template, weight_only_rows
from nybble.schedules.cpu.buffers import declare, load, product, store
from nybble.schedules.cpu.epilogue import floats
from nybble.schedules.cpu.gemv_codes import Codes
from nybble.schedules.cpu.gemv_dot import INSTRUCTION_SETS, Multiply, multiply
from nybble.schedules.cpu.gemv_layout import Layout
from nybble.schedules.cpu.gemv_template import Plan
from nybble.schedules.cpu.gemv_tile import Job, Where
from nybble.schedules.cpu.weight_only_books import codes_of
from nybble.schedules.cpu.weight_only_generic import LONGEST
from nybble.schedules.kernel import Constants, Epilogue, Kernel, Knobs, Problem, TensorSpec

PARALLEL_ROWS = 32  # a row takes some microseconds to quantize, a launch 13-18


def layout_of(problem: Problem, isa: str) -> Layout:
    """Where the weights of a problem lie for an instruction set."""
    assert problem.weights is not None
    o, k = (int(d) for d in problem.weights.shape)
    bits = numerics.width(problem.weights.dtype)[1]
    dot, book = multiply(isa, bits), book_of(problem)
    codes = codes_of(book, _base(problem, dot)) if book else Codes(bits)
    head = 4 if is_uniform(problem) else 5
    group = min(int(problem.attr("group")), k)
    return Layout(codes, dot, o, k, group, head)


def book_of(problem: Problem) -> str:
    """The code book of the weights, empty without one."""
    return str(dict(problem.attrs).get("book", ""))


def is_uniform(problem: Problem) -> bool:
    """Whether all groups share one zero point."""
    return problem.attr("zero_point") is not None


def _base(problem: Problem, dot: Multiply) -> int:
    """The weight whose byte is 0 where it is multiplied."""
    assert problem.weights is not None
    return numerics.limits(problem.weights.dtype)[0] + dot.centre


# ---------------------------------------------------------------- supports and pack


def _supports(isa: str, width: int | str, problem: Problem, target: Any) -> str | None:
    bits = 8 if isinstance(width, str) else width
    dot = multiply(isa, bits)
    if target.arch != "x86_64" or not target.has(*dot.features):
        return f"needs {', '.join(dot.features)}"
    assert problem.weights is not None
    if dict(problem.attrs).get("compute", INT8) != INT8:
        return f"computes in {INT8} only"
    if problem.weights.dtype.startswith("float") or (
        numerics.width(problem.weights.dtype)[1] != bits
    ):
        return f"computes {bits}-bit weights, not {problem.weights.dtype}"
    if isinstance(width, str) and book_of(problem) != width:
        return f"computes weights of the code book {width} only"
    if min(problem.attr("group"), problem.weights.shape[1]) > LONGEST:
        return f"the sum of more than {LONGEST} weights in a group could exceed 32 bits"
    return None


def _pack(isa: str, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """The stream of scales, zero points and codes; the bias."""
    layout = layout_of(problem, isa)
    base, book, w = _base(problem, layout.dot), book_of(problem), np.asarray(constants["w"])
    heads: list[NDArray[Any]] = [np.asarray(constants["scale"], np.float32)]
    if not is_uniform(problem):
        heads.append(_zeros(problem, layout, np.asarray(constants["zero_point"])))
    codes = code_books.numbers(w, book) if book else w.astype(np.int16) - base
    bias = np.zeros(layout.width, np.float32)
    bias[: layout.o] = constants["bias"]
    return [layout.pack(codes.astype(np.uint8), *heads), bias]


def _zeros(problem: Problem, layout: Layout, zero_point: NDArray[Any]) -> NDArray[Any]:
    """Zero points as codes, a byte each."""
    assert problem.weights is not None
    lo, hi = numerics.limits(problem.weights.dtype)
    if zero_point.min() < lo or zero_point.max() > hi:
        raise ScheduleError(f"a zero point lies outside {problem.weights.dtype}'s {lo}..{hi}")
    return (zero_point - _base(problem, layout.dot)).astype(_zero_dtype(layout))


def _zero_dtype(layout: Layout) -> str:
    return "int8" if layout.dot.centre else "uint8"


# ---------------------------------------------------------------- build


@dataclass(frozen=True)
class _Floats:
    """The finish of `gemv_template` that makes float32 outputs.

    Attributes:
        layout: of the weights.
        uniform: whether all zero points are one, so that ``rows.sums`` are whole corrections.
        corrects: whether the codes' zero is anything but 0.
        rows: quantized rows.
        weights: packed.
        bias: padded to a vector.
        epilogue: residual add and clamp.
        other: its second branch, flat, or None.
        y: the output, flat.
    """

    layout: Layout
    uniform: bool
    corrects: bool
    rows: weight_only_rows.Rows
    weights: Any
    bias: Any
    epilogue: Epilogue
    other: Any
    y: Any

    @property
    def dtype(self) -> str:
        """Of the running accumulators."""
        return "float32"

    def combine(self, running: Any, total: Any, where: Where) -> Any:
        """fma(float32(total - zero·Σq), scale, running)."""
        lanes = self.layout.dot.lanes
        if self.corrects:
            sums = self.rows.sums[where.row * self.layout.groups + where.group]
            correction = T.broadcast(sums, lanes)
            if not self.uniform:
                correction = correction * self._zero(where)
            total = total - correction
        at = where.record + where.vector * (4 * lanes)
        bytes_ = self.weights.vload([where.panel, at], f"uint8x{4 * lanes}")
        scale = T.reinterpret(f"float32x{lanes}", bytes_)
        return _fma(T.Cast(f"float32x{lanes}", total), scale, running)

    def _zero(self, where: Where) -> Any:
        lanes, dtype = self.layout.dot.lanes, _zero_dtype(self.layout)
        at = where.record + (4 * self.layout.panel + where.vector) * lanes
        zero = self.weights.vload([where.panel, at], f"uint8x{lanes}")
        return T.Cast(f"int32x{lanes}", T.reinterpret(f"{dtype}x{lanes}", zero))

    def store(self, running: Any, row: Any, start: Any) -> None:
        """fma(running, row_scale, bias), and what is fused behind it."""
        lanes, o = self.layout.dot.lanes, self.layout.o
        scale = T.broadcast(self.rows.scale[row], lanes)
        bias = self.bias.vload([start], f"float32x{lanes}")
        value, at, valid = _fma(running, scale, bias), T.Bind(row * o + start), min(o, lanes)
        other = None if self.other is None else load(self.other, at, lanes, valid)
        if self.epilogue.kind == "float":
            value = floats(self.epilogue, value, other)
        store(self.y, at, value, valid)


def _fma(a: Any, b: Any, c: Any) -> Any:
    """One rounding, by name: contraction of a product and a sum is left to nobody."""
    return T.call_llvm_pure_intrin(str(a.ty.dtype), "llvm.fma", a, b, c)


def _plan(isa: str, problem: Problem, _target: Any, knobs: Knobs) -> Plan:
    return gemv_template.plan_of(problem, layout_of(problem, isa), knobs)


def _build(isa: str, problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The function: quantizes rows, then multiplies."""
    layout, symbols = layout_of(problem, isa), dict[str, Any]()
    constants = (
        TensorSpec((layout.panels, layout.groups * layout.record), "uint8"),
        TensorSpec((layout.width,), "float32"),
    )
    plan = _plan(isa, problem, target, knobs)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        buffers = declare(problem, constants, symbols)
        count = product(problem.inputs[0].shape[:-1], symbols)
        rows = weight_only_rows.allocate(layout, plan.staged(count))
        zero = 1 if not is_uniform(problem) else int(problem.attr("zero_point"))
        factor = zero if not is_uniform(problem) else zero - _base(problem, layout.dot)
        _quantize_rows(layout, buffers.x, rows, (plan, count), factor)
        weights, bias = buffers.constants
        finish = _Floats(
            layout, is_uniform(problem), factor != 0, rows, weights, bias,
            problem.epilogue, buffers.other, buffers.output,
        )  # fmt: skip
        job = Job(layout, MOST, rows.x, weights, finish)
        gemv_template.emit(job, plan, count)
    return builder.get()


def _quantize_rows(
    layout: Layout, x: Any, rows: weight_only_rows.Rows, count: tuple[Plan, Any], factor: int
) -> None:
    """Quantizes every row; the rows that only fill the last tile are zeros."""
    (plan, many), known = count, count[0].rows
    padded = plan.staged(many)

    def all_rows(parallel: bool) -> None:
        with (T.parallel if parallel else T.serial)(many) as row:
            if not weight_only_rows.is_gapless(layout):
                weight_only_rows.clear(layout, rows, row, 1)
            weight_only_rows.quantize(layout, x, rows, row, factor)

    if known is not None:
        all_rows(known >= PARALLEL_ROWS)
        if padded > known:
            weight_only_rows.clear(layout, rows, known, padded - known)
        return
    with T.If(many >= PARALLEL_ROWS):
        with T.Then():
            all_rows(True)
        with T.Else():
            all_rows(False)
    weight_only_rows.clear(layout, rows, many, padded - many)


KERNELS = tuple(
    Kernel(
        f"cpu.{width if isinstance(width, str) else f'w{width}'}.{isa}",
        "weight_only",
        partial(_supports, isa, width),
        partial(_pack, isa),
        partial(_build, isa),
        arch="x86_64",
        plan=partial(_plan, isa),
    )
    for isa in INSTRUCTION_SETS
    for width in (*code_books.NAMES, *range(2, 9))
)
"""By preference: VNNI before AVX-512 before AVX2."""
