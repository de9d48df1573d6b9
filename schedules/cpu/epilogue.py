"""What happens to a vector of accumulators before it is stored: requantize, add, clamp.

The house rounding (acc·m + 2^(c-1)) >> c, exact for every int32 acc and every dyadic (m, c),
without 64-bit shifts and clamps (which AVX2 lacks). At pack time m is scaled into [2^30, 2^31) and
acc gets a left shift s so that c >= 33 (s = 0 for ratios below 1/4). Then 2^(c-1) has no low word,
and with high = the upper 32 bits of the 64-bit product,

    y = (high(acc·2^s·m) + 2^(c-33)) >> (c-32)

Products of even and odd lanes are one ``pmuldq`` each; `nybble.schedules.cpu.scaling` packs the
constants. Where s > 0 (ratios of 1/4 and more) acc is first clamped to where y is already beyond
the final bounds, so acc·2^s fits 32 bits.

Where the weights prove that float32 gives the same, `nybble.schedules.cpu.singles` does it instead.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu import singles
from nybble.schedules.cpu.entries import of_bytes, of_lanes, takes_bytes
from nybble.schedules.cpu.loops import stored
from nybble.schedules.kernel import Epilogue, Problem

Vector = NDArray[np.int64]
Scaling = Callable[[Any, Any, Any, Any], Any]


def refuse(problem: Problem) -> str | None:
    """Why the epilogue of ``problem`` cannot be emitted here; None when it can."""
    epilogue = problem.epilogue
    if epilogue.kind in ("none", "float"):
        return None
    if epilogue.rounding != "half_up":
        return f"rounding {epilogue.rounding!r}: only half_up is vectorised"
    if not is_narrow(problem.output.dtype):
        return f"output {problem.output.dtype}: only integers of up to 8 bits are stored"
    if epilogue.other is not None and not is_narrow(epilogue.other.dtype):
        return f"second branch {epilogue.other.dtype}: only integers of up to 8 bits are added"
    return None


def is_narrow(dtype: str) -> bool:
    """Whether ``dtype`` is an integer of 1 to 8 bits."""
    return "int" in dtype and numerics.width(dtype)[1] <= 8


class Column:
    """The epilogue of one vector of output channels; its constants are read once per tile.

    Args:
        problem: the layer.
        table: the packed table, (rows, channels), bias in row 0.
        start: first channel of the vector, all groups.
        lanes: length of the vector.
        scaling: (value, multiplier, rounding, right shift) -> (high(value·multiplier) + rounding)
            >> right shift in instructions of another machine; None for those of x86.
        entries: `nybble.schedules.cpu.buffers.Buffers.entries`.
    """

    def __init__(
        self, problem: Problem, table: Any, start: Any, lanes: int,
        scaling: Scaling | None = None, entries: Any = None,
    ):  # fmt: skip
        self.problem, self.lanes, self._scaling = problem, lanes, scaling
        assert (entries is None) == (problem.entries is None)
        self._entries = entries
        self._rows = [
            T.Bind(table.vload([tirx.const(row), start], f"{table.dtype}x{lanes}"))
            for row in range(1, int(table.shape[0]))
        ]

    def apply(self, acc: Any, other: Any) -> Any:
        """The stored vector for accumulators ``acc``; ``other`` is None without second branch."""
        epilogue = self.problem.epilogue
        if epilogue.kind == "none":
            return acc
        if epilogue.kind == "float":
            return floats(epilogue, acc, other)
        dtype = f"{stored(self.problem.output.dtype)}x{self.lanes}"
        if epilogue.table is not None and self._takes_bytes:
            return self._bytes(acc, other)
        return T.Cast(dtype, self.words(acc, other))

    def words(self, acc: Any, other: Any) -> Any:
        """The stored vector for integer outputs, as int32."""
        epilogue = self.problem.epilogue
        if epilogue.table is not None and self._takes_bytes:
            return T.Cast(f"int32x{self.lanes}", self._bytes(acc, other))
        value = self.steps(acc, other)
        if epilogue.table is not None:
            return value
        value = value + self._all(epilogue.zero_point)
        value = tirx.max(tirx.min(value, self._all(int(epilogue.hi))), self._all(int(epilogue.lo)))
        if self.problem.output.dtype == "int1":  # the sign, 0 counts as +1
            value = T.shift_right(value, self._all(31)) | self._all(1)
        return value

    def _bytes(self, acc: Any, other: Any) -> Any:
        """The entries of a short table."""
        index = T.Cast(f"uint8x{self.lanes}", self._index(self._steps(acc, other)))
        return of_bytes(self._entries, index)

    def steps(self, acc: Any, other: Any) -> Any:
        """int32 to which what `packing.pending` says remains to be done, and then `of_bytes`."""
        value = self._steps(acc, other)
        if self.problem.epilogue.table is None or self._takes_bytes:
            return value
        return of_lanes(self._entries, self._index(value))

    @property
    def _takes_bytes(self) -> bool:
        return self._scaling is None and takes_bytes(self.problem)

    def _index(self, value: Any) -> Any:
        """Zero point and clamp, as int32 from the table's first entry on."""
        epilogue, low = self.problem.epilogue, numerics.limits(self.problem.rescaled)[0]
        value = value + self._all(epilogue.zero_point - low)
        value = tirx.min(value, self._all(int(epilogue.hi) - low))
        return tirx.max(value, self._all(int(epilogue.lo) - low))

    def _steps(self, acc: Any, other: Any) -> Any:
        """``requantize`` and ``add`` before zero point and clamp: int32, within ±2^31."""
        epilogue = self.problem.epilogue
        centred = None
        if epilogue.kind == "add":
            centred = T.Cast(f"int32x{self.lanes}", other) - self._all(epilogue.zero_point_other)
        if epilogue.singles:
            return singles.steps(acc, centred, self._rows)
        if epilogue.small_ratios:
            value = self._scaled(acc, self._rows[:3])
        else:
            low, high = self._rows[:2]
            value = self._scaled(tirx.max(tirx.min(acc, high), low), self._rows[2:6])
        if centred is not None:
            value = value + self._scaled(centred, self._rows[-4:])
        return value

    def _scaled(self, value: Any, rows: list[Any]) -> Any:
        if self._scaling is None:
            return scaled(value, rows, self.lanes)
        multiplier, rounding, right = rows[-3:]
        if len(rows) == 4:
            value = T.shift_left(value, rows[0])
        return self._scaling(T.Bind(value), multiplier, rounding, right)

    def _all(self, value: int) -> Any:
        return T.broadcast(tirx.const(value, "int32"), self.lanes)


