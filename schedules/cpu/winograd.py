"""3x3 convolution with stride 1 on x86 by integer Winograd F(2x2, 3x3), exact.

A tile of 2x2 outputs takes 16 multiplications for each pair of channels instead of 36:

    4·Y = Aᵀ [ (G·g·Gᵀ) ⊙ (Bᵀ·d·B) ] A        d: 4x4 inputs, g: 3x3 weights, Y: 2x2 outputs

    Bᵀ = 1  0 -1  0      G = 2  0  0           Aᵀ = 1  1  1  0
         0  1  1  0          1  1  1                0  1 -1 -1
         0 -1  1  0          1 -1  1
         0  1  0 -1          0  0  2

G is twice the usual matrix, so that all is integer and the result four times Y, which a shift by
two divides exactly. Inputs of 8 bits become at most 1020, weights at most 1152: s16, multiplied by
``vpmaddwd``. The sums between may wrap around (they are computed unsigned), 4·Y fits 32 bits.

    parallel task = (image, band of output rows, share of the channel blocks)
      staging copy of the band's input rows; its tiles transformed to V[tile][16][C]
      block of channels
        weights decoded and transformed to U[vector][16][C/2][lanes][2]
        group of ``wide`` tiles
          for each of the 16 positions: acc[wide][vectors] = Σ_C V·U, stored to M
          M transformed to 2x2 accumulators a tile; epilogue, store

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu import epilogue, panels
from nybble.schedules.cpu.blocking import SERIAL_CYCLES, TASKS
from nybble.schedules.cpu.buffers import declare, product
from nybble.schedules.cpu.dot import MADD_AVX2, MADD_AVX512, Dot
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.cpu.winograd_emit import (
    SPOTS,
    TAPS,
    Layer,
    emit_task,
    layout_of,
    pairs_of,
    vectors_of,
)
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

MOST_CHANNELS = 1024  # 4·Σ|x·w| < 2^31 for 9·1024 products of u8 and s8
FEWEST_TILES = 64  # fewer: 28x28 gains 20 % over the direct kernel, 14x14 nothing, 7x7 loses 30 %
FEWEST_BITS = 7
V_BYTES = 192 * 1024  # the transformed inputs of a task should stay in the second-level cache


# ---------------------------------------------------------------- supports and pack


def _supports(dot: Dot, problem: Problem, target: Any) -> str | None:
    if target.arch != "x86_64" or not target.has(*dot.features):
        return f"needs {', '.join(dot.features)}"
    if target.has("avx512_vnni"):
        return "vpdpbusd is as fast without transforms"
    return _refuse_window(dot, problem) or _refuse_dtypes(problem) or epilogue.refuse(problem)


def _refuse_window(dot: Dot, problem: Problem) -> str | None:
    assert problem.weights is not None
    o, height, width, c = (int(extent) for extent in problem.weights.shape)
    attrs = dict(problem.attrs)
    plain = tuple(attrs["strides"]) == tuple(attrs["dilation"]) == (1, 1) and attrs["groups"] == 1
    if (height, width) != (3, 3) or not plain:
        return "only 3x3 with stride 1, no dilation, no groups"
    if any(isinstance(extent, str) for extent in problem.inputs[0].shape[1:]):
        return "more than the batch is symbolic"
    if not (2 * dot.lanes <= c <= MOST_CHANNELS) or o < dot.lanes:
        return f"takes {2 * dot.lanes} to {MOST_CHANNELS} channels, at least {dot.lanes} filters"
    rows, cols = (int(extent) for extent in problem.output.shape[1:3])
    if min(rows, cols) < 2 or ceil(rows / 2) * ceil(cols / 2) < FEWEST_TILES:
        return "too small an image to repay transforming the weights"
    return None


def _refuse_dtypes(problem: Problem) -> str | None:
    assert problem.weights is not None
    x, w, y = problem.inputs[0].dtype, problem.weights.dtype, problem.output.dtype
    if not (epilogue.is_narrow(x) and epilogue.is_narrow(w)) or w.startswith("u"):
        return f"computes integers of up to 8 bits by signed weights, not {x} x {w}"
    if numerics.width(w)[1] < FEWEST_BITS:
        return f"{w} is faster multiplied directly, summed in 16 bits"
    return None if y == "int32" or epilogue.is_narrow(y) else f"cannot store {y}"


def _pack(dot: Dot, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Weights as [vectors][C/2][9][lanes][2], and the table of per-channel numbers."""
    geometry = geometry_of(problem)
    weights = np.asarray(constants["w"])
    pairs, lanes = pairs_of(geometry), dot.lanes
    padded = np.zeros((geometry.o, TAPS, 2 * pairs), np.int8)
    padded[..., : geometry.c] = weights.reshape(geometry.o, TAPS, geometry.c)
    starts = np.minimum(np.arange(vectors_of(geometry, dot)) * lanes, geometry.o - lanes)
    chosen = padded[np.add.outer(starts, np.arange(lanes))]
    chosen = chosen.reshape(len(starts), lanes, TAPS, pairs, 2).transpose(0, 3, 2, 1, 4)
    rows = [np.asarray(constants["bias"]), *epilogue.scaling_rows(problem, constants, geometry.o)]
    table = np.stack([epilogue.wrapped(row, "int32") for row in rows])
    layout = layout_of(problem, geometry, dot)
    if layout is None:
        return [np.ascontiguousarray(chosen).reshape(-1, 2 * lanes), table]
    return [panels.pack(layout, chosen.reshape(len(starts), -1)), table]


