"""The blocked loop nest of `nybble.schedules.cpu.conv`, emitted as TensorIR.

parallel task = (image, rows, channel blocks)
  staging copy of the task's input rows, if needed
  group, channel block, tile row, tile column
    acc[high·wide][vectors] = bias
    tap row, tap column, k:  w[vectors] loaded, x[high·wide] broadcast, acc = dot(acc, x, w)
    epilogue, store
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import epilogue, staging
from nybble.schedules.cpu.blocking import Plan, Tile, plan_of, vectors_of
from nybble.schedules.cpu.buffers import Buffers, declare, load, product, store
from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.kernel import Knobs, Problem, TensorSpec


@dataclass(frozen=True)
class _Layer:
    """Everything that the emitting functions share."""

    problem: Problem
    geometry: Geometry
    dot: Dot
    plan: Plan
    staged: bool
    buffers: Buffers

    @property
    def weights(self) -> Any:
        """The packed weights."""
        return self.buffers.constants[0]

    @property
    def table(self) -> Any:
        """Bias and scaling, a column for each output channel."""
        return self.buffers.constants[1]

    @property
    def vectors(self) -> int:
        """Vectors of output channels in a group."""
        return vectors_of(self.geometry, self.dot)


@dataclass(frozen=True)
class _Segment:
    """Tasks of the same shape: ``count`` runs of ``rows`` output rows, cut into ``tile``s."""

    tile: Tile
    rows: int
    count: Any
    first: Callable[[Any], Any]


def table_shape(problem: Problem, geometry: Geometry, dot: Dot) -> tuple[int, int]:
    """Shape of the packed table; narrow groups read a little beyond the last channel."""
    channels = geometry.groups * geometry.o
    spare = dot.lanes if geometry.o < dot.lanes else 0
    return epilogue.table_rows(problem.epilogue), channels + spare


def weights_shape(geometry: Geometry, dot: Dot) -> tuple[int, int]:
    """Shape of the packed weights: one row for each vector operand of a dot product."""
    taps = geometry.tap_rows * geometry.tap_cols * geometry.runs(dot.depth)
    return geometry.groups * vectors_of(geometry, dot) * taps, dot.lanes * dot.depth


def build(problem: Problem, dot: Dot, knobs: Knobs) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, weights, table, output."""
    geometry = geometry_of(problem)
    staged = staging.needs_staging(geometry, dot, problem.inputs[0].dtype)
    plan = plan_of(geometry, dot, staged, knobs)
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        constants = (
            TensorSpec(weights_shape(geometry, dot), dot.w),
            TensorSpec(table_shape(problem, geometry, dot), dot.acc),
        )
        buffers = declare(problem, constants, symbols)
        layer = _Layer(problem, geometry, dot, plan, staged, buffers)
        images = product(geometry.images, symbols)
        for segment in _segments(layer, product(geometry.rows, symbols)):
            _tasks(layer, segment, images)
    return builder.get()


def _segments(layer: _Layer, rows: Any) -> Iterator[_Segment]:
    """All rows; a symbolic number of rows is cut into full tiles and single rows."""
    plan = layer.plan
    if plan.rows is not None:
        last = rows - plan.rows
        size = plan.rows
        yield _Segment(plan.tile, size, ceil(rows / size), lambda i: tirx.min(i * size, last))
        return
    high = plan.tile.high
    full = tirx.floordiv(rows, high)
    yield _Segment(plan.tile, high, full, lambda i: i * high)
    if high > 1:
        yield _Segment(plan.single, 1, rows - full * high, lambda i: full * high + i)


def _tasks(layer: _Layer, segment: _Segment, images: Any) -> None:
    """All tasks of a segment, on one or several threads."""
    blocks = ceil(layer.vectors / segment.tile.vectors)
    splits = min(layer.plan.splits, blocks)
    share = ceil(blocks / splits)
    loop = T.parallel if layer.plan.parallel else T.serial
    with loop(images * segment.count * splits) as task:
        run = tirx.floordiv(task, splits)
        block = tirx.min(tirx.floormod(task, splits) * share, blocks - share)
        image = tirx.floordiv(run, segment.count)
        first = segment.first(tirx.floormod(run, segment.count))
        _task(layer, segment, (image, first), (block, share))


