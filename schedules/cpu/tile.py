"""One register tile of the blocked template: from the bias to the store.

For every block of channels and every tile of pixels:

    acc[high·wide][vectors] = bias
    tap row, tap column, k:  w[vectors] loaded, x[high·wide] broadcast, acc = dot(acc, x, w)
    epilogue, store
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import finish, mmla, staging, windows
from nybble.schedules.cpu.blocking import Plan, Tile, vectors_of
from nybble.schedules.cpu.buffers import Buffers
from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.panels import Panels
from nybble.schedules.kernel import Problem

Weights = Callable[[int, Any], Any]
"""(vector of the block, step) -> the operand of a dot product."""


@dataclass(frozen=True)
class Layer:
    """Everything that the emitting functions share.

    Attributes:
        problem: the layer.
        geometry: of the problem.
        dot: the dot product.
        plan: how it is cut.
        staged: whether tasks read a staging copy.
        panels: how the weights are packed; None where they are read as they lie.
        buffers: the parameters.
    """

    problem: Problem
    geometry: Geometry
    dot: Dot
    plan: Plan
    staged: bool
    panels: Panels | None
    buffers: Buffers

    @property
    def weights(self) -> Any:
        """The packed weights."""
        return self.buffers.constants[0]

    @property
    def table(self) -> Any:
        """Bias and scaling, a column for each output channel."""
        return self.buffers.constants[1]

    @property
    def excess(self) -> tuple[Any, ...]:
        """For dots with sums: weights and offsets of further steps, their windows, the panels'.

        Two zeros if all windows are safe.
        """
        return self.buffers.constants[2:6]

    @property
    def vectors(self) -> int:
        """Vectors of output channels in a group."""
        return vectors_of(self.geometry, self.dot)


class RegisterTile:
    """One register tile: accumulators in registers from the bias to the store.

    Pixels are ``unroll`` loops and shared operands are bound once, so the IR stays small for TVM's
    passes, which cost more than LLVM does.

    Args:
        layer: what the kernel computes.
        tile: its size.
        sources: (activations as a flat buffer, weights of the block).
        at: (first activation, first output).
        block: (group of channels, first vector in the group).
    """

    def __init__(
        self,
        layer: Layer,
        tile: Tile,
        sources: tuple[Any, Weights],
        at: tuple[Any, Any],
        block: tuple[Any, Any],
    ):
        self.layer, self.tile = layer, tile
        self.source, self.weights = sources
        self.x, self.y = T.Bind(at[0] + 0), T.Bind(at[1] + 0)
        group, vector = T.Bind(block[0] + 0), T.Bind(block[1] + 0)
        geometry, dot = layer.geometry, layer.dot
        self.panel = T.Bind(group * layer.vectors + vector)
        last = max(geometry.o - dot.lanes, 0)
        starts = [tirx.min((vector + v) * dot.lanes, last) for v in range(tile.vectors)]
        self.starts = [T.Bind(group * geometry.o + start) for start in starts]
        self.kept, self.recalled = windows.places(layer)

    def emit(self) -> None:
        """Emits the whole tile."""
        vector, tile = self.layer.dot.vector, self.tile
        acc = T.alloc_buffer(
            (tile.high * tile.wide * tile.vectors,), vector, scope="local", layout=None
        )
        for v, start in enumerate(self.starts):
            bias = T.Bind(self.layer.table.vload([tirx.const(0), start], vector))
            with T.unroll(tile.high * tile.wide) as p:
                T.buffer_store(acc, bias, [self.kept + (p * tile.vectors + v)])
        if self.layer.dot.sums:
            windows.accumulate(self, acc)
        elif self.layer.dot.pixels == 2:
            mmla.accumulate(self, acc)
        else:
            self._accumulate(acc)
        finish.finish(self, acc)

    def _accumulate(self, acc: Any) -> None:
        """The reduction: tap rows, tap columns, and the dot products of one run."""
        geometry, dot = self.layer.geometry, self.layer.dot
        runs = geometry.runs(dot.depth)
        with T.serial(geometry.tap_rows * geometry.tap_cols) as tap, T.serial(runs) as k:
            x = T.Bind(self.tap(tap) + k * dot.depth)
            weights = self.operands(tap * runs + k)
            with self.pixels() as (i, j):
                value = T.Bind(dot.broadcast(self.source, x + self.pixel(i, j)))
                for v, w in enumerate(weights):
                    slot = self.slot(i, j, v)
                    T.buffer_store(acc, dot.apply(dot, acc[slot], value, w), [slot])

    def tap(self, tap: Any) -> Any:
        """Where the first pixel's activations for a tap begin."""
        geometry, pitch = self.layer.geometry, self._pitch
        ky, kx = tirx.floordiv(tap, geometry.tap_cols), tirx.floormod(tap, geometry.tap_cols)
        row, col = geometry.dilation[0] * pitch, geometry.dilation[1] * geometry.c
        return self.x + ky * row + kx * col

    def operands(self, step: Any) -> list[Any]:
        """The weights of a step, a vector for each vector of channels."""
        return [T.Bind(self.weights(v, step)) for v in range(self.tile.vectors)]

    @contextmanager
    def pixels(self) -> Iterator[tuple[Any, Any]]:
        """The loops over the tile's pixels."""
        with T.unroll(self.tile.high) as i, T.unroll(self.tile.wide) as j:
            yield i, j

    def pixel(self, i: Any, j: Any) -> Any:
        """Elements between the activations of the first pixel and those of pixel (i, j)."""
        geometry = self.layer.geometry
        return i * (geometry.stride[0] * self._pitch) + j * (geometry.stride[1] * geometry.c)

    def slot(self, i: Any, j: Any, v: int) -> Any:
        """The accumulator of pixel (i, j) and vector ``v``."""
        return (i * self.tile.wide + j) * self.tile.vectors + v

    def output(self, i: Any, j: Any, v: int) -> Any:
        """Where the output of pixel (i, j) and vector ``v`` stands."""
        geometry = self.layer.geometry
        pixel = i * geometry.cols + j
        return self.y + pixel * (geometry.groups * geometry.o) + self.starts[v]

    @property
    def _pitch(self) -> int:
        return staging.pitch(self.layer.geometry, self.layer.staged)
