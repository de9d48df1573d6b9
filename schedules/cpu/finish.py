"""Epilogue and stores of a register tile, two vectors of accumulators at a time where they pack.

Two neighbouring vectors of channels make one store of twice the width; of a single vector of
channels, two pixels are packed together and stored apart. Float results, accumulators that are
stored as they are, and blocks of channels that overlap go one vector at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import nibbles
from nybble.schedules.cpu.buffers import load, store
from nybble.schedules.cpu.epilogue import Column
from nybble.schedules.cpu.packing import packed

if TYPE_CHECKING:
    from nybble.schedules.cpu.tile import RegisterTile


def finish(tile: RegisterTile, acc: Any) -> None:
    """Emits epilogue and stores of all accumulators of a tile."""
    layer, vectors = tile.layer, tile.tile.vectors
    problem, dot = layer.problem, layer.dot
    packs = problem.epilogue.kind in ("requantize", "add") and dot.scaling is None
    whole = packs and layer.geometry.o % dot.lanes == 0
    table, entries = layer.table, layer.buffers.entries
    columns = [Column(problem, table, s, dot.lanes, dot.scaling, entries) for s in tile.starts]
    for v in range(0, vectors - vectors % 2 if whole else 0, 2):
        with tile.pixels() as (i, j):
            halves = [_steps(tile, acc, columns, (i, j, v + n)) for n in (0, 1)]
            value = packed(problem, entries, halves, natural=True)
            _store(tile, (i, j, v), value, 2 * dot.lanes)
    if whole and vectors % 2:
        _pairs_of_pixels(tile, acc, columns)
    for v in range(0 if not whole else vectors, vectors):
        with tile.pixels() as (i, j):
            _single(tile, acc, columns, (i, j, v))


def _pairs_of_pixels(tile: RegisterTile, acc: Any, columns: list[Column]) -> None:
    """The last vector of channels: two pixels at a time, an odd one by itself."""
    layer, size, v = tile.layer, tile.tile, tile.tile.vectors - 1
    lanes, entries = layer.dot.lanes, layer.buffers.entries
    with T.unroll(size.high * size.wide // 2) as pair:
        pixels = [_divmod(2 * pair + n, size.wide) for n in (0, 1)]
        halves = [_steps(tile, acc, columns, (*pixel, v)) for pixel in pixels]
        value = T.Bind(packed(layer.problem, entries, halves, natural=True))
        for n, pixel in enumerate(pixels):
            half = T.Shuffle([value], list(range(n * lanes, (n + 1) * lanes)))
            _store(tile, (*pixel, v), half, lanes)
    if size.high * size.wide % 2:
        _single(tile, acc, columns, (size.high - 1, size.wide - 1, v))


def _divmod(index: Any, by: int) -> tuple[Any, Any]:
    """(quotient, remainder) of a loop variable."""
    return tirx.floordiv(index, by), tirx.floormod(index, by)


def _single(tile: RegisterTile, acc: Any, columns: list[Column], at: tuple[Any, Any, int]) -> None:
    """One vector of one pixel; narrow groups have fewer channels than lanes."""
    valid = min(tile.layer.geometry.o, tile.layer.dot.lanes)
    value = columns[at[2]].apply(acc[tile.recalled + tile.slot(*at)], _other(tile, at, valid))
    _store(tile, at, value, valid)


def _store(tile: RegisterTile, at: tuple[Any, Any, int], value: Any, valid: int) -> None:
    """Stores a vector at the place of pixel (i, j) and vector v, two a byte if so agreed."""
    output = tile.layer.buffers.output
    if tile.layer.problem.output.form == "packed":
        nibbles.store(output, tile.output(*at), value)
    else:
        store(output, tile.output(*at), value, valid)


def _steps(tile: RegisterTile, acc: Any, columns: list[Column], at: tuple[Any, Any, int]) -> Any:
    """One vector of one pixel as int32, before zero point and clamp."""
    other = _other(tile, at, tile.layer.dot.lanes)
    return columns[at[2]].steps(acc[tile.recalled + tile.slot(*at)], other)


def _other(tile: RegisterTile, at: tuple[Any, Any, int], valid: int) -> Any:
    """The second branch of an add, None without one."""
    buffer = tile.layer.buffers.other
    return None if buffer is None else load(buffer, tile.output(*at), tile.layer.dot.lanes, valid)
