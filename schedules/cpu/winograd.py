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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu import epilogue, panels, staging
from nybble.schedules.cpu.blocking import SERIAL_CYCLES, TASKS
from nybble.schedules.cpu.buffers import Buffers, declare, load, product, store
from nybble.schedules.cpu.dot import MADD_AVX2, MADD_AVX512, Dot
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

SPOTS = 16  # positions of a transformed 4x4 tile
TAPS = 9
MOST_CHANNELS = 1024  # 4·Σ|x·w| < 2^31 for 9·1024 products of u8 and s8
FEWEST_TILES = 64  # fewer: 28x28 gains 20 % over the direct kernel, 14x14 nothing, 7x7 loses 30 %
FEWEST_BITS = 7
V_BYTES = 192 * 1024  # the transformed inputs of a task should stay in the second-level cache
Grid = list[list[Any]]


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


def _pairs(geometry: Geometry) -> int:
    return ceil(geometry.c / 2)


def _spot(geometry: Geometry, dot: Dot) -> int:
    """Elements between two positions of U; without the extra line they would share cache sets."""
    return (_pairs(geometry) * 2 + 4) * dot.lanes


def _vectors(geometry: Geometry, dot: Dot) -> int:
    return ceil(geometry.o / dot.lanes)


def _layout(problem: Problem, geometry: Geometry, dot: Dot) -> panels.Panels | None:
    assert problem.weights is not None
    chunk = 2 * dot.lanes
    length = _pairs(geometry) * TAPS * chunk
    return panels.panels_of(problem.weights.dtype, length, chunk, geometry.c % 2 == 1)


