"""Vectors that live in registers: a small array on the stack, which LLVM takes apart.

TVM keeps small buffers on the stack in the scope ``global`` only; those of the scope ``local`` come
from its heap workspace, at a call for every task.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T


class Registers:
    """``count`` vectors of ``lanes`` elements.

    Attributes:
        count: of vectors.
        dtype: of an element.
        lanes: of a vector.
    """

    def __init__(self, count: int, dtype: str, lanes: int):
        self.count, self.dtype, self.lanes = count, dtype, lanes
        self._buffer = T.alloc_buffer((count * lanes,), dtype, layout=None)

    def __getitem__(self, slot: Any) -> Any:
        return self._buffer.vload([slot * self.lanes], f"{self.dtype}x{self.lanes}")

    def __setitem__(self, slot: Any, value: Any) -> None:
        T.buffer_store(self._buffer, value, [T.ramp(slot * self.lanes, 1, self.lanes)])

    def clear(self) -> None:
        """Sets every element to zero."""
        zero = tirx.const(0, self.dtype)
        for slot in range(self.count):
            self[slot] = T.broadcast(zero, self.lanes)
