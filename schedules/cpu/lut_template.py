"""The loop nest of kernels that stage activations in a form of their own: tables or bit planes.

parallel task = (image, rows, blocks of channels)
  staging copy of the task's input rows
  group of channels, block of channels, tile of pixels           the layer's own code

Where all tasks share one run of rows, the copy is made once, before them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, Protocol

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import scaling
from nybble.schedules.cpu.blocking import Plan, Tile
from nybble.schedules.cpu.buffers import Buffers, declare, product
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.cpu.segments import Segment, segments
from nybble.schedules.kernel import Problem, TensorSpec


class Staged(Protocol):
    """A staging copy; its unit is what a tile's code counts in."""

    @property
    def geometry(self) -> Geometry:
        """Of the layer."""

    @property
    def dtype(self) -> str:
        """Of the scratch buffer."""

    @property
    def per_channels(self) -> int:
        """Units of one pixel in one group of channels."""

    @property
    def per_pixel(self) -> int:
        """Units of one pixel."""

    @property
    def pitch(self) -> int:
        """Units between two input rows."""

    def size(self, rows: int) -> int:
        """Elements of the copy that ``rows`` output rows read."""

    def emit(self, source: Any, scratch: Any, rows: int, where: tuple[Any, Any]) -> None:
        """Emits the copy; ``where`` is (first element of the image, first output row)."""


class Layer(Protocol):
    """What a family knows of a layer."""

    @property
    def staging(self) -> Staged:
        """The staging copy."""

    @property
    def plan(self) -> Plan:
        """How the layer is cut."""

    @property
    def buffers(self) -> Buffers:
        """The parameters."""

    @property
    def blocks(self) -> int:
        """Blocks of output channels in a group."""

    def emit(self, tile: Tile, scratch: Any, at: tuple[Any, Any], block: tuple[Any, Any]) -> None:
        """Emits a tile.

        Args:
            tile: pixels and blocks.
            scratch: the staging copy.
            at: (its first unit in the copy, its first element in the output but for the channel).
            block: (group, block of channels in it).
        """


def table_shape(problem: Problem, geometry: Geometry, lanes: int) -> tuple[int, int]:
    """Shape of the packed table; groups narrower than a block read beyond the last channel."""
    spare = lanes if geometry.o < lanes else 0
    return scaling.table_rows(problem.epilogue), geometry.groups * geometry.o + spare


def build(
    problem: Problem, constants: tuple[TensorSpec, ...], layer_of: Callable[[Buffers], Layer]
) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, constants, output."""
    geometry, symbols = geometry_of(problem), dict[str, Any]()
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        layer = layer_of(declare(problem, constants, symbols))
        images = product(geometry.images, symbols)
        for segment in segments(layer.plan, product(geometry.rows, symbols)):
            _tasks(layer, segment, images)
    return builder.get()


def _tasks(layer: Layer, segment: Segment, images: Any) -> None:
    """All tasks of a segment."""
    blocks = ceil(layer.blocks / segment.tile.vectors)
    splits = min(layer.plan.splits, blocks)
    share = ceil(blocks / splits)
    runs = images * segment.count
    loop = T.parallel if layer.plan.parallel else T.serial

    def part(task: Any) -> tuple[Any, int]:
        return tirx.min(task * share, blocks - share), share

    if isinstance(runs, int) and runs == 1:
        scratch = _staged(layer, segment, (0, 0))
        with loop(splits) as task:
            _task(layer, segment, scratch, (0, 0), part(task))
        return
    with loop(runs * splits) as task:
        run = tirx.floordiv(task, splits)
        where = tirx.floordiv(run, segment.count), segment.first(tirx.floormod(run, segment.count))
        scratch = _staged(layer, segment, where)
        _task(layer, segment, scratch, where, part(tirx.floormod(task, splits)))


def _staged(layer: Layer, segment: Segment, where: tuple[Any, Any]) -> Any:
    """The scratch buffer with the copy of a run of rows."""
    staging, (image, first) = layer.staging, where
    geometry = staging.geometry
    scratch = T.alloc_buffer((staging.size(segment.rows),), staging.dtype, layout=None)
    picture = image * (geometry.height * geometry.width * geometry.c)
    staging.emit(layer.buffers.x, scratch, segment.rows, (picture, first))
    return scratch


def _task(
    layer: Layer, segment: Segment, scratch: Any, where: tuple[Any, Any], part: tuple[Any, int]
) -> None:
    """All tiles of one task."""
    tile, staging = segment.tile, layer.staging
    geometry = staging.geometry
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
            layer.emit(tile, scratch, (x, y), (group, block))
