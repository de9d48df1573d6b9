"""The blocked loop nest of `nybble.schedules.cpu.conv`, emitted as TensorIR.

parallel task = (image, rows, channel blocks)
  staging copy of the task's input rows, if needed
  group, channel block
    panels of weights below 8 bits decoded
    tile row, tile column: `nybble.schedules.cpu.tile`
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import nibbles, panels, scaling, staging
from nybble.schedules.cpu.blocking import Plan, Storage, Tile, plan_of, vectors_of
from nybble.schedules.cpu.buffers import declare, product
from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.cpu.segments import Segment, segments
from nybble.schedules.cpu.tile import Layer, RegisterTile, Weights
from nybble.schedules.kernel import Knobs, Problem, TensorSpec


def table_shape(problem: Problem, geometry: Geometry, dot: Dot) -> tuple[int, int]:
    """Shape of the packed table; narrow groups read a little beyond the last channel."""
    channels = geometry.groups * geometry.o
    spare = dot.lanes if geometry.o < dot.lanes else 0
    return scaling.table_rows(problem.epilogue), channels + spare


def steps_of(geometry: Geometry, dot: Dot) -> int:
    """Dot products behind one output."""
    return geometry.tap_rows * geometry.tap_cols * geometry.runs(dot.depth)


def panels_of(problem: Problem, geometry: Geometry, dot: Dot) -> panels.Panels | None:
    """How the weights are packed; None where they lie as the inner loop reads them."""
    assert problem.weights is not None
    chunk, padded = dot.lanes * dot.depth, geometry.run % dot.depth != 0
    length = steps_of(geometry, dot) * chunk
    return panels.panels_of(problem.weights.dtype, length, chunk, padded)


def weights_spec(problem: Problem, geometry: Geometry, dot: Dot) -> TensorSpec:
    """The packed weights: a row for each packed panel, or for each operand of a dot product."""
    rows = geometry.groups * vectors_of(geometry, dot)
    layout = panels_of(problem, geometry, dot)
    if layout is not None:
        return TensorSpec((rows, layout.packed), "uint8")
    return TensorSpec((rows * steps_of(geometry, dot), dot.lanes * dot.depth), dot.w)


def excess_specs(problem: Problem, geometry: Geometry, dot: Dot) -> tuple[TensorSpec, ...]:
    """Further steps of a dot with sums, as `nybble.schedules.cpu.conv` packs them."""
    if not dot.sums:
        return ()
    if problem.safe:
        return (TensorSpec((2,), "int32"),)
    rows = geometry.groups * vectors_of(geometry, dot) + 1
    return (
        TensorSpec(("excess", dot.lanes * dot.depth), dot.w),
        TensorSpec(("excess",), "int32"),
        TensorSpec(("windows",), "int32"),
        TensorSpec((rows,), "int32"),
    )


def plan(problem: Problem, dot: Dot, knobs: Knobs) -> Plan:
    """How a layer is cut."""
    dot, geometry = dot.paced(problem.flush), geometry_of(problem)
    staged = staging.is_staged(problem, geometry, dot)
    geometry = staging.gathered(geometry) or geometry
    packed = panels_of(problem, geometry, dot) is not None
    return plan_of(geometry, dot, Storage(staged, packed), knobs)


def build(problem: Problem, dot: Dot, knobs: Knobs) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, weights, table, output."""
    cut = plan(problem, dot, knobs)
    dot, geometry = dot.paced(problem.flush), geometry_of(problem)
    staged = staging.is_staged(problem, geometry, dot)
    geometry = staging.gathered(geometry) or geometry
    layout = panels_of(problem, geometry, dot)
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        constants = (
            weights_spec(problem, geometry, dot),
            TensorSpec(table_shape(problem, geometry, dot), dot.acc),
            *excess_specs(problem, geometry, dot),
        )
        buffers = declare(problem, constants, symbols)
        buffers = replace(
            buffers,
            x=nibbles.readable(buffers.x, problem.inputs[0]),
            other=nibbles.readable(buffers.other, problem.epilogue.other),
        )
        layer = Layer(problem, geometry, dot, cut, staged, layout, buffers)
        images = product(geometry.images, symbols)
        for segment in segments(layer.plan, product(geometry.rows, symbols)):
            _tasks(layer, segment, images)
    return builder.get()


def _tasks(layer: Layer, segment: Segment, images: Any) -> None:
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


def _task(layer: Layer, segment: Segment, where: tuple[Any, Any], blocks: tuple[Any, int]) -> None:
    """One task: its staging copy and its tiles."""
    geometry, tile, (image, first) = layer.geometry, segment.tile, where
    rows, cols = segment.rows, geometry.cols
    pitch = staging.pitch(geometry, layer.staged)
    picture = image * (geometry.height * geometry.width * geometry.c)
    source, origin = layer.buffers.x, picture + first * (geometry.stride[0] * pitch)
    if layer.staged:
        size = staging.staged_size(geometry, layer.dot, rows)
        source, origin = T.alloc_buffer((size,), layer.dot.x, layout=None), 0
        given = (layer.buffers.x, layer.problem.inputs[0].dtype)
        whole = geometry_of(layer.problem)
        picture = image * (whole.height * whole.width * whole.c)
        copy = staging.stage if whole == geometry else staging.gather
        copy(whole, layer.dot, given, source, rows, (picture, first))
    channels = geometry.groups * geometry.o
    all_rows = _rows_of_output(layer)
    scratch = None
    if layer.panels is not None:
        scratch = T.alloc_buffer((tile.vectors * layer.panels.decoded,), "int8", layout=None)
    with T.serial(geometry.groups) as group, T.serial(blocks[1]) as b:
        vector = tirx.min((blocks[0] + b) * tile.vectors, layer.vectors - tile.vectors)
        weights = _panels(layer, tile, scratch, T.Bind(group * layer.vectors + vector))
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
            RegisterTile(layer, tile, (source, weights), (x, y), (group, vector)).emit()


def _panels(layer: Layer, tile: Tile, scratch: Any, row: Any) -> Weights:
    """The weights of a block of channels, decoded if packed; ``row`` is its first panel."""
    dot, source, layout = layer.dot, layer.weights, layer.panels
    chunk = dot.lanes * dot.depth
    operand = f"{dot.w}x{chunk}"
    if layout is None:
        steps = steps_of(layer.geometry, dot)
        first = T.Bind(row * steps)
        return lambda v, step: source.vload([first + v * steps + step, tirx.const(0)], operand)
    for v in range(tile.vectors):
        panels.decode(layout, source, row + v, scratch, v * layout.decoded)
    return lambda v, step: scratch.vload([v * layout.decoded + step * chunk], operand)


def _rows_of_output(layer: Layer) -> Any:
    """Output rows of one image; with symbolic rows there is one image, and no step is needed."""
    rows = layer.geometry.static_rows
    return 0 if rows is None else rows
