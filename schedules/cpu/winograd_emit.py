"""The loop nest of `nybble.schedules.cpu.winograd`, emitted as TensorIR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import epilogue, panels, staging
from nybble.schedules.cpu.buffers import Buffers, load, store
from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.kernel import Problem

SPOTS = 16  # positions of a transformed 4x4 tile
TAPS = 9
Grid = list[list[Any]]


def pairs_of(geometry: Geometry) -> int:
    """Pairs of input channels."""
    return ceil(geometry.c / 2)


def _spot(geometry: Geometry, dot: Dot) -> int:
    """Elements between two positions of U; without the extra line they would share cache sets."""
    return (pairs_of(geometry) * 2 + 4) * dot.lanes


def vectors_of(geometry: Geometry, dot: Dot) -> int:
    """Vectors of output channels."""
    return ceil(geometry.o / dot.lanes)


def layout_of(problem: Problem, geometry: Geometry, dot: Dot) -> panels.Panels | None:
    """How the weights of a vector of channels are packed; None for 8 bits."""
    assert problem.weights is not None
    chunk = 2 * dot.lanes
    length = pairs_of(geometry) * TAPS * chunk
    return panels.panels_of(problem.weights.dtype, length, chunk, geometry.c % 2 == 1)


@dataclass(frozen=True)
class Layer:
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


def emit_task(layer: Layer, where: tuple[Any, Any], blocks: tuple[Any, int]) -> None:
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
        last = vectors_of(geometry, layer.dot) - layer.vectors
        vector = T.Bind(tirx.min((blocks[0] + b) * layer.vectors, last))
        _transform_weights(layer, u, vector)
        with T.serial(groups) as group:
            tile = T.Bind(tirx.min(group * layer.wide, layer.tiles - layer.wide))
            _multiply(layer, v, u, sums, tile)
            for i in range(layer.vectors):
                _finish(layer, sums, (i, vector + i), tile, out)


# ---------------------------------------------------------------- transforms


def _transform_input(layer: Layer, v: Any, image: Any, first: Any) -> None:
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


def _transform_weights(layer: Layer, u: Any, vector: Any) -> None:
    """A block of weights as U[vector][16][C/2][lanes][2]."""
    geometry, lanes = layer.geometry, 2 * layer.dot.lanes
    pairs, layout = pairs_of(geometry), layout_of(layer.problem, geometry, layer.dot)
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


def _multiply(layer: Layer, v: Any, u: Any, sums: Any, tile: Any) -> None:
    """M[16][wide][vectors] of a group of tiles."""
    geometry, dot, wide, vectors = layer.geometry, layer.dot, layer.wide, layer.vectors
    pairs, lanes = pairs_of(geometry), 2 * layer.dot.lanes
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


def _finish(layer: Layer, sums: Any, block: tuple[int, Any], tile: Any, out: Any) -> None:
    """The outputs of a group of tiles in one vector of channels."""
    geometry, dot = layer.geometry, layer.dot
    lanes, (i, vector) = dot.lanes, block
    start = T.Bind(tirx.min(vector * lanes, geometry.o - lanes))
    table = layer.buffers.constants[1]
    bias = T.Bind(table.vload([tirx.const(0), start], dot.vector))
    column = epilogue.Column(layer.problem, table, start, lanes, entries=layer.buffers.entries)
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
