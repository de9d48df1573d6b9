"""The loop nest of `nybble.schedules.cpu.amx`, emitted as TensorIR.

parallel task = (image, rows, channel blocks)
  tile configuration; staging copy of the task's input rows, if needed
  channel block
    panels of weights below 8 bits decoded
    lines, pixels of a line
      accumulators = bias
      tap row, tap column, k: tiles loaded, products accumulated
      accumulators stored to a scratch; epilogue, store
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import amx_plan, amx_stage, panels, scaling, staging
from nybble.schedules.cpu.amx_block import Block, Layer, intrinsic, panels_of, tile_dot
from nybble.schedules.cpu.amx_plan import (
    LANES,
    REGISTERS,
    depth_of,
    is_folded,
    is_product,
)
from nybble.schedules.cpu.buffers import declare, product
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.kernel import Knobs, Problem, TensorSpec


def table_shape(problem: Problem, geometry: Geometry) -> tuple[int, int]:
    """Shape of the packed table; few channels read a little beyond the last one."""
    return scaling.table_rows(problem.epilogue), max(geometry.o, LANES)


def _weights_spec(problem: Problem, geometry: Geometry) -> TensorSpec:
    depth, rows = depth_of(geometry), amx_plan.vectors_of(geometry)
    layout = panels_of(problem, geometry)
    if layout is not None:
        return TensorSpec((rows, layout.packed), "uint8")
    return TensorSpec((rows * depth.steps, depth.operand), "int8")


def plan(problem: Problem, knobs: Knobs) -> amx_plan.Plan:
    """How a layer is cut."""
    geometry = amx_stage.laid_out(geometry_of(problem))
    packed = panels_of(problem, geometry) is not None
    return amx_plan.plan_of(geometry, amx_stage.needs_staging(geometry), packed, knobs)


def build(problem: Problem, knobs: Knobs) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, weights, table, output."""
    geometry = amx_stage.laid_out(geometry_of(problem))
    dot, staged = tile_dot(problem.inputs[0].dtype), amx_stage.needs_staging(geometry)
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        table = TensorSpec(table_shape(problem, geometry), "int32")
        buffers = declare(problem, (_weights_spec(problem, geometry), table), symbols)
        layer = Layer(problem, geometry, dot, plan(problem, knobs), staged, buffers)
        _tasks(layer, product(geometry.images, symbols))
    return builder.get()


def _tasks(layer: Layer, images: Any) -> None:
    """All tasks, on one or several threads."""
    plan, rows = layer.plan, layer.geometry.static_rows
    assert rows is not None
    vectors = amx_plan.vectors_of(layer.geometry)
    blocks, segments = ceil(vectors / plan.block.vectors), ceil(rows / plan.rows)
    splits = min(plan.splits, blocks)
    share = ceil(blocks / splits)
    loop = T.parallel if plan.parallel else T.serial
    with loop(images * segments * splits) as task:
        run = tirx.floordiv(task, splits)
        block = tirx.min(tirx.floormod(task, splits) * share, blocks - share)
        image = tirx.floordiv(run, segments)
        first = tirx.min(tirx.floormod(run, segments) * plan.rows, rows - plan.rows)
        _configure(layer)
        _task(layer, (image, first), (block, share))
        intrinsic("x86.tilerelease")