def _task(
    layer: _Layer, segment: _Segment, where: tuple[Any, Any], blocks: tuple[Any, int]
) -> None:
    """One task: its staging copy and its tiles."""
    geometry, tile, (image, first) = layer.geometry, segment.tile, where
    rows, cols = segment.rows, geometry.cols
    pitch = staging.pitch(geometry, layer.staged)
    picture = image * (geometry.height * geometry.width * geometry.c)
    source, origin = layer.buffers.x, picture + first * (geometry.stride[0] * pitch)
    if layer.staged:
        size = staging.staged_size(geometry, layer.dot, rows)
        source, origin = T.alloc_buffer((size,), layer.dot.x, layout=None), 0
        staging.stage(geometry, layer.dot, layer.buffers.x, source, rows, (picture, first))
    channels = geometry.groups * geometry.o
    all_rows = _rows_of_output(layer)
    with T.serial(geometry.groups) as group, T.serial(blocks[1]) as b:
        vector = tirx.min((blocks[0] + b) * tile.vectors, layer.vectors - tile.vectors)
        with T.serial(ceil(rows / tile.high)) as ty, T.serial(ceil(cols / tile.wide)) as tx:
            row = tirx.min(ty * tile.high, rows - tile.high)
            col = tirx.min(tx * tile.wide, cols - tile.wide)
            x = (
                origin
                + row * (geometry.stride[0] * pitch)
                + col * (geometry.stride[1] * geometry.c)
            )
            x = x + group * (geometry.c // geometry.groups)
            y = ((image * all_rows + first + row) * cols + col) * channels
            _Tile(layer, tile, source, (x, y), (group, vector)).emit()


def _rows_of_output(layer: _Layer) -> Any:
    """Output rows of one image; with symbolic rows there is one image, and no step is needed."""
    rows = layer.geometry.static_rows
    return 0 if rows is None else rows


class _Tile:
    """One register tile: accumulators in registers from the bias to the store.

    Pixels are ``unroll`` loops and shared operands are bound once, so the IR stays small for TVM's
    passes, which cost more than LLVM does.
    """

    def __init__(
        self, layer: _Layer, tile: Tile, source: Any, at: tuple[Any, Any], block: tuple[Any, Any]
    ):
        self.layer, self.tile, self.source = layer, tile, source
        self.x, self.y = T.Bind(at[0] + 0), T.Bind(at[1] + 0)
        group, vector = T.Bind(block[0] + 0), T.Bind(block[1] + 0)
        geometry, dot = layer.geometry, layer.dot
        last = max(geometry.o - dot.lanes, 0)
        starts = [tirx.min((vector + v) * dot.lanes, last) for v in range(tile.vectors)]
        self.starts = [T.Bind(group * geometry.o + start) for start in starts]
        steps = geometry.tap_rows * geometry.tap_cols * geometry.runs(dot.depth)
        panel = T.Bind((group * layer.vectors + vector) * steps)
        self.panels = [panel + v * steps for v in range(tile.vectors)]

    def emit(self) -> None:
        """Emits the whole tile."""
        vector, tile = self.layer.dot.vector, self.tile
        acc = T.alloc_buffer(
            (tile.high * tile.wide * tile.vectors,), vector, scope="local", layout=None
        )
        for v, start in enumerate(self.starts):
            bias = T.Bind(self.layer.table.vload([tirx.const(0), start], vector))
            with T.unroll(tile.high * tile.wide) as p:
                T.buffer_store(acc, bias, [p * tile.vectors + v])
        self._accumulate(acc)
        for v, start in enumerate(self.starts):
            self._finish(acc, v, start)

    def _accumulate(self, acc: Any) -> None:
        """The reduction: tap rows, tap columns, and the dot products of one run."""
        geometry, dot, tile = self.layer.geometry, self.layer.dot, self.tile
        runs, pitch = geometry.runs(dot.depth), staging.pitch(geometry, self.layer.staged)
        operand = f"{dot.w}x{dot.lanes * dot.depth}"
        with (
            T.serial(geometry.tap_rows) as ky,
            T.serial(geometry.tap_cols) as kx,
            T.serial(runs) as k,
        ):
            step = (ky * geometry.tap_cols + kx) * runs + k
            at = ky * (geometry.dilation[0] * pitch) + kx * (geometry.dilation[1] * geometry.c)
            x = T.Bind(self.x + at + k * dot.depth)
            weights = [
                T.Bind(self.layer.weights.vload([panel + step, tirx.const(0)], operand))
                for panel in self.panels
            ]
            with T.unroll(tile.high) as i, T.unroll(tile.wide) as j:
                there = i * (geometry.stride[0] * pitch) + j * (geometry.stride[1] * geometry.c)
                value = T.Bind(dot.broadcast(self.source, x + there))
                for v, w in enumerate(weights):
                    slot = (i * tile.wide + j) * tile.vectors + v
                    T.buffer_store(acc, dot.apply(dot, acc[slot], value, w), [slot])

    def _finish(self, acc: Any, v: int, start: Any) -> None:
        """Epilogue and store of all pixels in one vector of channels."""
        geometry, layer, tile = self.layer.geometry, self.layer, self.tile
        lanes = layer.dot.lanes
        valid = min(geometry.o, lanes)
        column = epilogue.Column(layer.problem, layer.table, start, lanes)
        with T.unroll(tile.high) as i, T.unroll(tile.wide) as j:
            pixel = i * geometry.cols + j
            index = self.y + pixel * (geometry.groups * geometry.o) + start
            other = None
            if layer.buffers.other is not None:
                other = load(layer.buffers.other, index, lanes, valid)
            value = acc[(i * tile.wide + j) * tile.vectors + v]
            store(layer.buffers.output, index, column.apply(value, other), valid)
