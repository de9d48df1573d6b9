"""What the look-up kernels share around a block of channels: its indices, and how it is stored."""

from __future__ import annotations

from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import epilogue
from nybble.schedules.cpu.buffers import Buffers, load, store
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.lut_plan import Isa
from nybble.schedules.cpu.lut_scheme import words
from nybble.schedules.kernel import Problem


class Blocked(Protocol):
    """What storing a block of channels needs to know of a layer."""

    @property
    def problem(self) -> Problem:
        """The layer."""

    @property
    def geometry(self) -> Geometry:
        """Its extents."""

    @property
    def isa(self) -> Isa:
        """The vector width; a block is as many channels as a vector has bytes."""

    @property
    def buffers(self) -> Buffers:
        """The parameters: indices, then the table of per-channel numbers."""


def store_block(layer: Blocked, pixel: Any, first: Any, values: list[Any]) -> None:
    """Bias, epilogue and store of one pixel's block of channels.

    Args:
        layer: its layer.
        pixel: its first element in the output but for the channel.
        first: channel of the block.
        values: its four quarters, int32.
    """
    quarter, table = layer.isa.lanes // 4, layer.buffers.constants[1]
    for q, value in enumerate([T.Bind(value) for value in values]):
        valid = min(layer.geometry.o - q * quarter, quarter)
        if valid <= 0:
            break
        start = T.Bind(first + q * quarter)
        bias = table.vload([tirx.const(0), start], f"int32x{quarter}")
        column = epilogue.Column(
            layer.problem, table, start, quarter, layer.isa.scaling, layer.buffers.entries
        )
        index = T.Bind(pixel + start)
        other = None
        if layer.buffers.other is not None:
            other = load(layer.buffers.other, index, quarter, valid)
        store(layer.buffers.output, index, column.apply(value + bias, other), valid)


def starts_in(layer: Blocked, first: Any, count: int) -> list[Any]:
    """The first channels, within their group, of ``count`` blocks from ``first`` on."""
    last = max(layer.geometry.o - layer.isa.lanes, 0)
    return [tirx.min((first + v) * layer.isa.lanes, last) for v in range(count)]


def halved(pairs: Any, half: int) -> Any:
    """The indices of the first or second group of a pair: the lower or upper four bits."""
    lanes = pairs.ty.dtype.lanes
    low = tirx.const(15, f"uint8x{lanes}")
    if half == 0:
        return pairs & low
    shifted = T.shift_right(words(pairs), tirx.const(4, f"uint16x{lanes // 2}"))
    return T.reinterpret(f"uint8x{lanes}", shifted) & low