def floats(epilogue: Epilogue, value: Any, other: Any) -> Any:
    """Residual sum and clamp of a vector of float32; NaN stays, as in the law."""
    value, lanes = T.Bind(value if other is None else value + other), value.ty.dtype.lanes
    if epilogue.lo > -inf:
        bound = T.broadcast(tirx.const(epilogue.lo, "float32"), lanes)
        value = T.Bind(T.Select(value < bound, bound, value))
    if epilogue.hi < inf:
        bound = T.broadcast(tirx.const(epilogue.hi, "float32"), lanes)
        value = T.Select(value > bound, bound, value)
    return value


def scaled(value: Any, rows: list[Any], lanes: int) -> Any:
    """The law's rescaling of int32 lanes.

    Args:
        value: the accumulators.
        rows: left shift (or none), multiplier, rounding, right shift, as
            `nybble.schedules.cpu.scaling.rows` gives them.
        lanes: length of the vector.
    """
    multiplier, rounding, right = rows[-3:]
    if len(rows) == 4:
        value = T.shift_left(value, rows[0])
    value = T.Bind(value)
    products = [_half(value, odd, lanes) * _half(multiplier, odd, lanes) for odd in (False, True)]
    words = [T.reinterpret(f"int32x{lanes}", product) for product in products]
    order = [(i // 2) * 2 + 1 + (i % 2) * lanes for i in range(lanes)]
    return T.shift_right(T.Shuffle(words, order) + rounding, right)


def _half(value: Any, odd: bool, lanes: int) -> Any:
    """Every other lane, sign-extended to 64 bits.

    In the form that LLVM keeps next to the multiplication: a sign extension moved out of the
    loop hides that ``pmuldq`` suffices, and three multiplications take its place.
    """
    if odd:
        value = T.Shuffle([value], [i | 1 for i in range(lanes)])
    by = T.broadcast(tirx.const(32, "int64"), lanes // 2)
    pairs = T.reinterpret(f"int64x{lanes // 2}", value)
    return T.shift_right(T.shift_left(pairs, by), by)
