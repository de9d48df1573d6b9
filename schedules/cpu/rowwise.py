"""What kernels of whole rows share: rows in parallel tasks, and code for vectors or single values.

A row is walked in vectors of ``lanes``; what remains of it, value by value with the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import epilogue
from nybble.schedules.cpu.buffers import Symbols, product
from nybble.schedules.cpu.dot import AVX2, AVX512
from nybble.schedules.cpu.elementwise import NAME
from nybble.schedules.cpu.loops import PARALLEL_WORK
from nybble.schedules.kernel import Extent, Kernel, Knobs, Problem

RUN = 1 << 13  # values of a task


@dataclass(frozen=True)
class Lanes:
    """Expressions of ``count`` values; one value is a scalar."""

    count: int

    def dtype(self, of: str) -> str:
        """The type of so many values."""
        return of if self.count == 1 else f"{of}x{self.count}"

    def all(self, value: Any, dtype: str = "int32") -> Any:
        """One number, or scalar expression, in every lane."""
        scalar = tirx.const(value, dtype) if isinstance(value, int) else value
        return scalar if self.count == 1 else T.broadcast(scalar, self.count)

    def load(self, flat: Any, index: Any, dtype: str = "int32") -> Any:
        """Consecutive values of a flat buffer, as ``dtype``."""
        held = str(flat.dtype)
        value = flat[index] if self.count == 1 else flat.vload([index], self.dtype(held))
        return T.Bind(value if held == dtype else T.Cast(self.dtype(dtype), value))

    def store(self, flat: Any, index: Any, value: Any) -> None:
        """Stores values in a flat buffer, cut to its type."""
        held = str(flat.dtype)
        if str(value.ty.dtype).partition("x")[0] != held:
            value = T.Cast(self.dtype(held), value)
        at = index if self.count == 1 else T.ramp(index, 1, self.count)
        T.buffer_store(flat, value, [at])

    def rescaled(self, value: Any, left: Any, factor: Sequence[Any]) -> Any:
        """((value << left)·multiplier >> 32) + rounding >> right, in int32.

        Args:
            value: int32.
            left: what it is shifted by, or None.
            factor: multiplier, rounding and right shift; numbers, scalars, or as many values.
        """
        shifted = value if left is None else T.shift_left(value, self._spread(left))
        rows = [self._spread(one) for one in factor]
        if self.count > 1:
            return T.Bind(epilogue.scaled(shifted, rows, self.count))
        multiplier, rounding, right = rows
        high = (shifted.astype("int64") * multiplier.astype("int64")) >> 32
        return T.Bind((high.astype("int32") + rounding) >> right)

    def _spread(self, value: Any) -> Any:
        is_vector = not isinstance(value, int) and value.ty.dtype.lanes > 1
        return value if is_vector else self.all(value)


Visit = Callable[[Any, Lanes], None]


def along(length: int, lanes: int, visit: Visit) -> None:
    """Visits a row: (first place, lanes) of its vectors, then of each remaining value."""
    whole = length // lanes
    if whole:
        with T.serial(whole) as i:
            visit(i * lanes, Lanes(lanes))
    if length % lanes:
        with T.serial(length % lanes) as i:
            visit(i + whole * lanes, Lanes(1))


class Total:
    """A value that a walk along a row accumulates: vectors by themselves, then joined.

    Args:
        dtype: of the accumulators.
        lanes: of the vectors.
        start: what it begins with, which changes nothing.
        join: two values into one.
        reduce: LLVM's name for the same of a vector.
    """

    def __init__(self, dtype: str, lanes: int, start: int, join: Callable[[Any, Any], Any],
                 reduce: str):  # fmt: skip
        self.join, self.reduce, self.dtype = join, reduce, dtype
        self.cells = {n: T.alloc_buffer((1,), Lanes(n).dtype(dtype), scope="local", layout=None)
                      for n in {1, lanes}}  # fmt: skip
        for n, cell in self.cells.items():
            T.buffer_store(cell, Lanes(n).all(tirx.const(start, dtype)), [0])

    def add(self, value: Any, lanes: Lanes) -> None:
        """Joins one more value, or vector of values."""
        cell = self.cells[lanes.count]
        T.buffer_store(cell, self.join(cell[0], value), [0])

    def result(self, dtype: str = "") -> Any:
        """All of them joined as ``dtype`` (their own by default): a scalar."""
        dtype = dtype or self.dtype
        found = self.cells[1][0].astype(dtype)
        for n, cell in self.cells.items():
            if n > 1:
                name, value = f"llvm.vector.reduce.{self.reduce}", cell[0]
                wide = value if dtype == self.dtype else T.Cast(Lanes(n).dtype(dtype), value)
                found = self.join(found, T.call_llvm_pure_intrin(dtype, name, wide))
        return T.Bind(found)


def added(dtype: str, lanes: int) -> Total:
    """A sum."""
    return Total(dtype, lanes, 0, lambda a, b: a + b, "add")


def tasks(shape: Sequence[Extent], work: int, symbols: Symbols, row: Callable[[Any], None]) -> None:
    """Emits the loops over the rows of a tensor.

    Args:
        shape: of the tensor; the last extent is static.
        work: element operations for one value.
        symbols: the function's shape variables.
        row: emits one row, given the place of its first value in the flat tensor.
    """
    length, count = int(shape[-1]), product(shape[:-1], symbols)
    run = max(RUN // max(length, 1), 1)
    static = prod(extent for extent in shape if isinstance(extent, int))
    loop = T.parallel if static * work >= PARALLEL_WORK else T.serial
    number = ceil(count / run) if isinstance(count, int) else tirx.ceildiv(count, run)
    with loop(number) as task:
        first = T.Bind(task * run)
        with T.serial(tirx.min(run, count - first)) as i:
            row(T.Bind((first + i) * length))


Supports = Callable[[int, Problem], str | None]
Build = Callable[[int, Problem, Any, Knobs], Any]


def kernels(
    ops: Sequence[str], supports: Supports, pack: Callable[..., Any], build: Build
) -> tuple[Kernel, ...]:
    """A family's kernels by preference; the last ones compile for every target.

    Args:
        ops: that it implements.
        supports: (lanes, problem) -> why vectors of so many lanes cannot do it, None when they can.
        pack: as of `nybble.schedules.kernel.Kernel`.
        build: the same, behind the lanes.
    """
    return tuple(
        Kernel(
            NAME if lanes == 1 else f"cpu.rows.{name}",
            op,
            partial(_supports, features, partial(supports, lanes)),
            pack,
            partial(build, lanes),
            arch="x86_64" if features else None,
        )
        for name, lanes, features in (("avx512", 16, AVX512), ("avx2", 8, AVX2), ("", 1, ()))
        for op in ops
    )


def _supports(
    features: tuple[str, ...], fits: Callable[[Problem], str | None], problem: Problem, target: Any
) -> str | None:
    if features and (target.arch != "x86_64" or not target.has(*features)):
        return f"needs {', '.join(features)}"
    return fits(problem)
