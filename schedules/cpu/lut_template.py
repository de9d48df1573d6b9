"""The loop nest of the look-up kernels, emitted as TensorIR.

parallel task = (image, rows, blocks of channels)
  tables of the task's input rows                                  nybble.schedules.cpu.lut_stage
  group of channels, block of channels, tile of pixels
    tap row, tap column, block of groups:
      bytes += look up, for every pixel, plane and table           flush distance: never beyond 255
      whole += bytes as 16-bit words, odd += words >> 8            bytes 2i are whole - 256·odd
    planes and tables weighted and added up, epilogue, store

Byte 2i of a block is channel i, byte 2i + 1 is channel lanes/2 + i, so both sums come out in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import epilogue
from nybble.schedules.cpu.blocking import Tile
from nybble.schedules.cpu.buffers import declare, product
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.lut_plan import Isa, blocks_of, plan_of
from nybble.schedules.cpu.lut_stage import Staging, staging_of
from nybble.schedules.cpu.lut_tile import Layer, TileCode
from nybble.schedules.kernel import Knobs, Problem, TensorSpec


@dataclass(frozen=True)
class _Segment:
    """Tasks of the same shape: ``count`` runs of ``rows`` output rows, cut into ``tile``s."""

    tile: Tile
    rows: int
    count: Any
    first: Callable[[Any], Any]


def weights_shape(staging: Staging, isa: Isa) -> tuple[int, int]:
    """Shape of the packed weights: one row for each vector of indices."""
    geometry = staging.geometry
    taps = geometry.tap_rows * geometry.tap_cols * staging.pairs
    return geometry.groups * blocks_of(staging, isa) * taps * staging.scheme.planes, isa.lanes


def table_shape(problem: Problem, geometry: Geometry, isa: Isa) -> tuple[int, int]:
    """Shape of the packed table; narrow groups read a little beyond the last channel."""
    spare = isa.lanes if geometry.o < isa.lanes else 0
    return epilogue.table_rows(problem.epilogue), geometry.groups * geometry.o + spare


def build(problem: Problem, isa: Isa, knobs: Knobs) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, weights, table, output."""
    staging = staging_of(problem)
    plan = plan_of(staging, isa, knobs)
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        constants = (
            TensorSpec(weights_shape(staging, isa), "uint8"),
            TensorSpec(table_shape(problem, staging.geometry, isa), "int32"),
        )
        layer = Layer(problem, staging, isa, plan, declare(problem, constants, symbols))
        images = product(staging.geometry.images, symbols)
        for segment in _segments(layer, product(staging.geometry.rows, symbols)):
            _tasks(layer, segment, images)
    return builder.get()


def _segments(layer: Layer, rows: Any) -> Iterator[_Segment]:
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


def _tasks(layer: Layer, segment: _Segment, images: Any) -> None:
    """All tasks of a segment; where all share one run of rows, its tables are made before."""
    blocks = ceil(layer.blocks / segment.tile.vectors)
    splits = min(layer.plan.splits, blocks)
    share = ceil(blocks / splits)
    runs = images * segment.count
    loop = T.parallel if layer.plan.parallel else T.serial

    def part(task: Any) -> tuple[Any, int]:
        return tirx.min(task * share, blocks - share), share

    if isinstance(runs, int) and runs == 1:
        scratch = _tables(layer, segment, (0, 0))
        with loop(splits) as task:
            _task(layer, segment, scratch, (0, 0), part(task))
        return
    with loop(runs * splits) as task:
        run = tirx.floordiv(task, splits)
        where = tirx.floordiv(run, segment.count), segment.first(tirx.floormod(run, segment.count))
        scratch = _tables(layer, segment, where)
        _task(layer, segment, scratch, where, part(tirx.floormod(task, splits)))


def _tables(layer: Layer, segment: _Segment, where: tuple[Any, Any]) -> Any:
    """The scratch buffer with the tables of a run of rows."""
    geometry, (image, first) = layer.geometry, where
    size = layer.staging.size(segment.rows)
    scratch = T.alloc_buffer((size,), "uint8", layout=None)
    picture = image * (geometry.height * geometry.width * geometry.c)
    layer.staging.emit(layer.buffers.x, scratch, segment.rows, (picture, first))
    return scratch


def _task(
    layer: Layer, segment: _Segment, scratch: Any, where: tuple[Any, Any], part: tuple[Any, int]
) -> None:
    """All tiles of one task."""
    geometry, tile, staging = layer.geometry, segment.tile, layer.staging
    rows, cols = segment.rows, geometry.cols
    channels = geometry.groups * geometry.o
    static = geometry.static_rows
    above = where[1] if static is None else where[0] * static + where[1]  # one image if symbolic
    with T.serial(geometry.groups) as group, T.serial(part[1]) as b:
        block = tirx.min((part[0] + b) * tile.vectors, layer.blocks - tile.vectors)
        with T.serial(ceil(rows / tile.high)) as ty, T.serial(ceil(cols / tile.wide)) as tx:
            row = tirx.min(ty * tile.high, rows - tile.high)
            col = tirx.min(tx * tile.wide, cols - tile.wide)
            x = row * (geometry.stride[0] * staging.pitch)
            x = x + col * (geometry.stride[1] * staging.per_pixel) + group * staging.per_channels
            y = ((above + row) * cols + col) * channels
            TileCode(layer, tile, scratch, (x, y), (group, block)).emit()
