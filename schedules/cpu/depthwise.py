"""Depthwise convolution on x86, int8 and float32: lanes are channels, outputs share columns.

    parallel task = (image, rows)
      staging copy of the task's input rows, if needed
      output row, vector of channels, tile of ``wide`` output columns
        acc[wide] = bias
        tap-row group, input column:  x = the group's rows interleaved per channel,
                                      acc = dot(acc, x, w) for every output that the column touches
        epilogue, store

A dot product takes ``depth`` taps of one column from ``depth`` kernel rows, so one interleaved
vector serves all KW taps along the row: 3x3 costs 3 ``vpdpbusd`` or 6 ``vpmaddwd`` per vector.

Lanes are output channels. Where each input channel has several (``times``), a vector of the input
is short and its elements are repeated as it is loaded; the staging copy holds the input once.
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

from nybble.schedules.cpu import epilogue, scaling, staging
from nybble.schedules.cpu.blocking import STAGED_BYTES, TASKS
from nybble.schedules.cpu.buffers import Buffers, declare, load, product, store
from nybble.schedules.cpu.dot import FMA_AVX2, FMA_AVX512, MADD_AVX2, MADD_AVX512, VNNI, Dot
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

SERIAL_STEPS = 20_000  # dot products; fewer do not pay for a parallel launch


def _dot_for(dot: Dot, problem: Problem) -> Dot:
    """The dot product with operands as they are here: ``madd`` widens the input as it loads."""
    return replace(dot, x=problem.inputs[0].dtype, w="int16") if dot.depth == 2 else dot


def geometry_of(problem: Problem) -> Geometry:
    """Output rows and columns, and the window; all channels are one run."""
    assert problem.weights is not None
    attrs, shape = dict(problem.attrs), problem.inputs[0].shape
    channels, kh, kw = (int(d) for d in problem.weights.shape[:3])
    return Geometry(
        (shape[0],),
        (problem.output.shape[1],),
        int(problem.output.shape[2]),
        1,
        channels,
        channels,
        kh,
        kw,
        channels,
        tuple(attrs["strides"]),
        tuple(attrs["dilation"]),
        tuple(attrs["padding"]),
        int(shape[1]),
        int(shape[2]),
        int(attrs.get("pad_value", 0)),
    )


def _times(problem: Problem) -> int:
    """Output channels of each input channel."""
    return int(problem.output.shape[-1]) // int(problem.inputs[0].shape[-1])


def _source(problem: Problem) -> Geometry:
    """The geometry with the input's own channels: how it lies in memory."""
    geometry = geometry_of(problem)
    return replace(geometry, c=geometry.c // _times(problem))


def _supports(dot: Dot, problem: Problem, target: Any) -> str | None:
    if target.arch != dot.arch or not target.has(*dot.features):
        return f"needs {', '.join(dot.features)}"
    assert problem.weights is not None
    uneven = _refuse_channels(dot, problem)
    if uneven is not None:
        return uneven
    wanted = ("float32",) if dot.acc == "float32" else ("int8", "uint8")
    weights = "float32" if dot.acc == "float32" else "int8"
    found = problem.inputs[0].dtype
    if found not in wanted or problem.weights.dtype != weights:
        return f"computes {' or '.join(wanted)} x {weights}, not {found} x {problem.weights.dtype}"
    if problem.output.dtype not in ("int8", "uint8", dot.acc):
        return f"cannot store {problem.output.dtype}"
    if any(isinstance(extent, str) for extent in problem.inputs[0].shape[1:]):
        return "more than the batch is symbolic"
    return epilogue.refuse(problem)


def _refuse_channels(dot: Dot, problem: Problem) -> str | None:
    assert problem.weights is not None
    channels, _, _, per_group = (int(extent) for extent in problem.weights.shape)
    groups = int(problem.attr("groups"))
    if per_group != 1 or (groups == 1 and channels > 1):
        return "not depthwise"
    times = channels // groups
    if dot.lanes % times and times % dot.lanes:
        return f"{times} outputs of an input channel share vectors of {dot.lanes} unevenly"
    return None


# ---------------------------------------------------------------- pack


def _weights_spec(geometry: Geometry, dot: Dot) -> TensorSpec:
    """[vectors][tap-row groups][KW] rows of [lanes][depth]."""
    rows = ceil(geometry.c / dot.lanes) * ceil(geometry.tap_rows / dot.depth) * geometry.tap_cols
    return TensorSpec((rows, dot.lanes * dot.depth), dot.w)


def _table_shape(problem: Problem, geometry: Geometry, dot: Dot) -> tuple[int, int]:
    return scaling.table_rows(problem.epilogue), max(geometry.c, dot.lanes)


def _pack(base: Dot, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Weights interleaved by kernel rows, and the table of per-channel numbers."""
    geometry, dot = geometry_of(problem), _dot_for(base, problem)
    weights = np.asarray(constants["w"])[..., 0]
    bias = np.asarray(constants["bias"])
    offset = dot.offset(problem.inputs[0].dtype)
    if offset:
        bias = bias.astype(np.int64) - offset * weights.sum((1, 2), dtype=np.int64)
    columns = _table_shape(problem, geometry, dot)[1]
    table = scaling.table(problem, constants, bias, columns, dot.acc)
    lanes, depth, groups = dot.lanes, dot.depth, ceil(geometry.tap_rows / dot.depth)
    padded = np.zeros((max(geometry.c, lanes), groups * depth, geometry.tap_cols), dot.w)
    padded[: geometry.c, : geometry.tap_rows] = weights
    starts = np.minimum(np.arange(ceil(geometry.c / lanes)) * lanes, max(geometry.c - lanes, 0))
    chosen = padded[np.add.outer(starts, np.arange(lanes))]
    chosen = chosen.reshape(len(starts), lanes, groups, depth, geometry.tap_cols)
    packed = np.ascontiguousarray(chosen.transpose(0, 2, 4, 1, 3))
    return [packed.reshape(-1, lanes * depth), table]


# ---------------------------------------------------------------- build


@dataclass(frozen=True)
class Cut:
    """The decisions for one kernel.

    Attributes:
        wide: output columns of a tile.
        rows: output rows of a task.
        parallel: whether tasks run on several threads.
    """

    wide: int
    rows: int
    parallel: bool


@dataclass(frozen=True)
class _Layer:
    """Everything that the emitting functions share."""

    problem: Problem
    geometry: Geometry
    source: Geometry
    times: int
    dot: Dot
    wide: int
    rows: int
    staged: bool
    buffers: Buffers


def _plan(base: Dot, problem: Problem, _target: Any, knobs: Knobs) -> Cut:
    geometry, dot = geometry_of(problem), _dot_for(base, problem)
    wide = _pick_width(geometry, dot, knobs)
    return Cut(wide, *_pick_rows(geometry, dot, _is_staged(problem, geometry, dot), knobs))


def _is_staged(problem: Problem, geometry: Geometry, dot: Dot) -> bool:
    narrow = geometry.c < dot.lanes
    return any(geometry.padding) or problem.inputs[0].dtype != dot.x or narrow


def _build(base: Dot, problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, weights, table, output."""
    geometry, dot = geometry_of(problem), _dot_for(base, problem)
    cut, staged = _plan(base, problem, target, knobs), _is_staged(problem, geometry, dot)
    rows = cut.rows
    total = int(geometry.static_rows or 1)
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        table = TensorSpec(_table_shape(problem, geometry, dot), dot.acc)
        specs = (_weights_spec(geometry, dot), table)
        buffers = declare(problem, specs, symbols)
        source, times = _source(problem), _times(problem)
        layer = _Layer(problem, geometry, source, times, dot, cut.wide, rows, staged, buffers)
        runs = ceil(total / rows)
        loop = T.parallel if cut.parallel else T.serial
        with loop(product(geometry.images, symbols) * runs) as task:
            first = tirx.min(tirx.floormod(task, runs) * rows, total - rows)
            _task(layer, tirx.floordiv(task, runs), first)
    return builder.get()


def _pick_width(geometry: Geometry, dot: Dot, knobs: Knobs) -> int:
    """Output columns of a tile: the fewest interleaved columns among what the registers hold."""
    most = min(geometry.cols, 14 if dot.registers == 32 else 7)

    def columns(wide: int) -> tuple[int, int]:
        tiles = ceil(geometry.cols / wide)
        return tiles * (len(touched(geometry, wide)) + wide * geometry.tap_cols), -wide

    return knobs.pick("wide", tuple(range(1, most + 1)), min(range(1, most + 1), key=columns))


def _pick_rows(geometry: Geometry, dot: Dot, staged: bool, knobs: Knobs) -> tuple[int, bool]:
    """Output rows of a task, and whether tasks run in parallel."""
    rows = int(geometry.static_rows or 1)
    groups = ceil(geometry.tap_rows / dot.depth)
    steps = rows * geometry.cols * ceil(geometry.c / dot.lanes) * geometry.tap_cols * groups
    parallel = knobs.pick("parallel", (False, True), steps > SERIAL_STEPS)
    wanted = ceil(rows / TASKS) if parallel else rows
    if staged:
        line = geometry.reach * geometry.c * (4 if dot.x == "float32" else 1)
        wanted = min(wanted, STAGED_BYTES // line - geometry.rows_read(1) + geometry.stride[0])
    choices = sorted({1, rows, *(r for r in range(1, rows) if rows % r == 0)})
    return knobs.pick("rows", choices, max(r for r in choices if r <= max(wanted, 1))), parallel


def touched(geometry: Geometry, wide: int) -> dict[int, list[tuple[int, int]]]:
    """For each input column of a tile, the (output, kernel column) pairs that use it."""
    found: dict[int, list[tuple[int, int]]] = {}
    for output in range(wide):
        for tap in range(geometry.tap_cols):
            column = output * geometry.stride[1] + tap * geometry.dilation[1]
            found.setdefault(column, []).append((output, tap))
    return dict(sorted(found.items()))


def _task(layer: _Layer, image: Any, first: Any) -> None:
    """One task: its staging copy, and its tiles."""
    geometry, own, dot = layer.geometry, layer.source, layer.dot
    pitch = staging.pitch(own, layer.staged)
    picture = image * (own.height * own.width * own.c)
    source, origin = layer.buffers.x, picture + first * (own.stride[0] * pitch)
    if layer.staged:
        size = staging.staged_size(own, dot, layer.rows)
        source, origin = T.alloc_buffer((size,), dot.x, layout=None), 0
        given = (layer.buffers.x, layer.problem.inputs[0].dtype)
        staging.stage(own, dot, given, source, layer.rows, (picture, first))
    vectors = ceil(geometry.c / dot.lanes)
    with (
        T.serial(layer.rows) as row,
        T.serial(vectors) as vector,
        T.serial(ceil(geometry.cols / layer.wide)) as tile,
    ):
        channel = tirx.min(vector * dot.lanes, max(geometry.c - dot.lanes, 0))
        col = tirx.min(tile * layer.wide, geometry.cols - layer.wide)
        x = origin + row * (own.stride[0] * pitch) + col * (own.stride[1] * own.c)
        rows = image * int(geometry.static_rows or 1) + first + row
        y = (rows * geometry.cols + col) * geometry.c + channel
        first_read = channel if layer.times == 1 else tirx.floordiv(channel, layer.times)
        _tile(layer, source, (x + first_read, y), (vector, channel))


def _tile(layer: _Layer, source: Any, at: tuple[Any, Any], block: tuple[Any, Any]) -> None:
    """One register tile, from the bias to the store."""
    geometry, dot = layer.geometry, layer.dot
    x, y = T.Bind(at[0] + 0), T.Bind(at[1] + 0)
    weights, table = layer.buffers.constants
    groups = ceil(geometry.tap_rows / dot.depth)
    acc = T.alloc_buffer((layer.wide,), dot.vector, scope="local", layout=None)
    for p in range(layer.wide):
        T.buffer_store(acc, table.vload([tirx.const(0), block[1]], dot.vector), [p])
    for group in range(groups):
        taps = range(group * dot.depth, min((group + 1) * dot.depth, geometry.tap_rows))
        panel = (block[0] * groups + group) * geometry.tap_cols
        for column, uses in touched(geometry, layer.wide).items():
            value = T.Bind(_interleave(layer, source, x + column * layer.source.c, taps))
            for output, tap in uses:
                w = weights.vload([panel + tap, tirx.const(0)], f"{dot.w}x{dot.lanes * dot.depth}")
                T.buffer_store(acc, dot.apply(dot, acc[output], value, w), [output])
    column_epilogue = epilogue.Column(
        layer.problem, table, block[1], dot.lanes, dot.scaling, layer.buffers.entries
    )
    valid = min(geometry.c, dot.lanes)
    for p in range(layer.wide):
        index, other = y + p * geometry.c, None
        if layer.buffers.other is not None:
            other = load(layer.buffers.other, index, dot.lanes, valid)
        store(layer.buffers.output, index, column_epilogue.apply(acc[p], other), valid)


def _interleave(layer: _Layer, source: Any, index: Any, taps: range) -> Any:
    """One input column of several kernel rows, interleaved so that a lane holds one channel."""
    dot, step = layer.dot, layer.source.dilation[0] * staging.pitch(layer.source, layer.staged)
    rows = [_lanes(layer, source, index + tap * step) for tap in taps]
    if dot.depth == 1:
        return rows[0]
    words = f"int32x{dot.lanes}"
    if dot.depth == 2:
        if len(rows) == 1:
            return T.Cast(words, rows[0])  # the upper half meets a zero weight
        order = [i // 2 + (i % 2) * dot.lanes for i in range(2 * dot.lanes)]
        return T.Cast(f"int16x{2 * dot.lanes}", T.Shuffle(rows, order))
    value = T.Cast(words, rows[0])
    for d, row in enumerate(rows[1:], 1):
        shift = tirx.const(8 * d, words)
        value = value | T.shift_left(T.Cast(words, row), shift)
    return value


def _lanes(layer: _Layer, source: Any, index: Any) -> Any:
    """One element of the input for each lane."""
    dot, times = layer.dot, layer.times
    if times >= dot.lanes:
        return T.broadcast(source[index], dot.lanes)
    value = source.vload([index], f"{dot.x}x{dot.lanes // times}")
    every = [i // times for i in range(dot.lanes)]  # TVM wants as many lanes as it gives
    return value if times == 1 else T.Shuffle([value] * times, every)


def families(dots: Sequence[Dot]) -> tuple[Kernel, ...]:
    """The kernels of some dot products, in their order."""
    return tuple(
        Kernel(
            f"cpu.{'f32' if dot.acc == 'float32' else 'int8'}.depthwise.{dot.name}",
            "conv2d",
            partial(_supports, dot),
            partial(_pack, dot),
            partial(_build, dot),
            arch=dot.arch,
            plan=partial(_plan, dot),
        )
        for dot in dots
    )


KERNELS = families((VNNI, MADD_AVX512, MADD_AVX2, FMA_AVX512, FMA_AVX2))
"""By preference; they stand before the blocked template, which refuses depthwise layers."""
