"""The inverse transform of a group of Winograd tiles, and what follows: bias, epilogue, stores.

Two neighbouring vectors of channels make one store of twice the width, of a single one two
neighbouring outputs are packed together, as in `nybble.schedules.cpu.finish`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import nibbles
from nybble.schedules.cpu.buffers import load, store
from nybble.schedules.cpu.epilogue import Column
from nybble.schedules.cpu.packing import packed
from nybble.schedules.cpu.winograd_plan import Layer
from nybble.schedules.cpu.winograd_range import SPOTS

CORNERS = 4


def finish(layer: Layer, sums: Any, vector: Any, where: tuple[Any, Any]) -> None:
    """The outputs of a group of tiles in a block of channels.

    Args:
        layer: the layer.
        sums: M[16][wide][vectors].
        vector: the block's first vector of channels.
        where: (the group's first tile, the band's first output).
    """
    vectors, whole = layer.cut.vectors, _is_packed(layer)
    if whole and vectors > 1:
        with T.serial(vectors // 2) as pair:
            _vectors(layer, sums, (vector, [2 * pair, 2 * pair + 1]), where)
    for i in range(vectors - vectors % 2 if whole else 0, vectors):
        _vectors(layer, sums, (vector, [i]), where)


def _vectors(layer: Layer, sums: Any, block: tuple[Any, list[Any]], where: tuple[Any, Any]) -> None:
    """One vector of channels, or two that are packed together; ``block``: (first, which)."""
    geometry, lanes = layer.geometry, layer.dot.lanes
    starts = [tirx.min((block[0] + i) * lanes, geometry.o - lanes) for i in block[1]]
    outputs = [_Outputs(layer, i, T.Bind(s)) for i, s in zip(block[1], starts, strict=True)]
    with T.serial(layer.cut.wide) as p:
        row, col = layer.place(where[0] + p)
        pixel = T.Bind(where[1] + (row * geometry.cols + col) * geometry.o)
        tiles = [_Tile(output, sums, p, pixel) for output in outputs]
        if len(tiles) == 2:
            for corner in range(CORNERS):
                low, high = (tile.steps(corner) for tile in tiles)
                tiles[0].store(corner, _packed(layer, low, high))
        elif _is_packed(layer):
            _pairs_of_outputs(layer, tiles[0])
        else:
            for corner in range(CORNERS):
                tiles[0].store(corner, tiles[0].value(corner))


def _is_packed(layer: Layer) -> bool:
    """Whether two vectors are narrowed and stored at once."""
    whole = layer.geometry.o % layer.dot.lanes == 0
    return whole and layer.problem.epilogue.kind in ("requantize", "add")


def _pairs_of_outputs(layer: Layer, tile: _Tile) -> None:
    lanes = layer.dot.lanes
    for corner in (0, 2):
        value = T.Bind(_packed(layer, tile.steps(corner), tile.steps(corner + 1)))
        for n in (0, 1):
            half = T.Shuffle([value], list(range(n * lanes, (n + 1) * lanes)))
            tile.store(corner + n, half)


def _packed(layer: Layer, low: Any, high: Any) -> Any:
    return packed(layer.problem, layer.buffers.entries, (low, high), natural=True)


class _Outputs:
    """What all tiles of a vector of channels share."""

    def __init__(self, layer: Layer, index: Any, start: Any):
        dot, buffers = layer.dot, layer.buffers
        self.layer, self.index, self.start = layer, index, start
        table, *corners = buffers.constants[1:]
        self.column = Column(layer.problem, table, start, dot.lanes, entries=buffers.entries)
        rows = [(table, 0), *((corners[0], i) for i in range(CORNERS - 1))] if corners else []
        self.biases = [
            T.Bind(rows_of.vload([tirx.const(row), start], dot.vector))
            for rows_of, row in rows or [(table, 0)]
        ]


@dataclass
class _Tile:
    """One tile in one vector of channels: its four outputs."""

    shared: _Outputs
    sums: Any
    tile: Any
    pixel: Any

    def __post_init__(self) -> None:
        """Emits the inverse transform."""
        # One column after the other, in this order: LLVM keeps it, and all 16 fit no registers.
        columns = [_inverse([self._sum(spot) for spot in range(j, SPOTS, 4)]) for j in range(4)]
        self.corners = [value for row in zip(*columns, strict=True) for value in _inverse(row)]

    def _sum(self, spot: int) -> Any:
        """A vector of M; these sums may wrap around, so they are unsigned."""
        layer, cut = self.shared.layer, self.shared.layer.cut
        width = int(layer.held.partition("x")[2])
        slot = (spot * cut.wide + self.tile) * cut.vectors + self.shared.index
        found = self.sums.vload([slot * width], layer.held)
        if layer.held != layer.dot.vector:
            found = layer.dot.widened(found)
        return T.Bind(T.reinterpret(f"uint32x{layer.dot.lanes}", found))

    def _acc(self, corner: int) -> Any:
        dot, biases = self.shared.layer.dot, self.shared.biases
        total = T.reinterpret(dot.vector, self.corners[corner])
        bias = biases[corner % len(biases)]
        return T.Bind(T.shift_right(total, T.broadcast(tirx.const(2, "int32"), dot.lanes)) + bias)

    def _at(self, corner: int) -> Any:
        geometry = self.shared.layer.geometry
        there = (corner // 2 * geometry.cols + corner % 2) * geometry.o
        return self.pixel + self.shared.start + there

    def _other(self, corner: int) -> Any:
        layer = self.shared.layer
        buffer = nibbles.readable(layer.buffers.other, layer.problem.epilogue.other)
        lanes = layer.dot.lanes
        return None if buffer is None else load(buffer, self._at(corner), lanes, lanes)

    def steps(self, corner: int) -> Any:
        """An output before zero point and clamp."""
        return self.shared.column.steps(self._acc(corner), self._other(corner))

    def value(self, corner: int) -> Any:
        """An output as it is stored."""
        return self.shared.column.apply(self._acc(corner), self._other(corner))

    def store(self, corner: int, value: Any) -> None:
        """Stores an output, two a byte if so agreed."""
        layer, at = self.shared.layer, self._at(corner)
        if layer.problem.output.form == "packed":
            nibbles.store(layer.buffers.output, at, value)
        else:
            store(layer.buffers.output, at, value, value.ty.dtype.lanes)


def _inverse(m: Sequence[Any]) -> list[Any]:
    """Aᵀ·m."""
    return [T.Bind(m[0] + m[1] + m[2]), T.Bind(m[1] - m[2] - m[3])]
