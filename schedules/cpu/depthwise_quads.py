"""Depthwise convolution of integers on x86: four taps at a time (see `nybble.schedules.cpu.quads`).

parallel task = (image, rows)
  chunk of channel blocks
    the task's input rows as pairs P[y] = (row y, row y + dilation), padded, [y][column][2c]
    output row, block of channels (two vectors), tile of ``wide`` output columns
      acc[wide][2] = bias
      quad of kernel rows, input column:
        x[2] = P[a], P[b] interleaved;  acc = dot(acc, x, w) for every output that reads it
      or, where ``vpmaddubsw`` might saturate: pair of kernel rows, input column:
        x[2] = P[a] at 16 bits;         acc += vpmaddwd(x, w)
      epilogue, store
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import epilogue, packing, quads, scaling
from nybble.schedules.cpu.blocking import TASKS
from nybble.schedules.cpu.buffers import Buffers, declare, product
from nybble.schedules.cpu.depthwise import geometry_of, touched
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.pairs import Pairs
from nybble.schedules.cpu.quads import Quads
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

PAIRS_BYTES = 32 * 1024  # a chunk's pairs should stay near the first-level cache
SERIAL_STEPS = 35_000  # dot products, about 45 µs; fewer do not pay for a parallel launch


def _supports(isa: Quads, problem: Problem, target: Any) -> str | None:
    if target.arch != "x86_64" or not target.has(*isa.features):
        return f"needs {', '.join(isa.features)}"
    return _refuse_operands(isa, problem) or epilogue.refuse(problem)


def _refuse_operands(isa: Quads, problem: Problem) -> str | None:
    assert problem.weights is not None
    x, (channels, _, _, per_group) = problem.inputs[0], problem.weights.shape
    if (problem.attr("groups"), per_group) != (channels, 1):
        return "not depthwise with one output for each input channel"
    if int(channels) < isa.channels:
        return f"{channels} channels fill no block of {isa.channels}"
    if not epilogue.is_narrow(x.dtype) or not epilogue.is_narrow(problem.weights.dtype):
        return f"computes integers of at most 8 bits, not {x.dtype} x {problem.weights.dtype}"
    if problem.weights.dtype == "uint8":
        return "weights uint8 do not fit int8"
    if not isa.saturates and problem.attr("strides")[0] > 1:
        return "strided rows share no pairs, which costs more than it saves here"
    symbolic = any(isinstance(extent, str) for extent in x.shape[1:])
    return "more than the batch is symbolic" if symbolic else None


# ---------------------------------------------------------------- pack


def _starts(geometry: Geometry, isa: Quads) -> NDArray[np.int64]:
    """First channel of every block; the last one overlaps its predecessor."""
    blocks = ceil(geometry.c / isa.channels)
    return np.minimum(np.arange(blocks) * isa.channels, geometry.c - isa.channels)


def _is_wide(problem: Problem, isa: Quads) -> bool:
    """Whether products may exceed 16 bits in pairs, so that values are staged at 16 bits."""
    assert problem.weights is not None
    return isa.saturates and not quads.fits_short(problem.inputs[0].dtype, problem.weights.dtype, 1)


def _pairs(isa: Quads, problem: Problem, rows: int, chunk: int) -> Pairs:
    """The staged rows of a task of ``rows`` output rows, for ``chunk`` blocks of channels."""
    geometry, wide = geometry_of(problem), _is_wide(problem, isa)
    shift = 0 if wide else quads.offset(problem.inputs[0].dtype)
    return Pairs(geometry, rows, min(chunk * isa.channels, geometry.c), shift, wide)


def _shapes(problem: Problem, geometry: Geometry, isa: Quads) -> tuple[TensorSpec, ...]:
    """Of the packed constants: weights and the table.

    Weights are [blocks][quads][KW][2] of [lanes][4], wide ones [blocks][parities][pairs][KW][2] of
    [lanes][2].
    """
    blocks, wide = ceil(geometry.c / isa.channels), _is_wide(problem, isa)
    pairs = _pairs(isa, problem, 1, 1)
    steps = pairs.parities * pairs.count if wide else len(quads.row_pairs(geometry.tap_rows))
    rows = blocks * steps * geometry.tap_cols * 2
    dtype, depth = ("int16", 2) if wide else ("int8", 4)
    return (
        TensorSpec((rows, depth * isa.lanes), dtype),
        TensorSpec((scaling.table_rows(problem.epilogue), blocks * isa.channels), "int32"),
    )


def _order(problem: Problem, isa: Quads) -> NDArray[np.int64]:
    """The channel, within its block, that each lane of the two vectors holds."""
    return np.arange(isa.channels) if _is_wide(problem, isa) else isa.order()


def _pack(isa: Quads, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """What `_shapes` describes."""
    geometry, pairs = geometry_of(problem), _pairs(isa, problem, 1, 1)
    weights = np.asarray(constants["w"])[..., 0]
    bias = constants["bias"].astype(np.int64) - pairs.offset * weights.sum((1, 2), dtype=np.int64)
    channels = np.add.outer(_starts(geometry, isa), _order(problem, isa))
    table = scaling.table(problem, constants, bias, geometry.c)[:, channels.ravel()]
    slots = quads.pair_slots(weights, pairs) if pairs.wide else quads.slots(weights)
    blocked = slots[channels].reshape(len(channels), 2, isa.lanes, -1, slots.shape[-1])
    ordered = np.ascontiguousarray(blocked.transpose(0, 3, 1, 2, 4))
    return [ordered.reshape(-1, isa.lanes * slots.shape[-1]), table]


# ---------------------------------------------------------------- build


@dataclass(frozen=True)
class Cut:
    """The decisions for one kernel.

    Attributes:
        wide: output columns of a tile.
        chunk: blocks of channels that are staged together.
        rows: output rows of a task.
        parallel: whether tasks run on several threads.
    """

    wide: int
    chunk: int
    rows: int
    parallel: bool


@dataclass(frozen=True)
class _Layer:
    """Everything that the emitting functions share."""

    problem: Problem
    geometry: Geometry
    isa: Quads
    wide: int
    pairs: Pairs
    buffers: Buffers

    @property
    def steps(self) -> int:
        """Dot products of one output and vector."""
        if self.pairs.wide:
            return self.pairs.count * self.geometry.tap_cols
        return len(quads.row_pairs(self.geometry.tap_rows)) * self.geometry.tap_cols

    @property
    def sums(self) -> bool:
        """All products of an output add up within 16 bits, so they are widened once."""
        assert self.problem.weights is not None
        dtypes = self.problem.inputs[0].dtype, self.problem.weights.dtype
        return self.isa.saturates and quads.fits_short(*dtypes, self.steps)


def _plan(isa: Quads, problem: Problem, _target: Any, knobs: Knobs) -> Cut:
    return Cut(_pick_width(problem, isa, knobs), *_pick_task(problem, isa, knobs))


def _build(isa: Quads, problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, constants, output."""
    geometry, cut = geometry_of(problem), _plan(isa, problem, target, knobs)
    rows = cut.rows
    total = int(geometry.static_rows or 1)
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        buffers = declare(problem, _shapes(problem, geometry, isa), symbols)
        pairs = _pairs(isa, problem, rows, cut.chunk)
        layer = _Layer(problem, geometry, isa, cut.wide, pairs, buffers)
        runs = ceil(total / rows)
        loop = T.parallel if cut.parallel else T.serial
        with loop(product(geometry.images, symbols) * runs) as task:
            first = T.Bind(tirx.min(tirx.floormod(task, runs) * rows, total - rows))
            _task(layer, T.Bind(tirx.floordiv(task, runs)), first)
    return builder.get()


