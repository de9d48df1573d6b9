"""The epilogue of a warp's sums: bias, requantization, residual, clamp, table, and wide stores.

The house rounding takes the constants of `nybble.schedules.cpu.scaling`, for 32-bit arithmetic:

    y = (high(acc · 2^left · multiplier) + rounding) >> right        high: the upper 32 of 64 bits

one multiplication, one addition and one shift for a sum (``left`` only for ratios of 1/4 and more).
The other conventions are computed in 64 bits by the CPU's own expressions.

Where a lane has few sums, as in the small tiles of small layers, constants and the second branch
are loaded before the products: their way from memory would be a good part of the kernel's time.

A lane has ``lane`` neighbouring channels of each of its rows
(`nybble.schedules.cuda.fragments`): it loads their constants and the second branch, and stores the
results, by up to 16 bytes. Loads beyond the last row or channel read the last ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu import elementwise, scaling
from nybble.schedules.cpu.buffers import Buffers
from nybble.schedules.cuda import row_scales
from nybble.schedules.cuda.matrix import Matrix
from nybble.schedules.cuda.mma_moves import divmod_of, load_early, ramp, run
from nybble.schedules.cuda.mma_tile import Tile
from nybble.schedules.kernel import Constants, Epilogue, Problem, TensorSpec


def refuse(problem: Problem) -> str | None:
    """Why the epilogue of a problem cannot be emitted here; None when it can."""
    if problem.epilogue.kind == "float":
        return "a float epilogue"
    for spec in problem.tensors:
        if spec.form == "packed" and (numerics.width(spec.dtype)[1], int(spec.shape[-1]) % 2) != (
            4,
            0,
        ):
            return f"packed {spec.dtype} of {spec.shape[-1]} channels: only pairs of 4 bits"
    if row_scales.is_there(problem.epilogue):
        return None
    held = np.dtype(problem.output.stored.dtype)
    wanted = 4 if problem.epilogue.kind == "none" else 1
    if held.itemsize != wanted:
        return f"output {problem.output.dtype}: accumulators or integers of up to 8 bits are stored"
    other = problem.epilogue.other
    if other is not None and np.dtype(other.stored.dtype).itemsize != 1:
        return f"second branch {other.dtype}: only integers of up to 8 bits are added"
    return None


def is_fast(epilogue: Epilogue) -> bool:
    """Whether 32 bits do."""
    return epilogue.rounding == "half_up"


FEW = 32  # sums of a lane, so that registers are left
_Operands = tuple[list[list[list[Any]]], list[Callable[[int], Any]]]


class Columns(Protocol):
    """What the table needs to know of packed weights: `Packed`, or another's."""

    @property
    def matrix(self) -> Matrix:
        """The layer."""

    @property
    def padded(self) -> int:
        """Channels in all."""


def table_spec(problem: Problem, fragments: Columns) -> TensorSpec:
    """The table of per-channel numbers, bias in row 0."""
    epilogue = replace(problem.epilogue, singles=False)
    if row_scales.is_there(epilogue):
        return TensorSpec((1 + len(row_scales.NAMES), fragments.padded), "int32")
    names = elementwise.epilogue_names(epilogue)
    rows = scaling.table_rows(epilogue) if is_fast(epilogue) else 1 + len(names)
    return TensorSpec((rows, fragments.padded), "int32")


def table(problem: Problem, fragments: Columns, constants: Constants) -> NDArray[Any]:
    """The numbers of `table_spec`.

    Raises:
        ScheduleError: as of `nybble.schedules.cpu.scaling.rows`.
    """
    if row_scales.is_there(problem.epilogue):
        return row_scales.table(constants, fragments.padded)
    problem = replace(problem, epilogue=replace(problem.epilogue, singles=False))
    if is_fast(problem.epilogue):
        return scaling.table(problem, constants, constants["bias"], fragments.padded)
    shape = tuple(map(int, table_spec(problem, fragments).shape))
    found = np.ones(shape, np.int32)  # a shift of 0 is none that the law knows
    names = ("bias", *elementwise.epilogue_names(problem.epilogue))
    for row, name in zip(found, names, strict=True):
        row[: fragments.matrix.channels] = constants[name].reshape(-1)
    return found


