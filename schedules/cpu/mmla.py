"""The reduction of a register tile by AArch64's 2 x 8 x 2 matrix products.

``smmla`` takes eight activations of two pixels and eight weights of two channels:

    acc = [p0·c0, p0·c1, p1·c0, p1·c1]        four sums of eight products, 32 multiply-adds

so two of them make the two pixels' vectors of four channels, and are taken apart behind the loop:

    low  = [p0·c0, p0·c1, p1·c0, p1·c1]        p0 = zip1(low, high)
    high = [p0·c2, p0·c3, p1·c2, p1·c3]        p1 = zip2(low, high)

An odd pixel of a tile is paired with itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

if TYPE_CHECKING:
    from nybble.schedules.cpu.tile import RegisterTile

WORDS = "int32x4"


def accumulate(tile: RegisterTile, acc: Any) -> None:
    """Emits the reduction, added to ``acc``, the tile's int32 accumulators."""
    geometry, dot, size = tile.layer.geometry, tile.layer.dot, tile.tile
    pixels = [divmod(p, size.wide) for p in range(size.high * size.wide)]
    pairs = [(pixels[p], pixels[min(p + 1, len(pixels) - 1)]) for p in range(0, len(pixels), 2)]
    slots = 2 * size.vectors * len(pairs)
    sums = T.alloc_buffer((slots,), WORDS, scope="local", layout=None)
    with T.unroll(slots) as slot:
        T.buffer_store(sums, T.broadcast(tirx.const(0, "int32"), 4), [slot])
    runs = geometry.runs(dot.depth)
    with T.serial(geometry.tap_rows * geometry.tap_cols) as tap, T.serial(runs) as k:
        x = T.Bind(tile.tap(tap) + k * dot.depth)
        weights = tile.operands(tap * runs + k)
        halves = [[_half(w, half) for half in (0, 1)] for w in weights]
        for p, pair in enumerate(pairs):
            rows = [tile.source.vload([x + tile.pixel(*at)], f"{dot.x}x8") for at in pair]
            value = T.Bind(T.reinterpret("int8x16", T.Shuffle(rows, list(range(16)))))
            for n, w in enumerate(w for both in halves for w in both):
                slot = p * 2 * size.vectors + n
                T.buffer_store(sums, dot.apply(dot, sums[slot], value, w), [slot])
    for p, pair in enumerate(pairs):
        for v in range(size.vectors):
            slot = (p * size.vectors + v) * 2
            _add(tile, acc, (sums[slot], sums[slot + 1]), pair, v)


def _half(weights: Any, half: int) -> Any:
    """The weights of two channels of four."""
    return T.Bind(T.Shuffle([weights], list(range(16 * half, 16 * half + 16))))


def _add(
    tile: RegisterTile, acc: Any, sums: tuple[Any, Any], pair: tuple[Any, Any], v: int
) -> None:
    """Adds two pixels' sums to their accumulators."""
    orders = ([0, 1, 4, 5], [2, 3, 6, 7])
    for at, order in list(zip(pair, orders, strict=True))[: 1 if pair[0] == pair[1] else 2]:
        row, col = at
        slot = tile.slot(row, col, v)
        T.buffer_store(acc, acc[slot] + T.Shuffle(list(sums), order), [slot])
