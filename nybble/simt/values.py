"""Values of all lanes at once, and arithmetic on them with CUDA's widths.

A value is a NumPy scalar where every lane has the same, else an array: ``(lanes,)`` for a scalar of
TensorIR, ``(lanes, n)`` or ``(1, n)`` for a vector of n. Its dtype is exactly TensorIR's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.simt.errors import UnsupportedError

Value = Any
Mask = npt.NDArray[np.bool_] | None
"""The active lanes; None stands for all of them."""

Binary = Callable[[Value, Value], Value]


def _trunc_div(a: Value, b: Value) -> Value:
    if a.dtype.kind == "f":
        return a / b
    quotient = a // b
    wrong = (a % b != 0) & ((a < 0) != (b < 0))  # floor went past zero
    return quotient + wrong.astype(quotient.dtype)


BINARY: dict[str, Binary] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _trunc_div,
    "Mod": np.fmod,
    "FloorDiv": lambda a, b: a // b,
    "FloorMod": lambda a, b: a % b,
    "Min": np.minimum,
    "Max": np.maximum,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "LShift": np.left_shift,
    "RShift": np.right_shift,
    "BitwiseAnd": lambda a, b: a & b,
    "BitwiseOr": lambda a, b: a | b,
    "BitwiseXor": lambda a, b: a ^ b,
}
"""By the class of the TensorIR node. NumPy wraps integers and rounds float16 once, as CUDA does."""


def cast(value: Value, dtype: np.dtype[Any]) -> Value:
    """C's conversion; from a float to an integer as ``cvt.rzi`` does: cut, saturated, NaN to 0."""
    if dtype.kind in "iu" and value.dtype.kind == "f":
        limits = np.iinfo(dtype)
        wide = np.nan_to_num(np.trunc(value.astype(np.float64)), nan=0.0)
        top = np.nextafter(float(limits.max) + 1, 0) if dtype.itemsize == 8 else float(limits.max)
        return np.clip(wide, float(limits.min), top).astype(dtype)
    return value.astype(dtype)


def fma(a: Value, b: Value, c: Value) -> Value:
    """Rounds a * b + c once, in the operands' dtype: float16 or float32."""
    dtype = a.dtype
    if dtype == np.float64:
        raise UnsupportedError("fma of float64 is not modelled by nybble.simt")
    product = a.astype(np.float64) * b.astype(np.float64)  # exact
    addend = c.astype(np.float64)
    if dtype == np.float16:
        return (product + addend).astype(np.float16)  # what float64 loses is below half's last bit
    return _odd_sum(product, addend).astype(np.float32)


def _odd_sum(a: Value, b: Value) -> Value:
    """Rounds a + b to odd, so that rounding to float32 afterwards is rounding the exact sum."""
    total = a + b
    back = total - a
    error = (a - (total - back)) + (b - back)  # Knuth's two-sum: what the addition lost
    bits = np.atleast_1d(total).view(np.int64)
    inexact = np.isfinite(total) & (error != 0) & ((bits & 1) == 0).reshape(np.shape(total))
    away = np.where(error > 0, np.inf, -np.inf)
    return np.where(inexact, np.nextafter(total, away), total)


def bitcast(value: Value, dtype: np.dtype[Any], vector: bool) -> Value:
    """The same bits under another dtype; vectors may change their number of elements."""
    array = np.ascontiguousarray(value)
    if not vector and array.ndim == 0:
        return array.reshape(1).view(dtype)[0]
    if array.ndim == 1 and dtype.itemsize == array.dtype.itemsize:
        return array.view(dtype)
    rows = array.reshape(array.shape[0] if array.ndim else 1, -1)
    out = rows.view(dtype)
    return out if vector else out[:, 0]