def _configure(layer: Layer) -> None:
    """Tells the CPU the shapes of the tiles."""
    depth, tiles, vectors = depth_of(layer.geometry), layer.tiles, layer.plan.block.vectors
    tall = layer.plan.tall
    wide, high = np.zeros(16, np.uint16), np.zeros(16, np.uint8)
    accumulators = tiles * vectors
    wide[:accumulators], high[:accumulators] = 4 * LANES, tall
    kept, streaming = ((depth.size, tall), (4 * LANES, depth.size // 4))
    if tiles >= vectors:
        kept, streaming = streaming, kept
    middle = accumulators + min(tiles, vectors)
    wide[accumulators:middle], high[accumulators:middle] = kept
    wide[middle:REGISTERS], high[middle:REGISTERS] = streaming
    head = np.zeros(16, np.uint8)
    head[0] = 1  # the palette
    words = np.concatenate([head, wide.view(np.uint8), high]).view(np.uint64)
    config = T.alloc_buffer((8,), "uint64", layout=None)
    for i, word in enumerate(words):
        T.buffer_store(config, tirx.const(int(word), "uint64"), [i])
    intrinsic("x86.ldtilecfg", T.address_of(config[0]))


def _task(layer: Layer, where: tuple[Any, Any], blocks: tuple[Any, int]) -> None:
    """One task: its staging copy and its blocks."""
    geometry, plan, (image, first) = layer.geometry, layer.plan, where
    picture = image * (geometry.height * geometry.width * geometry.c)
    source, origin = layer.buffers.x, picture + first * (geometry.stride[0] * layer.pitch)
    if layer.staged:
        size = amx_stage.staged_size(geometry, layer.dot, plan.rows)
        source, origin = T.alloc_buffer((size,), layer.dot.x, layout=None), 0
        _stage(layer, source, (picture, first))
    lines, pixels = amx_plan.lines_of(geometry, plan.rows)
    block, vectors = plan.block, amx_plan.vectors_of(geometry)
    scratch = T.alloc_buffer(
        (layer.tiles * plan.tall * block.vectors * LANES,), "int32", layout=None
    )
    step_x = _pixel_step(geometry)
    step_line = geometry.stride[0] * layer.pitch
    base_y = (image * geometry.static_rows + first) * geometry.cols
    with T.serial(blocks[1]) as b:
        vector = T.Bind(tirx.min((blocks[0] + b) * block.vectors, vectors - block.vectors))
        weights, row = _weights(layer, vector)
        across = ceil(pixels / (block.wide * plan.tall))
        with T.serial(ceil(lines / block.high)) as ly, T.serial(across) as px:
            line = tirx.min(ly * block.high, lines - block.high)
            starts = []
            for i in range(block.high):
                for j in range(block.wide):
                    at = (px * block.wide + j) * plan.tall
                    pixel = T.Bind(tirx.min(at, pixels - plan.tall))
                    x = T.Bind(origin + (line + i) * step_line + pixel * step_x)
                    starts.append((x, T.Bind(base_y + (line + i) * pixels + pixel)))
            Block(layer, source, (weights, row), scratch, vector).emit(starts, step_x)


def _pixel_step(geometry: Geometry) -> int:
    """Bytes between the pixels of a tile."""
    is_flat = is_product(geometry) or is_folded(geometry)
    return geometry.c if is_flat else geometry.stride[1] * geometry.c


def _stage(layer: Layer, scratch: Any, where: tuple[Any, Any]) -> None:
    """The staging copy of a task."""
    geometry, x, rows = layer.geometry, layer.buffers.x, layer.plan.rows
    if is_folded(geometry):
        amx_stage.stage_planes(geometry, x, scratch, rows, where)
        return
    given = (x, layer.problem.inputs[0].dtype)
    staging.stage(geometry, layer.dot, given, scratch, rows, where)


def _weights(layer: Layer, vector: Any) -> tuple[Any, Any]:
    """(weights as rows of tiles, first row of the block); narrow ones are decoded first."""
    layout = panels_of(layer.problem, layer.geometry)
    packed, depth = layer.buffers.constants[0], depth_of(layer.geometry)
    if layout is None:
        return packed, vector * depth.steps
    count = layer.plan.block.vectors
    size = (count - 1) * layout.length + layout.decoded
    scratch = T.alloc_buffer((size,), "int8", layout=None)
    for v in range(count):
        panels.decode(layout, packed, vector + v, scratch, v * layout.length)
    shape = (count * depth.steps, depth.operand)
    return T.decl_buffer(shape, "int8", data=scratch.data, layout=None), 0
