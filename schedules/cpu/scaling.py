"""What an epilogue reads: bias and scaling of every output channel, the rows of a packed table.

`nybble.schedules.cpu.epilogue` says what the numbers mean and uses them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.errors import ScheduleError
from nybble.ir import numerics
from nybble.schedules.cpu import singles
from nybble.schedules.kernel import Constants, Epilogue, Problem

Vector = NDArray[np.int64]
BRANCH_LIMIT = 1 << 26  # |second branch| after scaling; 8-bit values at ratios below 2^18


def table(
    problem: Problem, constants: Constants, bias: NDArray[Any], channels: int, dtype: str = "int32"
) -> NDArray[Any]:
    """The packed table: ``bias`` and `rows`, filled up with zeros.

    Args:
        problem: the layer.
        constants: of the layer.
        bias: of every output channel, with what the kernel's own offsets add to it.
        channels: columns of the table, at least one for each output channel.
        dtype: of the accumulators.
    """
    values = [bias, *rows(problem, constants, len(bias))]
    found = np.zeros((len(values), channels), dtype)
    for row, given in zip(found, values, strict=True):
        row[: len(bias)] = wrapped(given, dtype)
    return found


def table_rows(epilogue: Epilogue) -> int:
    """Rows of the packed table: the bias, then `rows`."""
    if epilogue.kind in ("none", "float"):
        return 1
    if epilogue.singles:
        return 2 + (epilogue.kind == "add")
    return (4 if epilogue.small_ratios else 7) + (4 if epilogue.kind == "add" else 0)


def ratios_are_small(multiplier: NDArray[Any], shift: NDArray[Any]) -> bool:
    """Whether every ratio multiplier / 2^shift is below 1/4: `Epilogue.small_ratios`."""
    left = dyadic_rows(multiplier.astype(np.int64), shift.astype(np.int64))[0]
    return not left.any()


def rows(problem: Problem, constants: Constants, channels: int) -> list[Vector]:
    """Rows of the packed table behind the bias, each of length ``channels``.

    requantize: low, high (of acc), left shift, multiplier, rounding, right shift; the first three
    only without ``small_ratios``. add appends left shift, multiplier, rounding and right shift of
    the second branch. With ``singles``, the rows of `nybble.schedules.cpu.singles`.

    Raises:
        ScheduleError: a negative multiplier, a second branch scaled beyond 2^26, or ratios that are
            not small or not exact in float32 though the epilogue says so.
    """
    epilogue = problem.epilogue
    if epilogue.kind in ("none", "float"):
        return []
    if epilogue.singles:
        found = singles.rows(problem, constants, channels)
        if found is None:
            raise ScheduleError("singles is set, but float32 does not rescale exactly")
        return found
    branch = "" if epilogue.kind == "requantize" else "_a"
    names = (f"multiplier{branch}", f"shift{branch}")
    reach, second = 0, list[Vector]()
    if epilogue.kind == "add":
        ratio = [_along(constants[name], channels) for name in ("multiplier_b", "shift_b")]
        reach = _reach(epilogue, *ratio)
        second = dyadic_rows(*ratio)
    m, c = (_along(constants[name], channels) for name in names)
    if epilogue.small_ratios:
        if not ratios_are_small(m, c):
            raise ScheduleError("small_ratios is set, but a requantization ratio is 1/4 or more")
        return [*dyadic_rows(m, c)[1:], *second]
    margin = reach + 512  # zero points and the width of the output lie within 512
    return [*_bounds(m, c, margin), *dyadic_rows(m, c), *second]


def branch_rows(
    dtype: str, zero_point: int, scale: tuple[NDArray[Any], NDArray[Any]], channels: int
) -> list[Vector]:
    """Rows for one branch that is rescaled by itself: low and high for int32, then four.

    Args:
        dtype: of the branch; up to 8 bits need no bounds, since they cannot reach far.
        zero_point: of the branch.
        scale: multiplier and shift.
        channels: length of the rows.

    Raises:
        ScheduleError: a negative multiplier, or a narrow branch scaled beyond 2^26.
    """
    m, c = (_along(values, channels) for values in scale)
    if dtype == "int32":
        return [*_bounds(m, c, 512), *dyadic_rows(m, c)]
    _check_reach(dtype, zero_point, m, c)
    return dyadic_rows(m, c)


def wrapped(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values as ``dtype``, modulo 2^32 for int32: accumulators wrap, and wrap back."""
    return values.astype(np.uint32).view(np.int32) if dtype == "int32" else values.astype(dtype)


def _along(values: NDArray[Any], channels: int) -> Vector:
    return np.broadcast_to(values.reshape(-1), (channels,)).astype(np.int64)


def dyadic_rows(m: Vector, c: Vector) -> list[Vector]:
    """Left shift, multiplier, rounding, right shift: the same ratio with c >= 33."""
    if np.any(m < 0):
        raise ScheduleError("a requantization multiplier is negative; ratios are positive")
    zero = m == 0
    m, c = np.where(zero, 1 << 30, m), np.where(zero, 62, c)
    room = np.minimum(30 - np.floor(np.log2(m)).astype(np.int64), 62 - c)
    m, c = np.where(zero, 0, m << room), c + room
    # More than 30 stands for ratios of 2^27 and more, where every acc but 0 is beyond all bounds.
    left, c = np.clip(33 - c, 0, 30), np.maximum(c, 33)
    return [left, m, np.int64(1) << (c - 33), c - 32]


def _bounds(m: Vector, c: Vector, margin: int) -> list[Vector]:
    """Bounds of acc beyond which |y| certainly exceeds ``margin``, or no bounds."""
    ratio = np.maximum(m, 1) / 2.0**c
    limit = np.ceil((margin + 2) / ratio)
    low, high = np.maximum(-limit, -(2.0**31)), np.minimum(limit, 2.0**31 - 1)
    return [low.astype(np.int64), high.astype(np.int64)]


def _reach(epilogue: Epilogue, m: Vector, c: Vector) -> int:
    """Largest magnitude of the scaled second branch."""
    assert epilogue.other is not None
    return _check_reach(epilogue.other.dtype, epilogue.zero_point_other, m, c)


def _check_reach(dtype: str, zero_point: int, m: Vector, c: Vector) -> int:
    ends = np.array(numerics.limits(dtype)) - zero_point
    reach = int(np.abs(numerics.scaled(ends[:, None], m, c, "half_up")).max())
    if reach > BRANCH_LIMIT:
        raise ScheduleError(f"a second branch of 8 bits reaches {reach} output steps")
    return reach
