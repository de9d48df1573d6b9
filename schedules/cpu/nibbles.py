"""Activations of 4 bits stored two a byte (`Form` ``packed``): even elements in the low half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu import loops
from nybble.schedules.kernel import Problem, TensorSpec

STEP = 8  # channels come in multiples: no vector of them ends inside a byte


@dataclass(frozen=True)
class Nibbles:
    """A flat buffer of packed elements that reads like one of a byte each.

    Attributes:
        packed: uint8 buffer with half as many elements.
        spec: the tensor.
    """

    packed: Any
    spec: TensorSpec

    @property
    def dtype(self) -> str:
        """What a load returns lanes of."""
        return loops.stored(self.spec.dtype)

    def vload(self, index: list[Any], dtype: str) -> Any:
        """A vector of elements; index and lanes are even."""
        lanes = int(dtype.partition("x")[2])
        half = lanes // 2
        pairs = T.Bind(self.packed.vload([tirx.floordiv(index[0], 2)], f"uint8x{half}"))
        parts = [pairs & _all(15, half), pairs >> _all(4, half)]
        order = [i // 2 + i % 2 * half for i in range(lanes)]
        values = T.Shuffle(parts, order)
        if not numerics.width(self.spec.dtype)[0]:
            return values
        signed = (values ^ _all(8, lanes)) - _all(8, lanes)
        return T.reinterpret(f"int8x{lanes}", signed)


def readable(buffer: Any, spec: TensorSpec | None) -> Any:
    """The flat buffer of a tensor as one of a byte an element."""
    return Nibbles(buffer, spec) if spec is not None and spec.form == "packed" else buffer


def store(buffer: Any, index: Any, value: Any) -> None:
    """Stores a vector of values two a byte; index and lanes are even."""
    lanes = value.ty.dtype.lanes
    pairs = T.Bind(T.reinterpret(f"uint16x{lanes // 2}", value))

    def every(number: int) -> Any:
        return T.broadcast(tirx.const(number, "uint16"), lanes // 2)

    joined = (pairs & every(15)) | ((pairs >> every(4)) & every(240))
    narrow = T.Cast(f"uint8x{lanes // 2}", joined)
    T.buffer_store(buffer, narrow, [T.ramp(tirx.floordiv(index, 2), 1, lanes // 2)])


def refuse(problem: Problem, lanes: int) -> str | None:
    """Why a problem cannot have packed activations; None when it can."""
    four = [spec for spec in problem.tensors if spec.dtype in ("int4", "uint4")]
    if not four or problem.op != "conv2d" or problem.epilogue.kind not in ("requantize", "add"):
        return "only convolutions from or to 4 bits have packed activations"
    packed = [spec for spec in problem.tensors if spec.form == "packed"]
    if any(spec not in four or int(spec.shape[-1]) % STEP for spec in packed):
        return f"only 4 bits in multiples of {STEP} channels are packed"
    if problem.output in packed and int(problem.output.shape[-1]) % lanes:
        return f"packed outputs come in multiples of {lanes} channels"
    return None


def _all(value: int, lanes: int) -> Any:
    return T.broadcast(tirx.const(value, "uint8"), lanes)
