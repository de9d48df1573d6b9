"""Rows of bit-packed integers (`nybble.ir.numerics.pack`) read back one element at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from nybble.ir import numerics


def is_narrow(dtype: str) -> bool:
    """Whether values of this dtype are packed in memory: integers below 8 bits."""
    return dtype.startswith(("int", "uint")) and numerics.width(dtype)[1] < 8


def pack_rows(values: NDArray[Any], dtype: str) -> NDArray[np.uint8]:
    """(rows, n) values -> (rows, `row_bytes`): packed, with a byte behind that may be read."""
    packed = numerics.pack(values, dtype)
    return np.pad(packed, ((0, 0), (0, row_bytes(values.shape[1], dtype) - packed.shape[1])))


def row_bytes(count: int, dtype: str) -> int:
    """Bytes of a packed row of ``count`` values."""
    return -(-count * numerics.width(dtype)[1] // 8) + 1


def element(packed: te.Tensor, row: Any, index: Any, dtype: str) -> Any:
    """The value at (row, index) of `pack_rows`, in int8 or uint8."""
    signed, bits = numerics.width(dtype)
    first = index * bits
    at, shift = first // 8, (first % 8).astype("int32")
    word = packed(row, at).astype("int32")
    if 8 % bits:  # a value may end in the next byte
        word = word | packed(row, at + 1).astype("int32") << 8
    code = (word >> shift) & tirx.const((1 << bits) - 1, "int32")
    if dtype == "int1":
        code = 1 - 2 * code
    elif signed:
        half = tirx.const(1 << (bits - 1), "int32")
        code = (code ^ half) - half
    return code.astype(str(numerics.storage(dtype)))
