"""The loop nest of `nybble.schedules.cpu.amx`, emitted as TensorIR.

parallel task = (image, rows, channel blocks)
  tile configuration; staging copy of the task's input rows, if needed
  channel block
    panels of weights below 8 bits decoded
    lines, pixels of a line
      accumulators = bias
      tap row, tap column, k: tiles loaded, products accumulated
      accumulators stored to a scratch; epilogue, store

Tiles are numbered: accumulators first, then those of the side that is kept for a step, then those
of the side that streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import amx_plan, amx_stage, epilogue, panels, staging
from nybble.schedules.cpu.amx_plan import (
    DEPTH,
    LANES,
    REGISTERS,
    Plan,
    depth_of,
    is_folded,
    is_product,
    is_tiled,
)
from nybble.schedules.cpu.amx_store import Finish
from nybble.schedules.cpu.buffers import Buffers, declare, product
from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.cpu.loops import stored
from nybble.schedules.kernel import Knobs, Problem, TensorSpec


def _multiply(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    """The tile product acc += x·w; operands are numbers of tiles."""
    name = "x86.tdpbusd" if dot.x == "uint8" else "x86.tdpbssd"
    return _intrinsic(name, *(_tile(number) for number in (acc, x, w)))


def tile_dot(dtype: str) -> Dot:
    """AMX's dot product for activations of ``dtype``."""
    features = ("amx_tile", "amx_int8")
    x = stored(dtype)
    return Dot("amx", features, LANES, DEPTH, x, "int8", "int32", REGISTERS, 0, 16, 4, _multiply)


def _intrinsic(name: str, *args: Any) -> Any:
    return T.evaluate(T.call_llvm_intrin("void", f"llvm.{name}", *args))


_SECOND_LEVEL = tuple(tirx.const(value, "int32") for value in (0, 2, 1))  # read, near, data


def _tile(number: int) -> Any:
    return tirx.const(number, "int8")


def _move(name: str, number: int, place: Any, step: int) -> None:
    """Loads or stores a tile whose rows are ``step`` bytes apart."""
    _intrinsic(name, _tile(number), T.address_of(place), tirx.const(step, "int64"))


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
    def table(self) -> Any:
        """Bias and scaling, a column for each output channel."""
        return self.buffers.constants[1]

    @property
    def packed(self) -> bool:
        """Whether the weights are decoded first."""
        return panels_of(self.problem, self.geometry) is not None

    @property
    def tiles(self) -> int:
        """Tiles of activations in a block."""
        return self.plan.block.high * self.plan.block.wide

    @property
    def pitch(self) -> int:
        """Bytes between two input rows."""
        return staging.pitch(self.geometry, self.staged)


def table_shape(problem: Problem, geometry: Geometry) -> tuple[int, int]:
    """Shape of the packed table; few channels read a little beyond the last one."""
    return epilogue.table_rows(problem.epilogue), max(geometry.o, LANES)


def panels_of(problem: Problem, geometry: Geometry) -> panels.Panels | None:
    """How the weights are packed; None where they lie as the tiles are loaded."""
    assert problem.weights is not None
    depth = depth_of(geometry)
    padded = depth.count * depth.size != geometry.run
    return panels.panels_of(problem.weights.dtype, depth.steps * depth.operand, DEPTH, padded)


def _weights_spec(problem: Problem, geometry: Geometry) -> TensorSpec:
    depth, rows = depth_of(geometry), amx_plan.vectors_of(geometry)
    layout = panels_of(problem, geometry)
    if layout is not None:
        return TensorSpec((rows, layout.packed), "uint8")
    return TensorSpec((rows * depth.steps, depth.operand), "int8")