def _specs(problem: Problem, geometry: Geometry, dot: Dot) -> tuple[TensorSpec, TensorSpec]:
    layout, vectors = layout_of(problem, geometry, dot), vectors_of(geometry, dot)
    if layout is None:
        weights = TensorSpec((vectors * pairs_of(geometry) * TAPS, 2 * dot.lanes), "int8")
    else:
        weights = TensorSpec((vectors, layout.packed), "uint8")
    return weights, TensorSpec((epilogue.table_rows(problem.epilogue), geometry.o), "int32")


# ---------------------------------------------------------------- build


def _build(base: Dot, problem: Problem, _target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, weights, table, output."""
    geometry = geometry_of(problem)
    dot = replace(base, w="int16")
    total = int(geometry.static_rows or 2)
    parallel = knobs.pick("parallel", (False, True), _cycles(geometry, dot) > SERIAL_CYCLES)
    rows = knobs.pick("rows", _row_choices(total), _rows_wanted(geometry, total, parallel))
    bands = ceil(total / rows)
    vectors = min(2, vectors_of(geometry, dot))
    blocks = ceil(vectors_of(geometry, dot) / vectors)
    counts = [count for count in range(1, blocks + 1) if count in (1, 2, 4, 8, blocks)]
    missing = TASKS // bands if parallel else 1
    splits = knobs.pick("splits", counts, max(c for c in counts if c <= max(missing, 1)))
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        buffers = declare(problem, _specs(problem, geometry, dot), symbols)
        layer = Layer(problem, geometry, dot, rows, 1, vectors, buffers)
        wide = (dot.registers - vectors - 2) // vectors
        layer = replace(layer, wide=min(wide, layer.tiles))
        share = ceil(blocks / splits)
        loop = T.parallel if parallel else T.serial
        with loop(product(geometry.images, symbols) * bands * splits) as task:
            run = tirx.floordiv(task, splits)
            block = tirx.min(tirx.floormod(task, splits) * share, blocks - share)
            first = tirx.min(tirx.floormod(run, bands) * rows, total - rows)
            emit_task(layer, (tirx.floordiv(run, bands), first), (block, share))
    return builder.get()


def _cycles(geometry: Geometry, dot: Dot) -> float:
    tiles = ceil(int(geometry.static_rows or 2) / 2) * ceil(geometry.cols / 2)
    return tiles * SPOTS * geometry.c * geometry.o / (2 * dot.lanes) * dot.cost


def _row_choices(total: int) -> list[int]:
    """Rows of a band: all, or an even number."""
    return sorted({total, *range(2, total, 2)})


def _rows_wanted(geometry: Geometry, total: int, parallel: bool) -> int:
    """Rows whose transformed inputs fit; in equal bands, enough of them for a few threads."""
    pair = ceil(geometry.cols / 2) * SPOTS * geometry.c * 2  # bytes of two rows
    most = max(2, V_BYTES // pair * 2)
    bands = max(ceil(total / most), min(TASKS // 4, total // 8) if parallel else 1)
    even = ceil(total / bands / 2) * 2
    return total if even >= total else even


KERNELS = tuple(
    Kernel(
        f"cpu.int8.winograd.{dot.name}",
        "conv2d",
        partial(_supports, dot),
        partial(_pack, dot),
        partial(_build, dot),
        arch="x86_64",
    )
    for dot in (MADD_AVX512, MADD_AVX2)
)
"""By preference; where VNNI is there, its direct convolution is as fast."""
