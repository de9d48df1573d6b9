"""The reduction of a register tile by pairs of products that are added up in 16 bits.

Windows of one or two steps keep their sums in temporaries, acc += widened(Σ products). Longer ones
keep sums[high·wide][vectors] in registers and acc in the first-level cache: the first step sets the
sums, the others add to them, then acc += widened(sums).

Behind the panel come its further steps, which carry what windows could not take
(`nybble.schedules.cpu.headroom`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

LONG = 32  # steps of a window from which its loop is unrolled once

if TYPE_CHECKING:
    from nybble.schedules.cpu.tile import Layer, RegisterTile


def places(layer: Layer) -> tuple[Any, Any]:
    """Where the int32 accumulators are written and where they are read: zero both.

    Beside long windows they stay out of registers. LLVM would move a local array into registers,
    and the widening of sums behind the loops that follow; short of registers, it then spills sums
    inside the inner loop. So both zeros are read from the library, and LLVM cannot tell that they
    are equal. The stores do not pay where the reduction is short, or a single safe window.
    """
    geometry, problem = layer.geometry, layer.problem
    taps, runs = geometry.tap_rows * geometry.tap_cols, geometry.runs(layer.dot.depth)
    if not layer.dot.sums or problem.flush <= 2 or taps * runs < LONG:
        return 0, 0
    if problem.safe and taps * runs <= problem.flush:
        return 0, 0
    kept = layer.excess[0][0] if problem.safe else layer.excess[2][0]
    recalled = layer.excess[0][1] if problem.safe else layer.excess[3][0]
    return T.Bind(tirx.Cast("int64", kept)), T.Bind(tirx.Cast("int64", recalled))


def accumulate(tile: RegisterTile, acc: Any) -> None:
    """Emits the reduction into ``acc``, the tile's int32 accumulators."""
    geometry, flush = tile.layer.geometry, tile.layer.problem.flush
    runs = geometry.runs(tile.layer.dot.depth)
    full, rest = divmod(runs, flush)
    emit = _short if flush <= 2 else _long
    with T.serial(geometry.tap_rows * geometry.tap_cols) as tap:
        with T.serial(full) as window:
            emit(tile, acc, (tap, window * flush), flush)
        if rest:
            emit(tile, acc, (tap, full * flush), rest)
    for v in range(0 if tile.layer.problem.safe else tile.tile.vectors):
        _further(tile, acc, v)


def _short(tile: RegisterTile, acc: Any, where: tuple[Any, Any], count: int) -> None:
    """A window of one or two steps."""
    dot = tile.layer.dot
    step, x = _start(tile, where)
    weights = [tile.operands(step + n) for n in range(count)]
    with tile.pixels() as (i, j):
        at = x + tile.pixel(i, j)
        values = [T.Bind(dot.broadcast(tile.source, at + n * dot.depth)) for n in range(count)]
        for v in range(tile.tile.vectors):
            products = [dot.products(values[n], weights[n][v]) for n in range(count)]
            total = products[0] if count == 1 else products[0] + products[1]
            slot = tile.slot(i, j, v)
            T.buffer_store(acc, acc[slot] + dot.widened(total), [slot])


def _long(tile: RegisterTile, acc: Any, where: tuple[Any, Any], count: int) -> None:
    """A window of many steps."""
    dot, size = tile.layer.dot, tile.tile
    slots = size.high * size.wide * size.vectors
    sums = T.alloc_buffer((slots,), dot.sums, scope="local", layout=None)
    step, x = _start(tile, where)

    def add(n: Any, first: bool) -> None:
        weights = tile.operands(step + n)
        with tile.pixels() as (i, j):
            value = T.Bind(dot.broadcast(tile.source, x + n * dot.depth + tile.pixel(i, j)))
            for v, w in enumerate(weights):
                slot, product = tile.slot(i, j, v), dot.products(value, w)
                T.buffer_store(sums, product if first else sums[slot] + product, [slot])

    roomy = slots + 2 * size.vectors + 2 <= dot.registers  # the weights of both steps may be live
    unrolled = 2 if count >= LONG and roomy else 1
    head = count % unrolled or unrolled
    for n in range(head):
        add(n, n == 0)
    if count > head:
        with T.serial((count - head) // unrolled) as chunk:
            for n in range(unrolled):
                add(head + chunk * unrolled + n, False)
    with T.unroll(slots) as slot:
        _widen(tile, acc, slot, sums[slot])


def _start(tile: RegisterTile, where: tuple[Any, Any]) -> tuple[Any, Any]:
    """(first step, first activation) of a window at (tap, step of the run)."""
    geometry, dot = tile.layer.geometry, tile.layer.dot
    tap, k = where
    step = T.Bind(tap * geometry.runs(dot.depth) + k)
    return step, T.Bind(tile.tap(tap) + k * dot.depth)


def _further(tile: RegisterTile, acc: Any, v: int) -> None:
    """The further steps of one panel, in windows of their own."""
    dot, size = tile.layer.dot, tile.tile
    weights, offsets, windows, begin = tile.layer.excess
    sums = T.alloc_buffer((size.high * size.wide,), dot.sums, scope="local", layout=None)

    def add(entry: Any, first: bool) -> None:
        x = T.Bind(tile.x + offsets[entry])
        w = T.Bind(weights.vload([entry, tirx.const(0)], f"{dot.w}x{dot.lanes * dot.depth}"))
        with tile.pixels() as (i, j):
            product = dot.products(dot.broadcast(tile.source, x + tile.pixel(i, j)), w)
            slot = i * size.wide + j
            T.buffer_store(sums, product if first else sums[slot] + product, [slot])

    first, last = _span(begin, tile.panel + v)
    with T.serial(last - first) as n:
        start, end = _span(windows, first + n)
        add(start, True)
        with T.serial(end - start - 1) as m:
            add(start + 1 + m, False)
        with tile.pixels() as (i, j):
            slot = tile.slot(i, j, v)
            _widen(tile, acc, slot, sums[i * size.wide + j])


def _widen(tile: RegisterTile, acc: Any, slot: Any, sums: Any) -> None:
    """Adds a vector of sums to its accumulators."""
    total = acc[tile.recalled + slot] + tile.layer.dot.widened(sums)
    T.buffer_store(acc, total, [tile.kept + slot])


def _span(begin: Any, index: Any) -> tuple[Any, Any]:
    """Two neighbours of a list of beginnings."""
    return tuple(T.Bind(tirx.Cast("int64", begin[index + n])) for n in (0, 1))