def _pack(dot: Dot, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Weights as [vectors][C/2][9][lanes][2], and the table of per-channel numbers."""
    geometry = geometry_of(problem)
    weights = np.asarray(constants["w"])
    pairs, lanes = _pairs(geometry), dot.lanes
    padded = np.zeros((geometry.o, TAPS, 2 * pairs), np.int8)
    padded[..., : geometry.c] = weights.reshape(geometry.o, TAPS, geometry.c)
    starts = np.minimum(np.arange(_vectors(geometry, dot)) * lanes, geometry.o - lanes)
    chosen = padded[np.add.outer(starts, np.arange(lanes))]
    chosen = chosen.reshape(len(starts), lanes, TAPS, pairs, 2).transpose(0, 3, 2, 1, 4)
    rows = [np.asarray(constants["bias"]), *epilogue.scaling_rows(problem, constants, geometry.o)]
    table = np.stack([epilogue.wrapped(row, "int32") for row in rows])
    layout = _layout(problem, geometry, dot)
    if layout is None:
        return [np.ascontiguousarray(chosen).reshape(-1, 2 * lanes), table]
    return [panels.pack(layout, chosen.reshape(len(starts), -1)), table]


def _specs(problem: Problem, geometry: Geometry, dot: Dot) -> tuple[TensorSpec, TensorSpec]:
    layout, vectors = _layout(problem, geometry, dot), _vectors(geometry, dot)
    if layout is None:
        weights = TensorSpec((vectors * _pairs(geometry) * TAPS, 2 * dot.lanes), "int8")
    else:
        weights = TensorSpec((vectors, layout.packed), "uint8")
    return weights, TensorSpec((epilogue.table_rows(problem.epilogue), geometry.o), "int32")


# ---------------------------------------------------------------- build


@dataclass(frozen=True)
class _Layer:
    """Everything that the emitting functions share.

    Attributes:
        dot: on s16 operands.
        rows: output rows of a task's band.
        wide: tiles that are multiplied together.
        vectors: vectors of channels in a block.
    """

    problem: Problem
    geometry: Geometry
    dot: Dot
    rows: int
    wide: int
    vectors: int
    buffers: Buffers

    @property
    def across(self) -> int:
        """Tiles in a row; the last one overlaps its predecessor where the width is odd."""
        return ceil(self.geometry.cols / 2)

    @property
    def tiles(self) -> int:
        """Tiles of a band."""
        return ceil(self.rows / 2) * self.across

    def place(self, tile: Any) -> tuple[Any, Any]:
        """First output row (in the band) and column of a tile."""
        row = tirx.min(tirx.floordiv(tile, self.across) * 2, self.rows - 2)
        return row, tirx.min(tirx.floormod(tile, self.across) * 2, self.geometry.cols - 2)


def _build(base: Dot, problem: Problem, _target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, weights, table, output."""
    geometry = geometry_of(problem)
    dot = replace(base, w="int16")
    total = int(geometry.static_rows or 2)
    parallel = knobs.pick("parallel", (False, True), _cycles(geometry, dot) > SERIAL_CYCLES)
    rows = knobs.pick("rows", _row_choices(total), _rows_wanted(geometry, total, parallel))
    bands = ceil(total / rows)
    vectors = min(2, _vectors(geometry, dot))
    blocks = ceil(_vectors(geometry, dot) / vectors)
    counts = [count for count in range(1, blocks + 1) if count in (1, 2, 4, 8, blocks)]
    missing = TASKS // bands if parallel else 1
    splits = knobs.pick("splits", counts, max(c for c in counts if c <= max(missing, 1)))
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        buffers = declare(problem, _specs(problem, geometry, dot), symbols)
        layer = _Layer(problem, geometry, dot, rows, 1, vectors, buffers)
        wide = (dot.registers - vectors - 2) // vectors
        layer = replace(layer, wide=min(wide, layer.tiles))
        share = ceil(blocks / splits)
        loop = T.parallel if parallel else T.serial
        with loop(product(geometry.images, symbols) * bands * splits) as task:
            run = tirx.floordiv(task, splits)
            block = tirx.min(tirx.floormod(task, splits) * share, blocks - share)
            first = tirx.min(tirx.floormod(run, bands) * rows, total - rows)
            _task(layer, (tirx.floordiv(run, bands), first), (block, share))
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


def _task(layer: _Layer, where: tuple[Any, Any], blocks: tuple[Any, int]) -> None:
    """One task: its staging copy, the transforms, and the blocks of channels."""
    geometry, (image, first) = layer.geometry, where
    v = T.alloc_buffer((layer.tiles * SPOTS * geometry.c + 2,), "int16", layout=None)
    size = layer.vectors * SPOTS * _spot(geometry, layer.dot)
    u = T.alloc_buffer((size,), "int16", layout=None)
    sums = T.alloc_buffer(
        (SPOTS * layer.wide * layer.vectors * layer.dot.lanes,), "int32", layout=None
    )
    _transform_input(layer, v, image * (geometry.height * geometry.width * geometry.c), first)
    total, groups = int(geometry.static_rows or 2), ceil(layer.tiles / layer.wide)
    out = (image * total + first) * (geometry.cols * geometry.o)
    with T.serial(blocks[1]) as b:
        last = _vectors(geometry, layer.dot) - layer.vectors
        vector = T.Bind(tirx.min((blocks[0] + b) * layer.vectors, last))
        _transform_weights(layer, u, vector)
        with T.serial(groups) as group:
            tile = T.Bind(tirx.min(group * layer.wide, layer.tiles - layer.wide))
            _multiply(layer, v, u, sums, tile)
            for i in range(layer.vectors):
                _finish(layer, sums, (i, vector + i), tile, out)


# ---------------------------------------------------------------- transforms


def _transform_input(layer: _Layer, v: Any, image: Any, first: Any) -> None:
    """The band's tiles as V[tile][16][C], by way of a padded copy of its input rows."""
    geometry, dtype = layer.geometry, layer.problem.inputs[0].stored.dtype
    plain = replace(layer.dot, x=dtype)  # the copy keeps the input's type
    size = staging.staged_size(geometry, plain, layer.rows)
    rows = T.alloc_buffer((size,), dtype, layout=None)
    source = (layer.buffers.x, layer.problem.inputs[0].dtype)
    staging.stage(geometry, plain, source, rows, layer.rows, (image, first))
    lanes = 2 * layer.dot.lanes
    pitch = staging.pitch(geometry, True)
    with T.serial(layer.tiles) as tile, T.serial(ceil(geometry.c / lanes)) as part:
        row, col = layer.place(tile)
        channel = tirx.min(part * lanes, geometry.c - lanes)
        base = T.Bind(row * pitch + col * geometry.c + channel)
        inputs = [
            [
                T.Cast(f"int16x{lanes}", rows.vload([base + i * pitch + j * geometry.c],
                                                    f"{dtype}x{lanes}"))
                for j in range(4)
            ]
            for i in range(4)
        ]  # fmt: skip
        start = T.Bind(tile * (SPOTS * geometry.c) + channel)
        for spot, value in enumerate(_both(_bt, inputs)):
            T.buffer_store(v, value, [T.ramp(start + spot * geometry.c, 1, lanes)])


def _transform_weights(layer: _Layer, u: Any, vector: Any) -> None:
    """A block of weights as U[vector][16][C/2][lanes][2]."""
    geometry, lanes = layer.geometry, 2 * layer.dot.lanes
    pairs, layout = _pairs(geometry), _layout(layer.problem, geometry, layer.dot)
    decoded = None
    if layout is not None:
        decoded = T.alloc_buffer((layout.decoded,), "int8", layout=None)
    for i in range(layer.vectors):
        if layout is not None:
            panels.decode(layout, layer.buffers.constants[0], vector + i, decoded, 0)
        with T.serial(pairs) as pair:

            def tap(at: int, pair: Any = pair, i: int = i) -> Any:
                if decoded is not None:
                    raw = decoded.vload([(pair * TAPS + at) * lanes], f"int8x{lanes}")
                else:
                    row = ((vector + i) * pairs + pair) * TAPS + at
                    raw = layer.buffers.constants[0].vload([row, tirx.const(0)], f"int8x{lanes}")
                return T.Bind(T.Cast(f"int16x{lanes}", raw))

            grid = [[tap(3 * y + x) for x in range(3)] for y in range(3)]
            for spot, value in enumerate(_both(_g, grid)):
                at = (i * SPOTS + spot) * _spot(geometry, layer.dot) + pair * lanes
                T.buffer_store(u, value, [T.ramp(at, 1, lanes)])


def _both(line: Any, grid: Grid) -> list[Any]:
    """Applies a transform to the columns, then to the rows; row by row."""
    columns = [line([row[j] for row in grid]) for j in range(len(grid[0]))]
    turned = [[column[i] for column in columns] for i in range(len(columns[0]))]
    return [value for row in turned for value in line(row)]


def _bt(d: Sequence[Any]) -> list[Any]:
    return [T.Bind(x) for x in (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3])]


