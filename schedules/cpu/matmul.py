"""Products of two tensors, as in attention: the blocked template with a matrix for weights.

It is packed when it is known:

parallel task = one pair of matrices
  b as [vectors][k][lanes][depth] into a scratch, and the sums of its columns
  rows of a: staging copy if needed, then `nybble.schedules.cpu.tile`

A zero point of ``a``, and what the dot product adds to it, leave through the sums of the columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import epilogue, scaling, staging
from nybble.schedules.cpu.blocking import (
    SERIAL_CYCLES,
    STAGED_BYTES,
    Cost,
    Plan,
    Storage,
    Tile,
    register_tiles,
)
from nybble.schedules.cpu.buffers import Buffers, declare, product
from nybble.schedules.cpu.dot import AVX_VNNI, MADD_AVX2, MADD_AVX512, VNNI, Dot
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.tile import Layer, RegisterTile
from nybble.schedules.kernel import Constants, Epilogue, Kernel, Knobs, Problem, TensorSpec

DOTS = tuple(
    replace(dot, w="int16") if dot.x == "int16" else dot
    for dot in (VNNI, AVX_VNNI, MADD_AVX512, MADD_AVX2)
)


def _supports(dot: Dot, problem: Problem, target: Any) -> str | None:
    if target.arch != dot.arch or not target.has(*dot.features):
        return f"needs {', '.join(dot.features)}"
    return _refuse_operands(dot, problem) or epilogue.refuse(problem)


def _refuse_operands(dot: Dot, problem: Problem) -> str | None:
    a, b = problem.inputs
    if a.shape[:-2] != b.shape[:-2]:
        return "the leading axes of the two tensors differ"
    if any(isinstance(extent, str) for extent in (*a.shape[-2:], *b.shape[-2:])):
        return "an extent of the matrices is symbolic"
    if not (epilogue.is_narrow(a.dtype) and epilogue.is_narrow(b.dtype)):
        return f"computes integers of up to 8 bits, not {a.dtype} x {b.dtype}"
    if b.dtype == "uint8" and dot.w == "int8":
        return "the second tensor is unsigned"
    if problem.attr("zero_point_b"):
        return "the second tensor has a zero point"
    columns = int(problem.output.shape[-1])
    return f"{columns} columns fill no vector" if columns < dot.lanes else None


def geometry_of(problem: Problem) -> Geometry:
    """One pair of matrices as a linear layer."""
    *images, rows, k = problem.inputs[0].shape
    columns = int(problem.output.shape[-1])
    return Geometry(
        tuple(images), (int(rows),), 1, 1, int(k), columns, 1, 1, int(k), height=int(rows)
    )


@dataclass(frozen=True)
class _Product:
    """What the emitting functions share: the second matrix, its scratch, the product as a layer."""

    transposed: bool
    b: Any
    packed: Any
    table: Any
    given: Any
    offset: int
    layer: Layer


# ---------------------------------------------------------------- pack


def _pack(_dot: Dot, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """The epilogue's table, its row of biases zero."""
    columns = int(problem.output.shape[-1])
    return [scaling.table(problem, constants, np.zeros(columns, np.int64), columns)]


# ---------------------------------------------------------------- build


def _plan(dot: Dot, problem: Problem, _target: Any, knobs: Knobs) -> Plan:
    geometry = geometry_of(problem)
    cost = Cost(geometry, dot, Storage(staging.is_staged(problem, geometry, dot), False))
    tiles = {str(tile): tile for tile in register_tiles(geometry, dot)}
    best = min(tiles.values(), key=lambda tile: cost.best(tile, 1)[0])
    tile = tiles[knobs.pick("tile", tuple(tiles), str(best))]
    heads = prod(extent for extent in geometry.images if isinstance(extent, int))
    busy = heads * cost.best(tile, 1)[0] > SERIAL_CYCLES
    return Plan(tile, tile, None, 1, knobs.pick("parallel", (False, True), busy))


