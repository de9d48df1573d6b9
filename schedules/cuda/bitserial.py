"""``cuda.bitserial``: convolution and linear layers of few bits on 1-bit tensor cores.

    cost   pairs of planes / 8 of the time of 8-bit tensor cores, and the bits of memory

All planes of an output are in one block (ABQ-LLM, arXiv 2408.08554): no sums leave it. Layers of
few rows stream their weights; so the template is that of weight-only layers
(`nybble.schedules.cuda.stream`), and a convolution is a product whose rows are pixels.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.bitserial_planes import WORD
from nybble.schedules.cpu.buffers import Buffers, declare, product
from nybble.schedules.cuda import bit_planes, matrix, mma_store, stream_plan
from nybble.schedules.cuda.bit_layer import BitLayer, Bits, Held
from nybble.schedules.cuda.bit_layout import MOST, STEP, BitLayout, bit_layout_of
from nybble.schedules.cuda.bit_planes import Pixels
from nybble.schedules.cuda.stream import Stream, flat
from nybble.schedules.cuda.stream_plan import Plan, Work, pitch
from nybble.schedules.cuda.stream_ring import Source
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

SUMS = 96  # registers of a lane, at most
FEW_PAIRS, FEW_ROWS = 4, 64  # beyond both, memory is not what counts


def _supports(problem: Problem, target: Any) -> str | None:
    if target.arch != "cuda":
        return "needs an NVIDIA GPU"
    reason = matrix.refuse(problem) or mma_store.refuse(problem)
    if reason is not None:
        return reason
    layout = bit_layout_of(problem)
    if layout.pairs > MOST:
        return f"{layout.pairs} pairs of bit planes, more than {MOST}: 8 bits are as fast"
    window = layout.matrix.window
    if layout.activations.signs and window and window.is_padded and abs(window.fill) != 1:
        return f"{window.fill} in the padding is no sign"
    return None


def _slow(problem: Problem) -> str | None:
    layout, rows = bit_layout_of(problem), _rows(problem)
    used, filled = layout.matrix.elements * layout.matrix.taps, layout.records * STEP * WORD
    if 2 * used < filled:
        return f"{used} inputs fill less than half of {filled} bits"
    if layout.pairs > FEW_PAIRS and (rows is None or rows > FEW_ROWS):
        return f"{layout.pairs} pairs of bit planes take as long as 8 bits, but for few rows"
    return None


def _rows(problem: Problem) -> int | None:
    """Rows of the product, None where the batch is symbolic."""
    rows = bit_layout_of(problem).matrix.rows
    known = [row for row in rows if isinstance(row, int)]
    return prod(known) if len(known) == len(rows) else None


def _pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Planes; bias, with what signs add to it, and the epilogue's numbers; counts of weights."""
    layout, w = bit_layout_of(problem), np.asarray(constants["w"])
    bias = np.asarray(constants["bias"]).astype(np.int64)
    if layout.activations.signs:
        bias = bias + w.reshape(len(w), -1).sum(axis=1, dtype=np.int64)
    counts = np.zeros(layout.padded, np.int32)
    counts[: len(w)] = layout.counts(w) * sum(layout.factors[1])
    table = mma_store.table(problem, layout, {**constants, "bias": bias})
    return [layout.pack(w), table, counts]


# ---------------------------------------------------------------- plan


def work_of(problem: Problem) -> Work:
    """What the cost model needs to know of a layer."""
    layout = bit_layout_of(problem)
    ws, xs = len(layout.weights.coefs), len(layout.activations.coefs)
    return Work(
        rows=_rows(problem),
        blocks=layout.blocks,
        runs=layout.records,
        span=1,
        record=layout.words * 128,
        line=xs * STEP * 4,
        source=xs * STEP * 4,
        width=layout.width,
        pad=32,  # 16 lanes read 8 bytes of four rows
        sums=layout.tiles * ws * xs * 4 + xs * 6,  # with sums of activations
        fetched=4,
        fetches=xs,  # four words for each plane
        registers=2 * layout.words + 32,
    )


def _plan(problem: Problem, target: Any, knobs: Knobs) -> Plan:
    work = work_of(problem)
    return stream_plan.choose(work, target, max(1, SUMS // work.sums), knobs)


# ---------------------------------------------------------------- build


def _build(problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The function; parameters: input, second branch, planes, table, counts, entries, output."""
    layout, plan, work = bit_layout_of(problem), _plan(problem, target, knobs), work_of(problem)
    specs = (
        layout.spec,
        mma_store.table_spec(problem, layout),
        TensorSpec((layout.padded,), "int32"),
    )
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True})
        buffers = declare(problem, specs, symbols)
        buffers = replace(buffers, constants=tuple(map(flat, buffers.constants)))
        rows = product(layout.matrix.rows, symbols)
        rows = rows if isinstance(rows, int) else T.Bind(T.Cast("int32", rows))
        pixels = _pixels(problem, layout, ceil(layout.blocks / plan.across), buffers, symbols)
        known = plan.tile if work.rows is None else min(plan.tile, work.rows)
        held = Held(known, pitch(work, plan) // 4, rows)
        core = Bits(target.has("mma_b1_and"))
        layer = BitLayer(problem, plan, core, pixels, buffers, held)
        source = Source(buffers.constants[0], layout.words, 4)
        Stream(work, plan, layer, source, rows, layout.matrix.channels).emit()
    return builder.get()


def _pixels(
    problem: Problem, layout: BitLayout, columns: int, buffers: Buffers, symbols: dict[str, Any]
) -> Pixels:
    """The activations, after the kernel that makes their planes if one does."""
    count = product(problem.inputs[0].shape[:-1], symbols)
    count = count if isinstance(count, int) else T.Bind(T.Cast("int32", count))
    pixels = Pixels(layout, buffers.x, None, count)
    if not bit_planes.pays(layout, columns):
        return pixels
    size = count * (layout.line * len(layout.activations.coefs))
    pixels = replace(pixels, planes=T.alloc_buffer((size,), "uint32"))
    pixels.make()
    return pixels


KERNELS = tuple(
    Kernel("cuda.bitserial", op, _supports, _pack, _build, arch="cuda", plan=_plan, slow=_slow)
    for op in ("conv2d", "linear")
)
"""Of each op."""
