"""3x3 convolution with stride 1 on x86 by integer Winograd F(2x2, 3x3), exact.

A tile of 2x2 outputs takes 16 multiplications for each pair of channels instead of 36:

    4·Y = Aᵀ [ (G·g·Gᵀ) ⊙ (Bᵀ·d·B) ] A        d: 4x4 inputs, g: 3x3 weights, Y: 2x2 outputs

    Bᵀ = 1  0 -1  0      G = 2  0  0           Aᵀ = 1  1  1  0
         0  1  1  0          1  1  1                0  1 -1 -1
         0 -1  1  0          1 -1  1
         0  1  0 -1          0  0  2

G is twice the usual matrix, so that all is integer and the result four times Y, which a shift by
two divides exactly. There are two ways to multiply:

    s16    8-bit activations become at most 1020, 8-bit weights at most 1152: ``vpmaddwd``.
           The sums between may wrap around (they are computed unsigned), 4·Y fits 32 bits.
    bytes  activations of up to 6 bits, moved up to be unsigned, and weights that are bytes when
           transformed, as those of 4 bits always are: ``vpmaddubsw``, summed in 16 bits as long as
           `nybble.schedules.cpu.winograd_range` proves from the weights; or ``vpdpbusd``.

    parallel task = (image, band of output rows, share of the channel blocks)
      staging copy of the band's input rows; its tiles transformed to V[group][16][wide][C]
      block of channels
        weights decoded and transformed to U[vector][16][C/depth][lanes][depth]
        group of ``wide`` tiles
          for each of the 16 positions: acc[wide][vectors] = Σ_C V·U, stored to M
          M transformed to 2x2 accumulators a tile; epilogue, store

Weights are transformed in every task, for the cost of about four tiles of bytes: stored as
transformed, those of 4 bits would take 3.6 times the memory.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import ceil, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.errors import ScheduleError
from nybble.ir import numerics
from nybble.schedules.cpu import epilogue, nibbles, panels, scaling, winograd_range
from nybble.schedules.cpu.buffers import declare, product
from nybble.schedules.cpu.dot import (
    AVX_VNNI,
    MADD_AVX2,
    MADD_AVX512,
    PAIRS_AVX2,
    PAIRS_AVX512,
    VNNI,
    Dot,
)
from nybble.schedules.cpu.geometry import geometry_of
from nybble.schedules.cpu.winograd_emit import emit_task
from nybble.schedules.cpu.winograd_finish import CORNERS
from nybble.schedules.cpu.winograd_plan import TAPS, Cut, Layer, Shape, cut_of
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

MOST_CHANNELS = 1024  # 4·Σ|x·w| < 2^31 for 9·1024 products of u8 and s8
FEWEST_BITS = 7  # of weights, for s16; narrower ones are as fast directly
FEWEST_TILES = {("int16", 8): 16, ("int16", 7): 64, ("int8", 2): 49, ("int8", 1): inf}
"""By how weights are multiplied and their bits: from here on it beats direct kernels and tables.

s16: 28x28 gains 20 to 40 %, 14x14 with 8 bits more than 25 %, 7x7 15 %. Bytes: 14x14 and more gain
60 to 90 % over the direct kernel and, with 2 bits, 0 to 50 % over tables, which win on 7x7 and with
1 bit.
"""
FEWEST_OTHERWISE = 16  # bytes of 3 bits and more: 7x7 gains 20 %


# ---------------------------------------------------------------- supports and pack


def _supports(dot: Dot, problem: Problem, target: Any) -> str | None:
    if target.arch != "x86_64" or not target.has(*dot.features):
        return f"needs {', '.join(dot.features)}"
    if dot.w == "int16" and target.has("avx512_vnni"):
        return "vpdpbusd is as fast without transforms"
    if dot.w == "int8" and target.has("amx_int8"):
        return "tdpbusd is faster without transforms"
    if not winograd_range.is_plain(problem):
        return "only 3x3 with stride 1, no dilation, no groups"
    return _refuse_dtypes(dot, problem) or _refuse_size(dot, problem) or epilogue.refuse(problem)


def _refuse_size(dot: Dot, problem: Problem) -> str | None:
    assert problem.weights is not None
    o, c = (int(problem.weights.shape[axis]) for axis in (0, 3))
    if any(isinstance(extent, str) for extent in problem.inputs[0].shape[1:]):
        return "more than the batch is symbolic"
    chunk = dot.lanes * dot.depth
    if not (chunk <= c <= MOST_CHANNELS) or o < dot.lanes:
        return f"takes {chunk} to {MOST_CHANNELS} channels, at least {dot.lanes} filters"
    if min(int(extent) for extent in problem.output.shape[1:3]) < 2:
        return "too small an image for a tile"
    return None


def _slow(dot: Dot, problem: Problem) -> str | None:
    assert problem.weights is not None
    rows, cols = (int(extent) for extent in problem.output.shape[1:3])
    kind = (dot.w, numerics.width(problem.weights.dtype)[1])
    fewest = FEWEST_TILES.get(kind, FEWEST_OTHERWISE)
    if ceil(rows / 2) * ceil(cols / 2) < fewest:
        return "too small an image to repay transforming the weights"
    return None


def _refuse_dtypes(dot: Dot, problem: Problem) -> str | None:
    assert problem.weights is not None
    x, w, y = problem.inputs[0].dtype, problem.weights.dtype, problem.output.dtype
    if not (epilogue.is_narrow(x) and epilogue.is_narrow(w)) or w.startswith("u"):
        return f"computes integers of up to 8 bits by signed weights, not {x} x {w}"
    if dot.w == "int16" and numerics.width(w)[1] < FEWEST_BITS:
        return f"{w} is faster multiplied directly, summed in 16 bits"
    if dot.w == "int8" and not problem.tile_flush:
        return "transformed activations or weights, or sums of their products, are too large"
    return None if y == "int32" or epilogue.is_narrow(y) else f"cannot store {y}"


def _supports_packed(dot: Dot, problem: Problem, target: Any) -> str | None:
    return nibbles.refuse(problem, dot.lanes) or _supports(dot, problem, target)


def _pack(dot: Dot, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Weights as [vectors][C/depth][9][lanes][depth], and the table of per-channel numbers.

    For bytes a third one: the biases of the last three outputs of a tile; the first is the table's.
    """
    shape = Shape(problem, geometry_of(problem), dot)
    geometry, lanes, depth = shape.geometry, dot.lanes, dot.depth
    weights = np.asarray(constants["w"])
    padded = np.zeros((geometry.o, TAPS, shape.steps * depth), np.int8)
    padded[..., : geometry.c] = weights.reshape(geometry.o, TAPS, geometry.c)
    starts = np.minimum(np.arange(shape.columns) * lanes, geometry.o - lanes)
    chosen = padded[np.add.outer(starts, np.arange(lanes))]
    chosen = chosen.reshape(len(starts), lanes, TAPS, -1, depth).transpose(0, 3, 2, 1, 4)
    first, *others = _biases(dot, problem, weights, np.asarray(constants["bias"]))
    tables = [scaling.table(problem, constants, first, geometry.o)]
    if others:
        tables.append(np.stack([scaling.wrapped(row, "int32") for row in others]))
    if shape.layout is None:
        return [np.ascontiguousarray(chosen).reshape(-1, shape.chunk), *tables]
    return [panels.pack(shape.layout, chosen.reshape(len(starts), -1)), *tables]


