"""Matrix products of 8 bits on AVX2 whose activations stand in an order that suits the weights.

A 1x1 convolution or a linear layer by ``vpmaddubsw``, as in `nybble.schedules.cpu.conv`, but every
unit of output channels reads a copy of the activations in its own order
(`nybble.schedules.cpu.arrange`), which leaves next to no sums that exceed 16 bits: of pairs, or,
where the reduction is long, of windows of two steps, 2.5 instructions for 32 products, not 3:

parallel task = (image, rows, units)
  unit of channels
    copy of the task's rows: load, vpshufb, store
    tile of rows: `nybble.schedules.cpu.tile`
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.errors import ScheduleError
from nybble.schedules.cpu import arrange, headroom, template
from nybble.schedules.cpu.blocking import SERIAL_CYCLES, TASKS, Cost, Plan, Storage, register_tiles
from nybble.schedules.cpu.buffers import declare, product
from nybble.schedules.cpu.conv import families
from nybble.schedules.cpu.dot import PAIRS_AVX2
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.cpu.segments import Segment, segments
from nybble.schedules.cpu.tile import Layer, RegisterTile
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

FEWEST_ROWS = 4  # below, a copy is not worth it
LONG = 512  # activations from which windows of two steps pay for their further steps
SAMPLE = 8  # units that tell whether an order will help
MOST = 0.15  # further steps for each step that may remain; vpmaddwd is the faster one beyond
TASK_BYTES = 256 * 1024  # of rows that every unit reads or writes: they should stay in the caches
DOT = PAIRS_AVX2
SHUFFLES = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b"}


def _cut(problem: Problem, flush: int) -> Problem:
    """The problem in windows of ``flush`` steps."""
    return replace(problem, flush=flush, safe=False)


def _supports(base: Kernel, flush: int, problem: Problem, target: Any) -> str | None:
    reason = base.supports(_cut(problem, flush), target)
    if reason is not None:
        return reason
    if target.has("avx_vnni") or target.has("avx512f"):
        return "an order is for vpmaddubsw on AVX2"
    assert problem.weights is not None
    if problem.weights.dtype != "int8":
        return "weights below 8 bits need no order"
    return _refuse_shape(geometry_of(problem), flush)


def _refuse_shape(geometry: Geometry, flush: int) -> str | None:
    if geometry.tap_rows * geometry.tap_cols > 1 or geometry.stride != (1, 1):
        return "no matrix product"
    if geometry.groups > 1 or geometry.o % DOT.lanes or geometry.run < arrange.BLOCK:
        return f"{geometry.groups} groups of {geometry.run} -> {geometry.o} channels"
    if flush == 2 and geometry.run < LONG:
        return f"{geometry.run} activations are too few for windows of two steps"
    if geometry.static_rows is None or geometry.static_rows < FEWEST_ROWS:
        return "few rows, or a symbolic number of them"
    return None


def _unit(geometry: Geometry) -> int:
    """Vectors of output channels that share an order."""
    vectors = geometry.o // DOT.lanes
    return next(unit for unit in (2, 3, 1) if vectors % unit == 0)


def _pack(base: Kernel, flush: int, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """What `nybble.schedules.cpu.conv` packs, for weights in order, and the orders."""
    problem = _cut(problem, flush)
    geometry, weights = geometry_of(problem), np.asarray(constants["w"])
    flat, unit = weights.reshape(len(weights), -1), _unit(geometry) * DOT.lanes
    kept, *_ = headroom.split(headroom.steps_of(geometry, weights), 1, _limits(problem))
    if np.array_equal(kept.reshape(len(flat), -1)[:, : geometry.run], flat):
        raise ScheduleError("no pair exceeds 16 bits: an order would save nothing")
    if len(flat) > SAMPLE * unit:
        _ordered(problem, flat[: SAMPLE * unit], unit)  # raises early where no order helps
    moved, found = _ordered(problem, flat, unit)
    packed = base.pack(problem, {**constants, "w": moved.reshape(weights.shape)})
    return [*packed, arrange.indices(found)]


def _ordered(
    problem: Problem, weights: NDArray[Any], unit: int
) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Weights (O, K) in the orders of their units, and these.

    Raises:
        ScheduleError: too many steps still exceed 16 bits.
    """
    limits = _limits(problem)
    found = arrange.orders(weights, unit, DOT.lanes, limits, problem.flush)
    moved = np.take_along_axis(weights, np.repeat(found, unit, axis=0), axis=1)
    steps = headroom.steps_of(replace(geometry_of(problem), o=len(weights)), moved)
    _, *given = headroom.split(steps, problem.flush, limits)
    vectors = (part.reshape(len(moved) // DOT.lanes, DOT.lanes, -1, DOT.depth) for part in given)
    further = float(sum(part.any(axis=(1, 3)).mean() for part in vectors))
    if further > MOST:
        raise ScheduleError(f"{further:.0%} of the steps still exceed 16 bits")
    return moved, found


def _limits(problem: Problem) -> headroom.Limits:
    return headroom.limits_of(problem.inputs[0].dtype)


def _plan(flush: int, problem: Problem, _target: Any, knobs: Knobs) -> Plan:
    geometry = geometry_of(_cut(problem, flush))
    return _cut_plan(geometry, _most_rows(problem), flush, knobs)


def _build(flush: int, problem: Problem, _target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The fused function; parameters: input, second branch if any, constants, order, output."""
    problem, geometry = _cut(problem, flush), geometry_of(problem)
    unit, symbols = _unit(geometry), dict[str, Any]()
    plan = _cut_plan(geometry, _most_rows(problem), flush, knobs)
    length = ceil(geometry.run / arrange.BLOCK) * arrange.BLOCK
    order = TensorSpec((geometry.o // DOT.lanes // unit, length), "uint8")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        specs = (
            template.weights_spec(problem, geometry, DOT),
            TensorSpec(template.table_shape(problem, geometry, DOT), DOT.acc),
            *template.excess_specs(problem, geometry, DOT),
            order,
        )
        buffers = declare(problem, specs, symbols)
        layer = Layer(problem, geometry, DOT, plan, True, None, buffers)
        rows = product(geometry.rows, symbols)
        for segment in segments(plan, rows):
            units = geometry.o // DOT.lanes // unit
            share = ceil(units / plan.splits)
            loop = T.parallel if plan.parallel else T.serial
            with loop(product(geometry.images, symbols) * segment.count * plan.splits) as task:
                run = tirx.floordiv(task, plan.splits)
                first = tirx.min(tirx.floormod(task, plan.splits) * share, units - share)
                image = tirx.floordiv(run, segment.count)
                row = image * rows + segment.first(tirx.floormod(run, segment.count))
                _task(layer, segment, T.Bind(row), (first, share, unit))
    return builder.get()


def _most_rows(problem: Problem) -> int:
    """Rows of a task whose activations stay in the caches from one unit to the next: 7 % faster."""
    return max(1, TASK_BYTES // sum(int(spec.shape[-1]) for spec in problem.tensors))


def _cut_plan(geometry: Geometry, most: int, flush: int, knobs: Knobs) -> Plan:
    """Tiles, rows (by default ``most``) and splits for a unit of channels, a product by itself."""
    one, dot = replace(geometry, o=_unit(geometry) * DOT.lanes), DOT.paced(flush)
    cost = Cost(one, dot, Storage(True, False))
    tiles = {str(tile): tile for tile in register_tiles(one, dot)}
    best = min(tiles.values(), key=lambda tile: cost.best(tile, 1)[0])
    tile = tiles[knobs.pick("tile", tuple(tiles), str(best))]
    cycles, (wanted, _) = cost.best(tile, 1)
    units, total = geometry.o // one.o, int(geometry.static_rows or 1)
    wanted = max(tile.high, min(wanted, ceil(total / ceil(total / most))))
    parallel = knobs.pick("parallel", (False, True), cycles * units > SERIAL_CYCLES)
    rows = knobs.pick("rows", tuple(range(tile.high, total + 1)), wanted)
    enough = ceil(TASKS / ceil(total / rows)) if parallel else 1
    choices = [count for count in range(1, units + 1) if units % count == 0]
    splits = knobs.pick("splits", choices, min((c for c in choices if c >= enough), default=units))
    return Plan(tile, tile, rows, splits, parallel)


def _task(layer: Layer, segment: Segment, row: Any, units: tuple[Any, int, int]) -> None:
    """One task, unit by unit: its copy of the rows and its tiles."""
    geometry, tile, (first, share, unit) = layer.geometry, segment.tile, units
    steps, source = geometry.runs(DOT.depth), layer.weights
    copy = T.alloc_buffer((segment.rows * geometry.c + arrange.BLOCK,), "uint8", layout=None)
    with T.serial(share) as u:
        at = T.Bind(first + u)
        _arrange(layer, copy, row * geometry.c, at, segment.rows)
        with (
            T.serial(ceil(unit / tile.vectors)) as block,
            T.serial(ceil(segment.rows / tile.high)) as y,
        ):
            vector = at * unit + tirx.min(block * tile.vectors, unit - tile.vectors)
            panel = T.Bind(vector * steps)

            def operand(v: int, step: Any, panel: Any = panel) -> Any:
                return source.vload([panel + v * steps + step, tirx.const(0)], "int8x32")

            up = tirx.min(y * tile.high, segment.rows - tile.high)
            where = (up * geometry.c, (row + up) * geometry.o)
            RegisterTile(layer, tile, (copy, operand), where, (0, vector)).emit()


def _arrange(layer: Layer, copy: Any, start: Any, unit: Any, rows: int) -> None:
    """The copy of ``rows`` rows in the order of a unit, two blocks at a time."""
    geometry, order = layer.geometry, layer.buffers.constants[-1]
    k, signed = geometry.c, layer.buffers.x.dtype == "int8"

    def move(row: Any, block: Any, at: Any, lanes: int) -> None:
        value = layer.buffers.x.vload([start + row * k + at], f"{layer.buffers.x.dtype}x{lanes}")
        if signed:
            dtype = f"uint8x{lanes}"
            offset = DOT.offset(layer.problem.inputs[0].dtype)
            value = T.reinterpret(dtype, value) + T.broadcast(tirx.const(offset, "uint8"), lanes)
        table = order.vload([unit, block], f"uint8x{lanes}")
        kinds = [T.reinterpret(f"int8x{lanes}", part) for part in (value, table)]
        moved = T.call_llvm_pure_intrin(f"int8x{lanes}", SHUFFLES[lanes], *kinds)
        place = T.ramp(row * k + block, 1, lanes)
        T.buffer_store(copy, T.reinterpret(f"uint8x{lanes}", moved), [place])

    with T.serial(rows) as row:
        with T.serial(k // 32) as i:
            move(row, i * 32, i * 32, 32)
        if k % 32 >= arrange.BLOCK:
            move(row, k // 32 * 32, k // 32 * 32, arrange.BLOCK)
        if k % arrange.BLOCK:
            move(row, k // arrange.BLOCK * arrange.BLOCK, k - arrange.BLOCK, arrange.BLOCK)


KERNELS = tuple(
    Kernel(
        f"cpu.int8.avx2.arranged{'.twos' if flush == 2 else ''}",
        base.op,
        partial(_supports, base, flush),
        partial(_pack, base, flush),
        partial(_build, flush),
        arch=base.arch,
        plan=partial(_plan, flush),
    )
    for flush in (2, 1)
    for base in families((PAIRS_AVX2,))
)
"""Before the unordered kernels, which take what needs no order."""