class Store:
    """Epilogue and stores of a warp's sums.

    Args:
        problem: the layer.
        tile: the warp's sums.
        buffers: of the kernel; the table is the second constant.
        first: the first row and channel of the block.
        total: rows in all.
    """

    def __init__(
        self, problem: Problem, tile: Tile, buffers: Buffers, first: tuple[Any, Any], total: Any
    ):
        self.problem, self.tile, self.buffers, self.total = problem, tile, buffers, total
        self.fragments, self.lane = tile.fragments, tile.fragments.lane
        self.channels = tile.fragments.matrix.channels
        most = min(self.lane, 16 // np.dtype(problem.output.stored.dtype).itemsize)
        self.wide = next(w for w in (16, 8, 4, 2, 1) if w <= most and self.channels % w == 0)
        self.row, self.first = (T.Bind(a + b) for a, b in zip(first, tile.origin, strict=True))
        self._early: list[_Operands] = []
        self._is_early = False
        self._tops: Any = None
        self._bound: dict[int, Any] = {}

    def prepare(self) -> None:
        """Emits loads of constants and second branch, if registers are free for them."""
        self._is_early = int(self.tile.sums.shape[0]) <= FEW
        if self._is_early:
            self._early = [self._operands(group) for group in range(self.tile.groups)]

    def _operands(self, group: int) -> _Operands:
        """Of a group of channels: constants of each four of them, and the second branch by row."""
        channel = T.Bind(self.first + group * 4 * self.lane)
        if row_scales.is_there(self.problem.epilogue):
            others = self._factors()
        else:
            others = [self._other(self.row + row, channel) for row in self.tile.rows]
        return [self._constants(channel + quad) for quad in range(0, self.lane, 4)], others

    def emit(self) -> None:
        """Emits all of it."""
        for group in range(self.tile.groups):
            constants, others = self._early[group] if self._early else self._operands(group)
            results = [self._registers() for _ in self.tile.rows]
            for quad, columns in zip(range(0, self.lane, 4), constants, strict=True):
                for index, other in enumerate(others):
                    values = []
                    for i in range(4):
                        acc = self._sum(index, group * self.lane + quad + i) + columns[0][i]
                        given = [column[i] for column in columns[1:]]
                        values.append(self._value(acc, given, other(quad + i)))
                    self._keep(results[index], quad, values)
            channel = T.Bind(self.first + group * 4 * self.lane)
            for result, row in zip(results, self.tile.rows, strict=True):
                self._store(result, self.row + row, channel)

    def _registers(self) -> Any:
        dtype, size = str(self.buffers.output.dtype), self.lane // density(self.problem.output)
        return T.alloc_buffer((size,), dtype, scope="local", layout=None)

    def _sum(self, row: int, channel: int) -> Any:
        """One sum as ``int32``: of the lane's nth row and channel."""
        value = T.reinterpret("int32", self.tile.sums[self.tile.at(row, channel)])
        return value >> self.fragments.shift if self.fragments.shift else value

    def _constants(self, channel: Any) -> list[list[Any]]:
        """The columns of four channels, by row of the table."""
        source = as_words(self.buffers.constants[1])
        rows, columns = map(int, table_spec(self.problem, self.fragments).shape)
        held = T.alloc_buffer((rows * 4,), "uint32", scope="local", layout=None)
        if self.fragments.padded % self.tile.reach:
            channel = tirx.min(channel, columns - 4)
        channel = T.Bind(channel)
        for row in range(rows):
            self._load(held, row * 4, source, (channel + row * columns, 4))
        return [
            [T.reinterpret("int32", held[row * 4 + i]) for i in range(4)] for row in range(rows)
        ]

    def _load(self, into: Any, at: int, source: Any, where: tuple[Any, int]) -> None:
        """Emits a load of words, of the place and number given."""
        first, count = where
        if self._is_early:
            load_early(into, at, source[first], count)
            return
        T.buffer_store(into, run(source, first, count), ramp(at, count))

    def _other(self, row: Any, channel: Any) -> Callable[[int], Any]:
        """The second branch of a lane's channels: gives the nth, None without one."""
        source, spec = self.buffers.other, self.problem.epilogue.other
        if spec is None:
            return lambda _channel: None
        each = density(spec)
        held = T.alloc_buffer((self.lane // each,), str(source.dtype), scope="local", layout=None)
        start, wide = T.Bind(tirx.min(row, self.total - 1) * (self.channels // each)), self.wide
        count, is_words = wide // each, wide // each % 4 == 0
        words = [as_words(source), as_words(held)] if is_words else []
        for part in range(0, self.lane, wide):
            at = start + divmod_of(tirx.min(channel + part, self.channels - wide), each)[0]
            if words:
                self._load(words[1], part // each // 4, words[0], (at >> 2, count // 4))
            else:
                T.buffer_store(held, run(source, at, count), ramp(part // each, count))
        if each == 1:
            return lambda channel: T.Cast("int32", held[channel])
        signed = numerics.width(spec.dtype)[0]
        return lambda channel: nibble(held[channel // 2], channel % 2, signed)

    def _factors(self) -> list[Callable[[int], Any]]:
        """Of rows with scales of their own: what gives each row's factor; loads their tops once."""
        if self._tops is None:
            source, rows = as_words(self.buffers.other), self.tile.rows
            self._tops = T.alloc_buffer((len(rows),), "uint32", scope="local", layout=None)
            for i, row in enumerate(rows):
                at = T.Bind(tirx.min(self.row + row, self.total - 1))
                self._load(self._tops, i, source, (at, 1))
        return [partial(self._factor, i) for i in range(len(self.tile.rows))]

    def _factor(self, row: int, _channel: int) -> Any:
        """Divided where it is used first, behind the products."""
        if row not in self._bound:
            top = T.reinterpret("float32", self._tops[row])
            self._bound[row] = T.Bind(row_scales.factor(top))
        return self._bound[row]

    def _keep(self, held: Any, quad: int, values: list[Any]) -> None:
        """Puts four results where they are stored from."""
        each = density(self.problem.output)
        for i in range(0, 4, each):
            value = values[i]
            if each == 2:
                low, high = (T.Cast("uint8", v) & T.uint8(15) for v in values[i : i + 2])
                value = low | (high << T.uint8(4))
            T.buffer_store(held, value, [(quad + i) // each])

    def _line(self, row: Any) -> Any:
        """The element where a row of the output begins."""
        return row * self.channels

    def _store(self, held: Any, row: Any, channel: Any) -> None:
        """Stores what exists of a row."""
        output, each = self.buffers.output, density(self.problem.output)
        row, wide = T.Bind(row), self.wide // each
        for part in range(0, self.lane, self.wide):
            at = T.Bind(channel + part)
            with T.If(tirx.all(row < self.total, at < self.channels)), T.Then():
                index = divmod_of(self._line(row), each)[0] + divmod_of(at, each)[0]
                T.buffer_store(output, run(held, part // each, wide), ramp(index, wide))

    def _value(self, acc: Any, given: list[Any], other: Any) -> Any:
        return value_of(self.problem, acc, given, other, self.buffers.entries)


def value_of(problem: Problem, acc: Any, given: list[Any], other: Any, entries: Any) -> Any:
    """What is stored for one sum.

    Args:
        problem: the layer.
        acc: the sum, bias included.
        given: the channel's numbers, rows 1 and on of the table.
        other: of the second branch as ``int32``, or the row's factor; None without either.
        entries: the table behind the epilogue, None without one.
    """
    epilogue = problem.epilogue
    if epilogue.kind == "none":
        return acc
    if row_scales.is_there(epilogue):
        scale, offset = (T.reinterpret("float32", one) for one in given)
        return row_scales.value(acc, scale, offset, other)
    if not is_fast(epilogue):
        names = elementwise.epilogue_names(epilogue)
        read = dict(zip(names, given, strict=True)).__getitem__
        return elementwise.epilogue(problem, acc, other, read, entries)
    steps = _steps(epilogue, acc, given, other) + epilogue.zero_point
    value = elementwise.settled(steps, int(epilogue.lo), int(epilogue.hi), problem.rescaled)
    if epilogue.table is None:
        return value
    index = value.astype("int32") - numerics.limits(problem.rescaled)[0]
    return entries[index]


def _steps(epilogue: Epilogue, acc: Any, given: list[Any], other: Any) -> Any:
    """``requantize`` and ``add`` before zero point and clamp."""
    own = given[:-4] if epilogue.kind == "add" else given
    if not epilogue.small_ratios:
        acc = tirx.max(tirx.min(acc, own[1]), own[0])
    steps = scaled(acc, own[-3:] if epilogue.small_ratios else own[2:])
    if epilogue.kind == "add":
        steps = steps + scaled(other - epilogue.zero_point_other, given[-4:])
    return steps


def as_words(buffer: Any) -> Any:
    """The same memory as words."""
    size = tirx.floordiv(buffer.shape[0], 4 // np.dtype(str(buffer.dtype)).itemsize)
    scope = buffer.scope() if callable(buffer.scope) else buffer.scope
    return T.decl_buffer((size,), "uint32", data=buffer.data, scope=scope, layout=None)


def density(spec: TensorSpec) -> int:
    """Elements in a byte (or in an ``int32``)."""
    return 2 if spec.form == "packed" else 1


def nibble(byte: Any, which: int, signed: bool) -> Any:
    """Half a byte as ``int32``."""
    code = (T.Cast("int32", byte) >> (4 * which)) & 15
    return (code ^ 8) - 8 if signed else code


def scaled(value: Any, rows: list[Any]) -> Any:
    """The law's rescaling by left shift (or none), multiplier, rounding, right shift."""
    multiplier, rounding, right = rows[-3:]
    if len(rows) == 4:
        value = value << rows[0]
    product = T.Cast("int64", value) * T.Cast("int64", multiplier)
    high = T.Cast("int32", product >> tirx.const(32, "int64"))
    return (high + rounding) >> right
