"""The loop nest of `nybble.schedules.cpu.winograd`, emitted as TensorIR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import nibbles, panels, staging
from nybble.schedules.cpu.loops import stored
from nybble.schedules.cpu.winograd_finish import finish
from nybble.schedules.cpu.winograd_plan import TAPS, Layer
from nybble.schedules.cpu.winograd_range import SPOTS, shift_of

Line = list[Any]


def emit_task(layer: Layer, where: tuple[Any, Any], blocks: tuple[Any, int]) -> None:
    """One task: its staging copy, the transforms, and the blocks of channels."""
    geometry, (image, first), dot, cut = layer.geometry, where, layer.dot, layer.cut
    size = layer.groups * cut.wide * SPOTS * geometry.c + dot.depth
    v = T.alloc_buffer((size,), dot.x, layout=None)
    u = T.alloc_buffer((cut.vectors * SPOTS * layer.spot,), dot.w, layout=None)
    dtype, _, lanes = layer.held.partition("x")
    slots = SPOTS * cut.wide * cut.vectors
    sums = T.alloc_buffer((slots * int(lanes),), dtype, layout=None)
    _transform_input(layer, v, image * (geometry.height * geometry.width * geometry.c), first)
    out = (image * layer.total + first) * (geometry.cols * geometry.o)
    with T.serial(blocks[1]) as b:
        last = layer.columns - cut.vectors
        vector = T.Bind(tirx.min((blocks[0] + b) * cut.vectors, last))
        _transform_weights(layer, u, vector)
        with T.serial(layer.groups) as group:
            _multiply(layer, v, u, sums, group)
            finish(layer, sums, vector, (T.Bind(layer.first(group)), out))


# ---------------------------------------------------------------- transforms


def _transform_input(layer: Layer, v: Any, image: Any, first: Any) -> None:
    """The band's tiles as V[group][16][wide][C], by way of a padded copy of its input rows."""
    geometry, cut, lanes = layer.geometry, layer.cut, layer.chunk
    spec = layer.problem.inputs[0]
    narrow = layer.dot.x == "uint8"
    held = layer.dot.x if narrow else stored(spec.dtype)
    plain = replace(layer.dot, x=held)  # s16 widens what the copy keeps in the input's type
    size = staging.staged_size(geometry, plain, cut.rows)
    rows = T.alloc_buffer((size,), held, layout=None)
    source = (nibbles.readable(layer.buffers.x, spec), spec.dtype)
    staging.stage(geometry, plain, source, rows, cut.rows, (image, first))
    pitch, shift = staging.pitch(geometry, True), shift_of(spec.dtype) if narrow else 0
    parts = ceil(geometry.c / lanes)
    with T.serial(layer.groups) as group, T.serial(cut.wide) as p, T.serial(parts) as part:
        row, col = layer.place(T.Bind(layer.first(group) + p))
        channel = tirx.min(part * lanes, geometry.c - lanes)
        base = T.Bind(row * pitch + col * geometry.c + channel)

        def at(i: int, j: int) -> Any:
            raw = rows.vload([base + i * pitch + j * geometry.c], f"{held}x{lanes}")
            return T.Bind(raw if narrow else T.Cast(f"{layer.dot.x}x{lanes}", raw))

        start = T.Bind((group * (SPOTS * cut.wide) + p) * geometry.c + channel)
        for spot, value in enumerate(
            _tile([[at(i, j) for j in range(4)] for i in range(4)], shift)
        ):
            T.buffer_store(v, value, [T.ramp(start + spot * (cut.wide * geometry.c), 1, lanes)])


def _tile(d: Sequence[Line], shift: int) -> Line:
    """Bᵀ·d·B, row by row, all but the spot (1, 1) moved up by ``shift``."""
    found = []
    for i in range(4):
        c = [_difference([d[k][j] for k in range(4)], i) for j in range(4)]
        if shift:  # what is added to the columns comes together in the spots
            low = -shift // 2 if i == 1 else 0
            ups = (low + 2 * shift, low, low + shift if i != 1 else shift // 2, low - shift)
            c = [_moved(value, up) for value, up in zip(c, ups, strict=True)]
        found += [_difference(c, j) for j in range(4)]
    return found


def _difference(d: Line, spot: int) -> Any:
    """One row of Bᵀ·d."""
    return T.Bind((d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3])[spot])


def _moved(value: Any, up: int) -> Any:
    dtype = value.ty.dtype
    return T.Bind(value + T.broadcast(tirx.const(up % 256, "uint8"), dtype.lanes)) if up else value