def build(problem: Problem, knobs: Knobs) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, weights, table, output."""
    geometry = amx_stage.laid_out(geometry_of(problem))
    dot, staged = tile_dot(problem.inputs[0].dtype), amx_stage.needs_staging(geometry)
    packed = panels_of(problem, geometry) is not None
    plan = amx_plan.plan_of(geometry, staged, packed, knobs)
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        table = TensorSpec(table_shape(problem, geometry), "int32")
        buffers = declare(problem, (_weights_spec(problem, geometry), table), symbols)
        layer = _Layer(problem, geometry, dot, plan, staged, buffers)
        _tasks(layer, product(geometry.images, symbols))
    return builder.get()


def _tasks(layer: _Layer, images: Any) -> None:
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
        _intrinsic("x86.tilerelease")


def _configure(layer: _Layer) -> None:
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
    _intrinsic("x86.ldtilecfg", T.address_of(config[0]))


def _task(layer: _Layer, where: tuple[Any, Any], blocks: tuple[Any, int]) -> None:
    """One task: its staging copy and its blocks."""
    geometry, plan, (image, first) = layer.geometry, layer.plan, where
    picture = image * (geometry.height * geometry.width * geometry.c)
    source, origin = layer.buffers.x, picture + first * (geometry.stride[0] * layer.pitch)
    if layer.staged:
        size = amx_stage.staged_size(geometry, layer.dot, plan.rows, plan.tall)
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
                    if is_tiled(geometry):
                        last = ceil(pixels / plan.tall) - 1
                        tile = tirx.min(px * block.wide + j, last)
                        x = T.Bind(tile * (plan.tall * geometry.c))
                    else:
                        x = T.Bind(origin + (line + i) * step_line + pixel * step_x)
                    starts.append((x, T.Bind(base_y + (line + i) * pixels + pixel)))
            _Block(layer, source, (weights, row), scratch, vector).emit(starts, step_x)


def _pixel_step(geometry: Geometry) -> int:
    """Bytes between the pixels of a tile."""
    if is_tiled(geometry):
        return DEPTH
    is_flat = is_product(geometry) or is_folded(geometry)
    return geometry.c if is_flat else geometry.stride[1] * geometry.c


def _stage(layer: _Layer, scratch: Any, where: tuple[Any, Any]) -> None:
    """The staging copy of a task."""
    geometry, x, rows = layer.geometry, layer.buffers.x, layer.plan.rows
    if is_tiled(geometry):
        origin = where[0] + where[1] * geometry.c
        amx_stage.stage_tiles(geometry, x, scratch, layer.plan.tall, (origin, rows))
        return
    if is_folded(geometry):
        amx_stage.stage_planes(geometry, x, scratch, rows, where)
        return
    given = (x, layer.problem.inputs[0].dtype)
    staging.stage(geometry, layer.dot, given, scratch, rows, where)


def _weights(layer: _Layer, vector: Any) -> tuple[Any, Any]:
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


class _Block:
    """One block of tiles: from the bias to the store."""

    def __init__(
        self, layer: _Layer, source: Any, weights: tuple[Any, Any], scratch: Any, vector: Any
    ):
        self.layer, self.source, self.scratch = layer, source, scratch
        self.weights, self.row = weights
        last = max(layer.geometry.o - LANES, 0)
        vectors = layer.plan.block.vectors
        self.channels = [T.Bind(tirx.min((vector + v) * LANES, last)) for v in range(vectors)]

    def emit(self, starts: list[tuple[Any, Any]], step: int) -> None:
        """Emits the whole block.

        Args:
            starts: (first activation, first output pixel) of each tile.
            step: bytes between the pixels of a tile.
        """
        vectors = self.layer.plan.block.vectors
        for number in range(len(starts) * vectors):
            bias = self.layer.table[0, self.channels[number % vectors]]
            _move("x86.tileloadd64", number, bias, 0)  # every row reads the same 16 numbers
        self._accumulate([x for x, _ in starts], step)
        line = vectors * LANES
        for number in range(len(starts) * vectors):
            tile, v = divmod(number, vectors)
            at = tile * self.layer.plan.tall * line + v * LANES
            _move("x86.tilestored64", number, self.scratch[at], 4 * line)
        finish = Finish(
            self.layer.problem,
            self.layer.buffers,
            self.scratch,
            self.layer.plan.tall,
            self.channels,
            self.layer.geometry.o,
        )
        finish.emit([y for _, y in starts])

    def _accumulate(self, starts: list[Any], step: int) -> None:
        """The reduction: tap rows, tap columns, and the steps of one run."""
        geometry, depth = self.layer.geometry, depth_of(self.layer.geometry)
        with (
            T.serial(geometry.tap_rows) as ky,
            T.serial(geometry.tap_cols) as kx,
            T.serial(depth.count) as k,
        ):
            index = T.Bind((ky * geometry.tap_cols + kx) * depth.count + k)
            step_k = self.layer.plan.tall * DEPTH if is_tiled(geometry) else depth.size
            at = T.Bind(self._tap(ky, kx) + k * step_k)
            self._products([self.source[x + at] for x in starts], index, step)

    def _tap(self, ky: Any, kx: Any) -> Any:
        """Where a tap's pixels begin, seen from those of the first tap."""
        geometry, rows = self.layer.geometry, self.layer.plan.rows
        if is_folded(geometry):
            return amx_stage.tap_offset(geometry, rows, ky, kx)
        row = ky * (geometry.dilation[0] * self.layer.pitch)
        return row + kx * (geometry.dilation[1] * geometry.c)

    def _products(self, places: list[Any], index: Any, step: int) -> None:
        """One step: the smaller side's tiles stay, the other side's stream by."""
        vectors, steps = self.layer.plan.block.vectors, depth_of(self.layer.geometry).steps
        operands = [self.weights[self.row + v * steps + index, 0] for v in range(vectors)]
        sides = [(places, step), (operands, 4 * LANES)]
        swapped = len(places) >= vectors
        (kept, kept_step), (streaming, stream_step) = reversed(sides) if swapped else sides
        first = len(places) * vectors
        free = first + len(kept)
        self._prefetch(index)
        for i, place in enumerate(kept):
            _move("x86.tileloadd64", first + i, place, kept_step)
        for j, place in enumerate(streaming):
            there = free + j % (REGISTERS - free)
            _move("x86.tileloadd64", there, place, stream_step)
            for i in range(len(kept)):
                x, w = (j, i) if swapped else (i, j)
                a, b = (there, first + i) if swapped else (first + i, there)
                self.layer.dot.apply(self.layer.dot, x * vectors + w, a, b)

    def _prefetch(self, index: Any) -> None:
        """Asks for the weights of a step some way ahead; they follow each other to the end."""
        ahead, steps = self.layer.plan.ahead, depth_of(self.layer.geometry).steps
        if not ahead or self.layer.packed:
            return
        count, size = (int(extent) for extent in self.weights.shape)
        for v in range(self.layer.plan.block.vectors):
            row = T.Bind(tirx.min(self.row + v * steps + index + ahead, count - 1))
            for line in range(0, size, 64):
                _intrinsic("prefetch", T.address_of(self.weights[row, line]), *_SECOND_LEVEL)