def _g(w: Sequence[Any]) -> list[Any]:
    ends = T.Bind(w[0] + w[2])
    return [T.Bind(x) for x in (w[0] + w[0], ends + w[1], ends - w[1], w[2] + w[2])]


def _at(m: Sequence[Any]) -> list[Any]:
    return [T.Bind(m[0] + m[1] + m[2]), T.Bind(m[1] - m[2] - m[3])]


# ---------------------------------------------------------------- products and outputs


def _multiply(layer: _Layer, v: Any, u: Any, sums: Any, tile: Any) -> None:
    """M[16][wide][vectors] of a group of tiles."""
    geometry, dot, wide, vectors = layer.geometry, layer.dot, layer.wide, layer.vectors
    pairs, lanes = _pairs(geometry), 2 * layer.dot.lanes
    with T.serial(SPOTS) as spot:
        acc = T.alloc_buffer((wide * vectors,), dot.vector, scope="local", layout=None)
        with T.unroll(wide * vectors) as slot:
            T.buffer_store(acc, T.broadcast(tirx.const(0, "int32"), dot.lanes), [slot])
        x = T.Bind(tile * (SPOTS * geometry.c) + spot * geometry.c)
        size = _spot(geometry, dot)
        panel = T.Bind(spot * size)
        with T.serial(pairs) as pair:
            step = [panel + i * (SPOTS * size) + pair * lanes for i in range(vectors)]
            weights = [T.Bind(u.vload([at], f"int16x{lanes}")) for at in step]
            with T.unroll(wide) as p:
                value = T.Bind(dot.broadcast(v, x + p * (SPOTS * geometry.c) + pair * 2))
                for i, w in enumerate(weights):
                    slot = p * vectors + i
                    T.buffer_store(acc, dot.apply(dot, acc[slot], value, w), [slot])
        with T.unroll(wide * vectors) as slot:
            at = (spot * (wide * vectors) + slot) * dot.lanes
            T.buffer_store(sums, acc[slot], [T.ramp(at, 1, dot.lanes)])


def _finish(layer: _Layer, sums: Any, block: tuple[int, Any], tile: Any, out: Any) -> None:
    """The outputs of a group of tiles in one vector of channels."""
    geometry, dot = layer.geometry, layer.dot
    lanes, (i, vector) = dot.lanes, block
    start = T.Bind(tirx.min(vector * lanes, geometry.o - lanes))
    table = layer.buffers.constants[1]
    bias = T.Bind(table.vload([tirx.const(0), start], dot.vector))
    column = epilogue.Column(layer.problem, table, start, lanes)
    with T.serial(layer.wide) as p:
        row, col = layer.place(tile + p)
        index = T.Bind(out + (row * geometry.cols + col) * geometry.o + start)
        base = T.Bind((p * layer.vectors + i) * lanes)
        step = layer.wide * layer.vectors * lanes

        def sum_at(spot: int, base: Any = base, step: int = step) -> Any:
            found = sums.vload([base + spot * step], dot.vector)
            return T.reinterpret(f"uint32x{lanes}", found)  # these sums may wrap around

        grid = [[sum_at(4 * y + x) for x in range(4)] for y in range(4)]
        for spot, value in enumerate(_both(_at, grid)):
            total = T.reinterpret(dot.vector, value)
            acc = T.shift_right(total, T.broadcast(tirx.const(2, "int32"), lanes)) + bias
            there = index + ((spot // 2) * geometry.cols + spot % 2) * geometry.o
            other = None
            if layer.buffers.other is not None:
                other = load(layer.buffers.other, there, lanes, lanes)
            store(layer.buffers.output, there, column.apply(T.Bind(acc), other), lanes)


KERNELS = tuple(
    Kernel(
        f"cpu.int8.winograd.{dot.name}",
        "conv2d",
        partial(_supports, dot),
        partial(_pack, dot),
        partial(_build, dot),
    )
    for dot in (MADD_AVX512, MADD_AVX2)
)
"""By preference; where VNNI is there, its direct convolution is as fast."""