def _transform_weights(layer: Layer, u: Any, vector: Any) -> None:
    """A block of weights as U[vector][16][C/depth][lanes][depth]."""
    dot, lanes, steps, layout = layer.dot, layer.chunk, layer.steps, layer.layout
    packed = layer.buffers.constants[0]
    decoded = None
    if layout is not None:
        decoded = T.alloc_buffer((layout.decoded,), "int8", layout=None)
    for i in range(layer.cut.vectors):
        if layout is not None:
            panels.decode(layout, packed, vector + i, decoded, 0)
        with T.serial(steps) as step:

            def tap(at: int, step: Any = step, i: int = i) -> Any:
                if decoded is not None:
                    raw = decoded.vload([(step * TAPS + at) * lanes], f"int8x{lanes}")
                else:
                    row = ((vector + i) * steps + step) * TAPS + at
                    raw = packed.vload([row, tirx.const(0)], f"int8x{lanes}")
                return T.Bind(raw if dot.w == "int8" else T.Cast(f"{dot.w}x{lanes}", raw))

            columns = [_doubled([tap(3 * y + x) for y in range(3)]) for x in range(3)]
            spots = [value for row in zip(*columns, strict=True) for value in _doubled(row)]
            for spot, value in enumerate(spots):
                at = (i * SPOTS + spot) * layer.spot + step * lanes
                T.buffer_store(u, value, [T.ramp(at, 1, lanes)])


def _doubled(w: Sequence[Any]) -> Line:
    """G·w."""
    ends = T.Bind(w[0] + w[2])
    return [T.Bind(x) for x in (w[0] + w[0], ends + w[1], ends - w[1], w[2] + w[2])]


# ---------------------------------------------------------------- products


def _multiply(layer: Layer, v: Any, u: Any, sums: Any, group: Any) -> None:
    """M[16][wide][vectors] of a group of tiles; of several windows their widened sum."""
    dot, slots = layer.dot, layer.cut.wide * layer.cut.vectors
    full, rest = divmod(layer.steps, layer.window)
    parts: Any = None
    if dot.sums and layer.held == dot.vector:
        size = 2 * slots * dot.lanes * 2
        parts = T.alloc_buffer((size,), dot.sums.partition("x")[0], layout=None)
    with T.serial(SPOTS) as spot:
        x = T.Bind((group * SPOTS + spot) * (layer.cut.wide * layer.geometry.c))
        panel = T.Bind(spot * layer.spot)
        base = T.Bind(spot * (slots * int(layer.held.partition("x")[2])))

        def window(start: Any, count: int, first: bool, base: Any = base) -> None:
            step = T.Bind(start)
            at = (x + step * dot.depth, panel + step * layer.chunk)
            there = T.Bind(tirx.floormod(spot, 2) * (slots * dot.lanes * 2))
            _window(layer, (v, u), at, count, (parts, there))
            with T.unroll(slots) as slot:
                part = parts.vload([there + slot * dot.lanes * 2], dot.sums)
                total, place = dot.widened(part), T.ramp(base + slot * dot.lanes, 1, dot.lanes)
                if not first:
                    total = sums.vload([place.base], dot.vector) + total
                T.buffer_store(sums, total, [place])

        if parts is None:
            _window(layer, (v, u), (x, panel), layer.steps, (sums, base))
        else:
            window(0, layer.window, True)
            with T.serial(full - 1) as after:
                window((after + 1) * layer.window, layer.window, False)
            if rest:
                window(full * layer.window, rest, False)


def _window(
    layer: Layer, operands: tuple[Any, Any], first: tuple[Any, Any], steps: int,
    sums: tuple[Any, Any],
) -> None:  # fmt: skip
    """The sums of ``steps`` steps from ``first`` in V and U, left at a place in a buffer.

    The place must change with the spot: sums at a fixed one LLVM would keep in registers through
    all loops, and spill everything that the inverse transform needs.
    """
    (v, u), dot, cut = operands, layer.dot, layer.cut
    dtype = dot.sums or dot.vector
    kind, _, lanes = dtype.partition("x")

    def place(slot: Any) -> Any:
        return T.ramp(sums[1] + slot * int(lanes), 1, int(lanes))

    with T.unroll(cut.wide * cut.vectors) as slot:
        T.buffer_store(sums[0], T.broadcast(tirx.const(0, kind), int(lanes)), [place(slot)])
    with T.serial(steps) as step:
        at = [first[1] + i * (SPOTS * layer.spot) + step * layer.chunk for i in range(cut.vectors)]
        weights = [T.Bind(u.vload([i], f"{dot.w}x{layer.chunk}")) for i in at]
        with T.unroll(cut.wide) as p:
            value = T.Bind(dot.broadcast(v, first[0] + p * layer.geometry.c + step * dot.depth))
            for i, w in enumerate(weights):
                there = place(p * cut.vectors + i)
                before = sums[0].vload([there.base], dtype)
                if dot.sums:
                    after = before + dot.products(value, w)
                else:
                    after = dot.apply(dot, before, value, w)
                T.buffer_store(sums[0], after, [there])
