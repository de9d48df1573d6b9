"""One block of AMX tiles: bias loaded, products accumulated, outputs stored.

Tiles are numbered: accumulators first, then those of the side that is kept for a step, then those
of the side that streams. For two by two:

    0 1   accumulators      4 5   tiles of weights, kept
    2 3                     6 7   tiles of activations, each used twice
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import amx_stage, panels, staging
from nybble.schedules.cpu.amx_plan import (
    DEPTH,
    LANES,
    REGISTERS,
    Plan,
    depth_of,
    is_folded,
)
from nybble.schedules.cpu.amx_store import Finish
from nybble.schedules.cpu.buffers import Buffers
from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.loops import stored
from nybble.schedules.kernel import Problem


def _multiply(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    """The tile product acc += x·w; operands are numbers of tiles."""
    name = "x86.tdpbusd" if dot.x == "uint8" else "x86.tdpbssd"
    return intrinsic(name, *(_tile(number) for number in (acc, x, w)))


def tile_dot(dtype: str) -> Dot:
    """AMX's dot product for activations of ``dtype``."""
    features = ("amx_tile", "amx_int8")
    x = stored(dtype)
    return Dot("amx", features, LANES, DEPTH, x, "int8", "int32", REGISTERS, 0, 16, 4, _multiply)


def intrinsic(name: str, *args: Any) -> Any:
    """Emits an instruction without a result, by LLVM's name."""
    return T.evaluate(T.call_llvm_intrin("void", f"llvm.{name}", *args))


def _tile(number: int) -> Any:
    return tirx.const(number, "int8")


def _move(name: str, number: int, place: Any, step: int) -> None:
    """Loads or stores a tile whose rows are ``step`` bytes apart."""
    intrinsic(name, _tile(number), T.address_of(place), tirx.const(step, "int64"))


@dataclass(frozen=True)
class Layer:
    """Everything that the emitting functions share.

    Attributes:
        problem: the layer.
        geometry: of the problem, as `nybble.schedules.cpu.amx_stage.laid_out` gives it.
        dot: `tile_dot`.
        plan: how it is cut.
        staged: whether tasks read a copy of their input.
        buffers: the parameters.
    """

    problem: Problem
    geometry: Geometry
    dot: Dot
    plan: Plan
    staged: bool
    buffers: Buffers

    @property
    def table(self) -> Any:
        """Bias and scaling, a column for each output channel."""
        return self.buffers.constants[1]

    @property
    def packed(self) -> bool:
        """Whether the weights are decoded first."""
        return panels_of(self.problem, self.geometry) is not None

    @property
    def tiles(self) -> int:
        """Tiles of activations in a block."""
        return self.plan.block.high * self.plan.block.wide

    @property
    def pitch(self) -> int:
        """Bytes between two input rows."""
        return staging.pitch(self.geometry, self.staged)


def panels_of(problem: Problem, geometry: Geometry) -> panels.Panels | None:
    """How the weights are packed; None where they lie as the tiles are loaded."""
    assert problem.weights is not None
    depth = depth_of(geometry)
    padded = depth.count * depth.size != geometry.run
    return panels.panels_of(problem.weights.dtype, depth.steps * depth.operand, DEPTH, padded)


class Block:
    """One block of tiles: from the bias to the store.

    Args:
        layer: what the kernel computes.
        source: activations as a flat buffer.
        weights: (rows of tiles, first row of the block).
        scratch: room for the accumulators, a flat buffer.
        vector: first tile of channels.
    """

    def __init__(
        self, layer: Layer, source: Any, weights: tuple[Any, Any], scratch: Any, vector: Any
    ):
        self.layer, self.source, self.scratch = layer, source, scratch
        self.weights, self.row = weights
        last = max(layer.geometry.o - LANES, 0)
        vectors = layer.plan.block.vectors
        self.channels = [T.Bind(tirx.min((vector + v) * LANES, last)) for v in range(vectors)]

    def emit(self, starts: list[tuple[Any, Any]], step: int) -> None:
        """Emits the whole block.

        Args:
            starts: (first activation, first output pixel) of each tile.
            step: bytes between the pixels of a tile.
        """
        vectors = self.layer.plan.block.vectors
        for number in range(len(starts) * vectors):
            bias = self.layer.table[0, self.channels[number % vectors]]
            _move("x86.tileloadd64", number, bias, 0)  # every row reads the same 16 numbers
        self._accumulate([x for x, _ in starts], step)
        line = vectors * LANES
        for number in range(len(starts) * vectors):
            tile, v = divmod(number, vectors)
            at = tile * self.layer.plan.tall * line + v * LANES
            _move("x86.tilestored64", number, self.scratch[at], 4 * line)
        finish = Finish(
            self.layer.problem,
            self.layer.buffers,
            self.scratch,
            self.layer.plan.tall,
            self.channels,
            self.layer.geometry.o,
        )
        finish.emit([y for _, y in starts])

    def _accumulate(self, starts: list[Any], step: int) -> None:
        """The reduction: tap rows, tap columns, and the steps of one run."""
        geometry, depth = self.layer.geometry, depth_of(self.layer.geometry)
        with (
            T.serial(geometry.tap_rows) as ky,
            T.serial(geometry.tap_cols) as kx,
            T.serial(depth.count) as k,
        ):
            index = T.Bind((ky * geometry.tap_cols + kx) * depth.count + k)
            at = T.Bind(self._tap(ky, kx) + k * depth.size)
            self._products([self.source[x + at] for x in starts], index, step)

    def _tap(self, ky: Any, kx: Any) -> Any:
        """Where a tap's pixels begin, seen from those of the first tap."""
        geometry, rows = self.layer.geometry, self.layer.plan.rows
        if is_folded(geometry):
            return amx_stage.tap_offset(geometry, rows, ky, kx)
        row = ky * (geometry.dilation[0] * self.layer.pitch)
        return row + kx * (geometry.dilation[1] * geometry.c)

    def _products(self, places: list[Any], index: Any, step: int) -> None:
        """One step: the smaller side's tiles stay, the other side's stream by."""
        vectors, steps = self.layer.plan.block.vectors, depth_of(self.layer.geometry).steps
        operands = [self.weights[self.row + v * steps + index, 0] for v in range(vectors)]
        sides = [(places, step), (operands, 4 * LANES)]
        swapped = len(places) >= vectors
        (kept, kept_step), (streaming, stream_step) = reversed(sides) if swapped else sides
        first = len(places) * vectors
        free = first + len(kept)
        self._prefetch(index)
        for i, place in enumerate(kept):
            _move("x86.tileloadd64", first + i, place, kept_step)
        for j, place in enumerate(streaming):
            there = free + j % (REGISTERS - free)
            _move("x86.tileloadd64", there, place, stream_step)
            for i in range(len(kept)):
                x, w = (j, i) if swapped else (i, j)
                a, b = (there, first + i) if swapped else (first + i, there)
                self.layer.dot.apply(self.layer.dot, x * vectors + w, a, b)

    def _prefetch(self, index: Any) -> None:
        """Asks for the weights of a step some way ahead; they follow each other to the end."""
        ahead, steps = self.layer.plan.ahead, depth_of(self.layer.geometry).steps
        if not ahead or self.layer.packed:
            return
        near = [tirx.const(value, "int32") for value in (0, 2, 1)]  # read, second level, data
        count, size = (int(extent) for extent in self.weights.shape)
        for v in range(self.layer.plan.block.vectors):
            row = T.Bind(tirx.min(self.row + v * steps + index + ahead, count - 1))
            for line in range(0, size, 64):
                intrinsic("prefetch", T.address_of(self.weights[row, line]), *near)
