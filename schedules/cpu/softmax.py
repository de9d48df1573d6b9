"""Softmax in integers, row by row: `nybble.ir.rows.softmax` and ``masked_softmax``.

pass 1    the largest value
pass 2    2^-t of every value into a scratch row, and their sum
pass 3    times the reciprocal of the sum
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics, rows
from nybble.schedules.cpu import rowwise, scaling
from nybble.schedules.cpu.buffers import Buffers, declare
from nybble.schedules.cpu.elementwise import i64
from nybble.schedules.cpu.rowwise import Lanes
from nybble.schedules.kernel import Constants, Knobs, Problem, TensorSpec

WORK = 16  # operations for a value
SIGN = 1 << 31


def _supports(lanes: int, problem: Problem) -> str | None:
    length = problem.output.shape[-1]
    if not isinstance(length, int) or length > rows.LONGEST_ROW:
        return f"rows of {length} values"
    if lanes > 1 and length >= lanes << (31 - rows.POWER_BITS):
        return f"sums of {length} powers may leave 32 bits"
    return f"{length} values fill no vector" if length < lanes else None


def pack(_problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Beyond what difference everything is 0, then left shift, multiplier, rounding, right."""
    m, c = (int(np.asarray(constants[name]).item()) for name in ("multiplier", "shift"))
    enough = -(-(rows.MOST_OCTAVES << rows.OCTAVE_BITS) << c) // m + 1 if m else SIGN
    factor = scaling.dyadic_rows(np.array([m]), np.array([c]))
    cap = min(enough, (SIGN - 1) >> int(factor[0][0]))
    packed = [np.array([cap, *(int(row[0]) for row in factor)], np.int32)]
    return [*packed, constants["mask"].reshape(-1)] if "mask" in constants else packed


def masks(problem: Problem) -> tuple[TensorSpec, ...]:
    """The mask, flat, where there is one."""
    if problem.op == "softmax":
        return ()
    rows_of_mask = int(problem.attr("rows"))
    return (TensorSpec((rows_of_mask * int(problem.output.shape[-1]),), "uint8"),)


def _build(lanes: int, problem: Problem, _target: Any, _knobs: Knobs) -> tirx.PrimFunc:
    symbols: dict[str, Any] = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        buffers = declare(problem, (TensorSpec((5,), "int32"), *masks(problem)), symbols)
        factor = [T.Bind(buffers.constants[0][i]) for i in range(5)]
        row = partial(_row, problem, lanes, buffers, factor)
        rowwise.tasks(problem.output.shape, WORK, symbols, row)
    return builder.get()


def _row(problem: Problem, lanes: int, buffers: Buffers, factor: list[Any], first: Any) -> None:
    length = int(problem.output.shape[-1])
    bits, out = rows.POWER_BITS, numerics.width(problem.output.dtype)[1]
    shown = _shown(problem, buffers, first)
    largest = rowwise.Total("int32", lanes, -SIGN, tirx.max, "smax")

    def compared(at: Any, n: Lanes) -> None:
        largest.add(shown(at, n.load(buffers.x, first + at), -SIGN, n), n)

    rowwise.along(length, lanes, compared)
    most = largest.result()
    powers = T.alloc_buffer((length,), "int32", layout=None)
    total = rowwise.added("int32" if lanes > 1 else "int64", lanes)

    def raised(at: Any, n: Lanes) -> None:
        value = shown(at, n.load(buffers.x, first + at), -SIGN, n)
        below = below_of(most, value, factor[0], n)
        octaves = n.rescaled(below, factor[1], factor[2:])
        most_octaves = n.all(rows.MOST_OCTAVES << rows.OCTAVE_BITS)
        power = shown(at, power_of(T.Bind(tirx.min(octaves, most_octaves)), n), 0, n)
        n.store(powers, at, power)
        total.add(power if lanes > 1 else power.astype("int64"), n)

    rowwise.along(length, lanes, raised)
    numerator = tirx.const(1 << (bits + rows.RECIPROCAL_BITS), "int64")
    reciprocal = tirx.truncdiv(numerator, tirx.max(total.result("int64"), i64(1))).astype("int32")
    right = bits + rows.RECIPROCAL_BITS - out - 32
    shares = T.Bind(reciprocal), 1 << (right - 1), right

    def shared(at: Any, n: Lanes) -> None:
        value = n.rescaled(n.load(powers, at), None, shares)
        n.store(buffers.output, first + at, tirx.min(value, n.all((1 << out) - 1)))

    rowwise.along(length, lanes, shared)


def _shown(problem: Problem, buffers: Buffers, first: Any) -> Any:
    """(place, value, number, lanes) -> the values that the mask shows, else the number."""
    if problem.op == "softmax":
        return lambda _at, value, _number, _n: value
    mask, length = buffers.constants[1], int(problem.output.shape[-1])
    row = tirx.floormod(tirx.floordiv(first, length), int(problem.attr("rows")))
    begin = T.Bind(row * length)

    def keep(at: Any, value: Any, number: int, n: Lanes) -> Any:
        seen = n.load(mask, begin + at) != n.all(0)
        return T.Bind(T.Select(seen, value, n.all(number)))

    return keep


def below_of(most: Any, value: Any, cap: Any, n: Lanes) -> Any:
    """min(most - value, cap): as unsigned numbers, since the difference of two int32 is one."""
    sign = n.all(tirx.const(SIGN, "uint32"))
    unsigned = n.dtype("uint32")
    largest = T.reinterpret(unsigned, n.all(most)) ^ sign
    below = largest - (T.reinterpret(unsigned, value) ^ sign)
    return T.reinterpret(n.dtype("int32"), tirx.min(below, n.all(cap.astype("uint32"))))


def power_of(octaves: Any, n: Lanes) -> Any:
    """`nybble.ir.rows.power`."""
    c1, c2, c3 = (n.all(c) for c in rows.POWER)
    half, by = n.all(1 << 14), n.all(15)
    f = T.Bind(octaves & n.all(0x7FFF))
    inner = T.Bind(c2 - T.shift_right(f * c3 + half, by))
    inner = T.Bind(c1 - T.shift_right(f * inner + half, by))
    fraction = n.all(1 << 15) - T.shift_right(f * inner + half, by)
    doubled = T.shift_right(
        T.shift_left(fraction, n.all(rows.POWER_BITS - 14)), T.shift_right(octaves, by)
    )
    return T.Bind(T.shift_right(doubled + n.all(1), n.all(1)))


KERNELS = rowwise.kernels(("softmax", "masked_softmax"), _supports, pack, _build)