def _pick_width(problem: Problem, isa: Quads, knobs: Knobs) -> int:
    """Output columns of a tile: two accumulators each, and some registers beside them."""
    geometry, wide_values = geometry_of(problem), _is_wide(problem, isa)
    most = min(geometry.cols, (isa.registers - (2 if wide_values else 6)) // 2)

    def cost(wide: int) -> tuple[float, int]:
        tiles = ceil(geometry.cols / wide)
        shuffles = 2 * len(touched(geometry, wide))
        return tiles * (shuffles + 6 * wide * geometry.tap_cols + 20 * wide + 8), wide

    return knobs.pick("wide", tuple(range(1, most + 1)), min(range(1, most + 1), key=cost))


def _pick_task(problem: Problem, isa: Quads, knobs: Knobs) -> tuple[int, int, bool]:
    """Channel blocks of a chunk, output rows of a task, and whether tasks run in parallel."""
    geometry = geometry_of(problem)
    rows, blocks = int(geometry.static_rows or 1), ceil(geometry.c / isa.channels)
    steps = rows * geometry.cols * blocks * 2 * geometry.tap_cols
    parallel = knobs.pick("parallel", (False, True), steps > SERIAL_STEPS)
    most = ceil(rows / TASKS) if parallel else rows
    chunks = [c for c in range(1, blocks + 1) if blocks % c == 0]

    def cost(choice: tuple[int, int]) -> float:
        chunk, tall = choice
        pairs = _pairs(isa, problem, tall, chunk)
        over = max(0.0, pairs.size * (1 + pairs.wide) / PAIRS_BYTES - 1)
        done = ceil(rows / tall) * tall / rows  # the last task overlaps its predecessor
        staged = pairs.rows * pairs.every / tall / geometry.stride[0]
        return done * (staged + 2) + 0.05 * over + 0.4 / chunk  # small chunks read parts of lines

    best = min(((c, r) for c in chunks for r in range(1, most + 1)), key=cost)
    chunk = knobs.pick("chunk", chunks, best[0])
    return chunk, knobs.pick("rows", tuple(range(1, rows + 1)), best[1]), parallel


def _task(layer: _Layer, image: Any, first: Any) -> None:
    """One task: chunk by chunk its pairs and its tiles."""
    geometry, isa, pairs = layer.geometry, layer.isa, layer.pairs
    chunk = ceil(pairs.channels / isa.channels)
    total = int(geometry.static_rows or 1)
    scratch = T.alloc_buffer((pairs.size,), pairs.dtype, layout=None)
    with T.serial(ceil(geometry.c / pairs.channels)) as part:
        channel = T.Bind(tirx.min(part * pairs.channels, geometry.c - pairs.channels))
        pairs.stage(layer.buffers.x, scratch, image, first, channel)
        with T.serial(pairs.outputs) as row, T.serial(chunk) as b:
            block = T.Bind(part * chunk + b)
            inner = T.Bind(tirx.min(block * isa.channels, geometry.c - isa.channels) - channel)
            window, parity = pairs.window(row)
            x = T.Bind(window + 2 * inner)
            panel = T.Bind(block * pairs.parities + (parity if pairs.parities > 1 else 0))
            y = T.Bind(
                (image * total + first + row) * (geometry.cols * geometry.c) + channel + inner
            )
            with T.serial(ceil(geometry.cols / layer.wide)) as tile:
                col = T.Bind(tirx.min(tile * layer.wide, geometry.cols - layer.wide))
                at = x + col * (geometry.stride[1] * pairs.step), y + col * geometry.c
                _Tile(layer, scratch, (block, panel), *at).emit()


class _Tile:
    """One register tile, from the bias to the store."""

    def __init__(self, layer: _Layer, source: Any, block: tuple[Any, Any], x: Any, y: Any):
        self.layer, self.source = layer, source
        self.block, self.x, self.y = T.Bind(block[0] + 0), T.Bind(x + 0), T.Bind(y + 0)
        self.panel = T.Bind(block[1] * (2 * layer.steps))
        self.weights, self.table = layer.buffers.constants[:2]
        self.columns = [
            T.Bind(self.block * layer.isa.channels + v * layer.isa.lanes) for v in (0, 1)
        ]

    def emit(self) -> None:
        """Emits the tile."""
        layer, isa = self.layer, self.layer.isa
        acc = T.alloc_buffer((2 * layer.wide,), isa.words, scope="local", layout=None)
        for v, start in enumerate(self.columns):
            bias = T.Bind(self.table.vload([tirx.const(0), start], isa.words))
            for p in range(layer.wide):
                T.buffer_store(acc, bias, [2 * p + v])
        if layer.sums:
            self._short(acc)
        elif layer.pairs.wide:
            self._wide(acc)
        else:
            self._narrow(acc)
        self._finish(acc)

    def _loaded(self) -> Any:
        """Every (first kernel column of a quad, its two vectors of pairs, what uses them)."""
        layer, pairs = self.layer, self.layer.pairs
        for group, rows in enumerate(quads.row_pairs(layer.geometry.tap_rows)):
            for column, uses in touched(layer.geometry, layer.wide).items():
                at = [self.x + pairs.at(row) + column * pairs.step for row in rows]
                dtype = f"uint8x{4 * layer.isa.lanes}"
                loaded = [T.Bind(self.source.vload([i], dtype)) for i in at]
                yield group * layer.geometry.tap_cols, loaded, uses

    def _weight(self, step: int, v: int) -> Any:
        row = self.panel + (2 * step + v)
        lanes = int(self.weights.shape[1])
        return self.weights.vload([row, tirx.const(0)], f"{self.weights.dtype}x{lanes}")

    def _narrow(self, acc: Any) -> None:
        """Quads of bytes."""
        isa = self.layer.isa
        for first, loaded, uses in self._loaded():
            x = isa.interleave(*loaded)
            for output, tap in uses:
                for v in (0, 1):
                    w = self._weight(first + tap, v)
                    slot = 2 * output + v
                    T.buffer_store(acc, isa.apply(isa, acc[slot], x[v], w), [slot])

    def _wide(self, acc: Any) -> None:
        """Pairs of 16 bits."""
        layer, isa, pairs = self.layer, self.layer.isa, self.layer.pairs
        columns = layer.geometry.tap_cols
        for pair in range(pairs.count):
            row = self.x + pairs.taps(0, pair)[0] * pairs.pitch
            for column, uses in touched(layer.geometry, layer.wide).items():
                for v in (0, 1):
                    at = row + (column * pairs.step + 2 * v * isa.lanes)
                    x = T.Bind(self.source.vload([at], f"int16x{isa.channels}"))
                    for output, tap in uses:
                        slot, w = 2 * output + v, self._weight(pair * columns + tap, v)
                        T.buffer_store(acc, isa.add_wide(acc[slot], x, w), [slot])

    def _short(self, acc: Any) -> None:
        """The sums of 16 bits, and their widening into the accumulators."""
        isa, wide = self.layer.isa, self.layer.wide
        short = T.alloc_buffer((2 * wide,), f"int16x{isa.channels}", scope="local", layout=None)
        seen: set[int] = set()
        for first, loaded, uses in self._loaded():
            x = isa.interleave(*loaded)
            for output, tap in uses:
                for v in (0, 1):
                    pairs = isa.pairs(x[v], self._weight(first + tap, v))
                    slot = 2 * output + v
                    T.buffer_store(short, short[slot] + pairs if slot in seen else pairs, [slot])
                    seen.add(slot)
        for slot in range(2 * wide):
            T.buffer_store(acc, acc[slot] + isa.widened(short[slot]), [slot])

    def _finish(self, acc: Any) -> None:
        """Epilogue and store; int32 is brought back into its order."""
        layer, isa, problem = self.layer, self.layer.isa, self.layer.problem
        scale = [
            epilogue.Column(problem, self.table, start, isa.lanes, entries=layer.buffers.entries)
            for start in self.columns
        ]
        order = _order(problem, isa)
        for p in range(layer.wide):
            index = self.y + p * layer.geometry.c
            values = [acc[2 * p], acc[2 * p + 1]]
            if problem.epilogue.kind == "none":
                value = T.Shuffle(values, np.argsort(order).tolist())
            else:
                others = self._others(index, order)
                steps = [s.steps(a, o) for s, a, o in zip(scale, values, others, strict=True)]
                value = packing.packed(problem, layer.buffers.entries, steps, layer.pairs.wide)
            T.buffer_store(layer.buffers.output, value, [T.ramp(index, 1, isa.channels)])

    def _others(self, index: Any, order: NDArray[np.int64]) -> list[Any]:
        """The second branch in the order of the two vectors."""
        layer, lanes = self.layer, self.layer.isa.lanes
        if layer.buffers.other is None:
            return [None, None]
        dtype = f"{layer.buffers.other.dtype}x{2 * lanes}"
        both = T.Bind(layer.buffers.other.vload([index], dtype))
        return [T.Shuffle([both], order[v * lanes : (v + 1) * lanes].tolist()) for v in (0, 1)]


KERNELS = tuple(
    Kernel(
        f"cpu.int8.depthwise.quads.{isa.name}",
        "conv2d",
        partial(_supports, isa),
        partial(_pack, isa),
        partial(_build, isa),
        arch="x86_64",
        plan=partial(_plan, isa),
    )
    for isa in quads.FAMILIES
)
"""By preference; layers of few channels are left to `nybble.schedules.cpu.depthwise`."""