def _build(dot: Dot, problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    cut, geometry = _plan(dot, problem, target, knobs), geometry_of(problem)
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        shape = (scaling.table_rows(problem.epilogue), geometry.o)
        second = replace(problem, epilogue=Epilogue(other=problem.inputs[1]))
        buffers = declare(second, (TensorSpec(shape, "int32"),), symbols)
        loop = T.parallel if cut.parallel else T.serial
        with loop(product(geometry.images, symbols)) as image:
            _task(_product_of(dot, problem, cut, buffers), image)
    return builder.get()


def _product_of(dot: Dot, problem: Problem, cut: Plan, buffers: Buffers) -> _Product:
    """Allocates a task's scratch."""
    geometry, given = geometry_of(problem), buffers.constants[0]
    vectors, chunk = ceil(geometry.o / dot.lanes), dot.lanes * dot.depth
    steps = geometry.runs(dot.depth)
    packed = T.alloc_buffer((vectors * steps * chunk,), dot.w, layout=None)
    offset = dot.offset(problem.inputs[0].dtype) + problem.attr("zero_point_a")
    table = given
    if offset:
        table = T.alloc_buffer([int(extent) for extent in given.shape], "int32", layout=None)
    weights = TensorSpec((geometry.o, geometry.c), "int8")
    layer = Layer(
        replace(problem, op="linear", inputs=problem.inputs[:1], weights=weights),
        geometry,
        dot,
        cut,
        staging.is_staged(problem, geometry, dot),
        None,
        replace(buffers, other=None, constants=(packed, table)),
    )
    transposed = bool(problem.attr("transpose_b"))
    return _Product(transposed, buffers.other, packed, table, given, offset, layer)


def _task(whole: _Product, image: Any) -> None:
    layer, tile = whole.layer, whole.layer.plan.tile
    geometry, dot = layer.geometry, layer.dot
    _pack_b(whole, image * (geometry.c * geometry.o))
    rows = int(geometry.rows[0])
    taken = _rows_of_task(layer, rows)
    source, scratch = layer.buffers.x, None
    if layer.staged:
        size = staging.staged_size(geometry, dot, taken)
        scratch = T.alloc_buffer((size,), dot.x, layout=None)
    with T.serial(ceil(rows / taken)) as part:
        first = T.Bind(tirx.min(part * taken, rows - taken))
        origin = image * (rows * geometry.c) + first * geometry.c
        if scratch is not None:
            given = (layer.buffers.x, layer.problem.inputs[0].dtype)
            picture = image * (rows * geometry.c)
            staging.stage(geometry, dot, given, scratch, taken, (picture, first))
            source, origin = scratch, 0
        _tiles(layer, tile, source, (origin, (image * rows + first) * geometry.o), taken)


def _rows_of_task(layer: Layer, rows: int) -> int:
    """Rows whose staging copy fits the first-level cache; all of them without one."""
    if not layer.staged:
        return rows
    row = layer.geometry.c * (2 if layer.dot.x == "int16" else 1)
    high = layer.plan.tile.high
    return min(rows, max(STAGED_BYTES // row // high, 1) * high)


def _tiles(layer: Layer, tile: Tile, source: Any, at: tuple[Any, Any], rows: int) -> None:
    dot, geometry = layer.dot, layer.geometry
    steps, chunk = geometry.runs(dot.depth), dot.lanes * dot.depth
    blocks = ceil(layer.vectors / tile.vectors)
    with T.serial(blocks) as block, T.serial(ceil(rows / tile.high)) as part:
        vector = tirx.min(block * tile.vectors, layer.vectors - tile.vectors)
        row = tirx.min(part * tile.high, rows - tile.high)
        first = T.Bind(vector * steps)

        def weights(v: int, step: Any, first: Any = first) -> Any:
            place = (first + v * steps + step) * chunk
            return layer.buffers.constants[0].vload([place], f"{dot.w}x{chunk}")

        x, y = at[0] + row * geometry.c, at[1] + row * geometry.o
        RegisterTile(layer, tile, (source, weights), (x, y), (0, vector)).emit()


# ---------------------------------------------------------------- the second matrix


def _pack_b(whole: _Product, origin: Any) -> None:
    """One matrix in the order of use; the table's biases from the sums of its columns."""
    layer = whole.layer
    geometry, dot = layer.geometry, layer.dot
    steps, rest = divmod(geometry.run, dot.depth)
    if whole.table is not whole.given:
        _copy_table(whole)
    with T.serial(layer.vectors) as vector:
        start = T.Bind(tirx.min(vector * dot.lanes, geometry.o - dot.lanes))
        first = T.Bind(vector * (geometry.runs(dot.depth) * dot.lanes * dot.depth))
        with T.serial(steps) as step:
            place = T.Bind(first + step * (dot.lanes * dot.depth))
            pack = _columns if whole.transposed else _rows
            pack(whole, origin, (start, step * dot.depth), place)
        if rest:
            place = T.Bind(first + steps * dot.lanes * dot.depth)
            _remainder(whole, origin, (start, rest), place)
        if whole.table is not whole.given:
            _biases(whole, start, first)


def _copy_table(whole: _Product) -> None:
    rows, columns = (int(extent) for extent in whole.given.shape)
    with T.serial(rows) as row, T.serial(columns) as column:
        T.buffer_store(whole.table, whole.given[row, column], [row, column])


def _rows(whole: _Product, origin: Any, at: tuple[Any, Any], place: Any) -> None:
    """``depth`` rows of (K, N), interleaved."""
    dot, (start, k) = whole.layer.dot, at
    held = f"{whole.b.dtype}x{dot.lanes}"
    lines = [
        whole.b.vload([origin + (k + d) * whole.layer.geometry.o + start], held)
        for d in range(dot.depth)
    ]
    order = [d * dot.lanes + lane for lane in range(dot.lanes) for d in range(dot.depth)]
    chunk = dot.lanes * dot.depth
    value = T.Shuffle([T.Bind(line) for line in lines], order)
    if str(whole.b.dtype) != dot.w:
        value = T.Cast(f"{dot.w}x{chunk}", value)
    T.buffer_store(whole.packed, value, [T.ramp(place, 1, chunk)])


def _columns(whole: _Product, origin: Any, at: tuple[Any, Any], place: Any) -> None:
    """``depth`` neighbours of each of the rows of (N, K)."""
    dot, (start, k) = whole.layer.dot, at
    with T.serial(dot.lanes) as lane:
        index = origin + (start + lane) * whole.layer.geometry.c + k
        few = whole.b.vload([index], f"{whole.b.dtype}x{dot.depth}")
        if str(whole.b.dtype) != dot.w:
            few = T.Cast(f"{dot.w}x{dot.depth}", few)
        T.buffer_store(whole.packed, few, [T.ramp(place + lane * dot.depth, 1, dot.depth)])


def _remainder(whole: _Product, origin: Any, at: tuple[Any, int], place: Any) -> None:
    """The last values of K, filled up with zeros."""
    geometry, dot, (start, rest) = whole.layer.geometry, whole.layer.dot, at
    k = geometry.run - rest
    with T.serial(dot.lanes) as lane:
        for d in range(dot.depth):
            column = start + lane
            index = (
                column * geometry.c + k + d if whole.transposed else (k + d) * geometry.o + column
            )
            value = whole.b[origin + index].astype(dot.w) if d < rest else tirx.const(0, dot.w)
            T.buffer_store(whole.packed, value, [place + lane * dot.depth + d])


def _biases(whole: _Product, start: Any, first: Any) -> None:
    """-offset·Σ_k b of a vector of columns: their dot product with ones."""
    geometry, dot = whole.layer.geometry, whole.layer.dot
    chunk = dot.lanes * dot.depth
    sums = T.alloc_buffer((1,), dot.vector, scope="local", layout=None)
    T.buffer_store(sums, T.broadcast(tirx.const(0, "int32"), dot.lanes), [0])
    ones = T.broadcast(tirx.const(1, dot.x), chunk)
    with T.serial(geometry.runs(dot.depth)) as step:
        w = whole.packed.vload([first + step * chunk], f"{dot.w}x{chunk}")
        T.buffer_store(sums, dot.apply(dot, sums[0], ones, w), [0])
    by = T.broadcast(tirx.const(-whole.offset, "int32"), dot.lanes)
    T.buffer_store(whole.table, sums[0] * by, [tirx.const(0), T.ramp(start, 1, dot.lanes)])


KERNELS = tuple(
    Kernel(
        f"cpu.int8.{dot.name}",
        "matmul",
        partial(_supports, dot),
        partial(_pack, dot),
        partial(_build, dot),
        arch=dot.arch,
        plan=partial(_plan, dot),
    )
    for dot in DOTS
)
"""By preference; what they refuse is left to `nybble.schedules.cpu.matmul_generic`."""
