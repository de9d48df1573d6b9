"""``cuda.w2`` … ``cuda.w8``, ``cuda.nf4``, ``cuda.fp4``: weights of few bits, halves otherwise.

    weights   2 to 8 bits, or of a code book, a scale for a group or a channel; in fragment order
    product   w - zero, exact in half precision, times float16(x), summed in float32 tensor cores
    groups    sum += scale·part, in float32
    output    factor·sum + bias, then the second branch and the clamp

A matrix-vector product takes the same road: with the weights as the 16-row operand a tensor core
sums 2048 products in float32 in one instruction, where multiply-adds of halves on the lanes would
take 32, overflow at 65504 and lose more than the bound allows.

The meaning and the bound of the error are `nybble.ir.weight_only.in_half`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import code_books, numerics
from nybble.ir.weight_only import HALF
from nybble.schedules.cpu.buffers import declare, product
from nybble.schedules.cuda import stream_plan
from nybble.schedules.cuda.stream import Stream, flat
from nybble.schedules.cuda.stream_plan import OPERANDS, ROWS, Plan, Work, pitch
from nybble.schedules.cuda.stream_ring import Source
from nybble.schedules.cuda.weight_only_layer import WORDS, HalfLayer
from nybble.schedules.cuda.weight_only_layout import DEPTH, Layout, layout_of
from nybble.schedules.cuda.weight_only_sums import Given
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem

WIDTHS = range(2, 9)


def rows_of(problem: Problem) -> int | None:
    """Rows of activations, None where the batch is symbolic."""
    extents = problem.inputs[0].shape[:-1]
    known = [extent for extent in extents if isinstance(extent, int)]
    return prod(known) if len(known) == len(extents) else None


def layout(problem: Problem) -> Layout:
    """The layout of a problem: 64 channels to a record where 3 bits and few rows want it."""
    assert problem.weights is not None
    rows = rows_of(problem)
    wide = numerics.width(problem.weights.dtype)[1] == 3 and rows is not None and rows <= 2 * ROWS
    return layout_of(problem, 4 if wide else 2)


def refuse(width: int | str, problem: Problem, target: Any) -> str | None:
    """Why a kernel of a width, or of a code book, cannot compile a problem; None when it can."""
    assert problem.weights is not None
    if target.arch != "cuda":
        return "needs a GPU"
    if dict(problem.attrs).get("compute") != HALF:
        return "computes in half precision only"
    if width != (dict(problem.attrs).get("book") or numerics.width(problem.weights.dtype)[1]):
        return f"weights are {dict(problem.attrs).get('book') or problem.weights.dtype}"
    sizes = [prod(int(e) for e in spec.shape if not isinstance(e, str)) for spec in problem.tensors]
    return "a tensor of 2^31 elements and more" if max(sizes) >= 1 << 31 else None


def _pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    return layout(problem).pack(problem, constants)


# ---------------------------------------------------------------- plan


def work_of(problem: Problem) -> Work:
    """What the cost model needs to know of a layer."""
    given = layout(problem)
    return Work(
        rows=rows_of(problem),
        blocks=given.blocks,
        runs=given.runs,
        span=given.span,
        record=given.words * 128,
        line=given.span * DEPTH * 2,
        source=given.span * DEPTH * 4,
        width=given.width,
        pad=64,  # 8 lanes read 16 bytes of two rows
        sums=given.tiles * 4 * (1 + given.is_grouped) + WORDS,
        fetched=8,
        fetches=8 // given.tiles,  # registers are few beside many sums
        registers=2 * given.words + 32,
    )


def _plan(problem: Problem, target: Any, knobs: Knobs) -> Plan:
    return stream_plan.choose(work_of(problem), target, OPERANDS, knobs)


# ---------------------------------------------------------------- build


def _build(problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The function; parameters: input, second branch if any, the layout's constants, output."""
    given, plan, work = layout(problem), _plan(problem, target, knobs), work_of(problem)
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True})
        buffers = declare(problem, given.specs, symbols)
        packed, *numbers, table = map(flat, buffers.constants)
        rows = product(problem.inputs[0].shape[:-1], symbols)
        rows = rows if isinstance(rows, int) else T.Bind(T.Cast("int32", rows))
        parameters = Given(
            buffers.x, buffers.other, numbers[0] if numbers else None, table, buffers.output, rows
        )
        held = plan.tile if work.rows is None else min(plan.tile, work.rows)
        layer = HalfLayer(
            given, plan, target.has("mma_m16"), parameters, (held, pitch(work, plan) // 4),
            problem.epilogue,
        )  # fmt: skip
        source = Source(packed, given.words, given.vector)
        Stream(work, plan, layer, source, rows, given.o).emit()
    return builder.get()


def name_of(width: int | str) -> str:
    """Of the kernel for few rows."""
    return f"cuda.{width if isinstance(width, str) else f'w{width}'}"


def _kernel(width: int | str) -> Kernel:
    supports: Callable[[Problem, Any], str | None] = partial(refuse, width)
    return Kernel(
        name_of(width), "weight_only", supports, _pack, _build, arch="cuda", plan=_plan
    )  # fmt: skip


KERNELS = tuple(map(_kernel, (*WIDTHS, *code_books.NAMES)))
"""One for each width and code book, so that the name tells it."""