def _biases(
    dot: Dot, problem: Problem, weights: NDArray[Any], bias: NDArray[Any]
) -> list[NDArray[Any]]:
    """The bias, for bytes one for each output of a tile: without what offsets and shifts add.

    Raises:
        ScheduleError: windows of ``tile_flush`` steps may overflow.
    """
    if dot.w == "int16":
        return [bias]
    u = winograd_range.transformed(weights)
    if not winograd_range.fits(problem, u, problem.tile_flush):
        raise ScheduleError(f"windows of {problem.tile_flush} steps go beyond 16 bits")
    dtype = problem.inputs[0].dtype
    moved = dot.offset(dtype) * weights.reshape(len(weights), -1).sum(1, dtype=np.int64)
    return list(bias.astype(np.int64) - moved - winograd_range.surplus(dtype, u))


def _specs(shape: Shape) -> tuple[TensorSpec, ...]:
    layout, o = shape.layout, shape.geometry.o
    if layout is None:
        weights = TensorSpec((shape.columns * shape.steps * TAPS, shape.chunk), "int8")
    else:
        weights = TensorSpec((shape.columns, layout.packed), "uint8")
    table = TensorSpec((scaling.table_rows(shape.problem.epilogue), o), "int32")
    corners = () if shape.dot.w == "int16" else (TensorSpec((CORNERS - 1, o), "int32"),)
    return (weights, table, *corners)


# ---------------------------------------------------------------- build


def _plan(dot: Dot, problem: Problem, _target: Any, knobs: Knobs) -> Cut:
    return cut_of(Shape(problem, geometry_of(problem), dot), knobs)


def _build(dot: Dot, problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, constants, output."""
    shape = Shape(problem, geometry_of(problem), dot)
    cut = _plan(dot, problem, target, knobs)
    bands, blocks = ceil(shape.total / cut.rows), ceil(shape.columns / cut.vectors)
    splits = min(cut.splits, blocks)
    share = ceil(blocks / splits)
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        buffers = declare(problem, _specs(shape), symbols)
        layer = Layer(problem, shape.geometry, dot, cut, buffers)
        loop = T.parallel if cut.parallel else T.serial
        with loop(product(shape.geometry.images, symbols) * bands * splits) as task:
            run = tirx.floordiv(task, splits)
            block = tirx.min(tirx.floormod(task, splits) * share, blocks - share)
            first = tirx.min(tirx.floormod(run, bands) * cut.rows, shape.total - cut.rows)
            emit_task(layer, (tirx.floordiv(run, bands), first), (block, share))
    return builder.get()


WIDE_MADDS = tuple(replace(dot, w="int16") for dot in (MADD_AVX512, MADD_AVX2))
BYTES = (VNNI, AVX_VNNI, PAIRS_AVX512, PAIRS_AVX2)


def _family(dot: Dot) -> Kernel:
    return Kernel(
        f"cpu.int8.winograd.{dot.name}",
        "conv2d",
        partial(_supports, dot),
        partial(_pack, dot),
        partial(_build, dot),
        arch="x86_64",
        plan=partial(_plan, dot),
        slow=partial(_slow, dot),
    )


def _packed(dot: Dot) -> Kernel:
    """Also reads and writes 4 bits two a byte."""
    family = _family(dot)
    return replace(
        family,
        name=f"{family.name}.packed",
        supports=partial(_supports_packed, dot),
        forms=frozenset({"values", "packed"}),
    )


KERNELS = tuple(map(_family, WIDE_MADDS))
"""By preference, for 8 bits."""
LOW = (*map(_family, BYTES), *map(_packed, (VNNI, PAIRS_AVX2)))
"""By preference, for operands that are bytes when transformed."""
