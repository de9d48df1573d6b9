"""Codes of 1 to 8 bits in vectors of bytes, so that few instructions take them apart.

Weights become unsigned codes; a *step* is one vector of them, a byte each. Codes are stored in
planes whose widths are powers of two, one vector of a plane holding the fields of 8 / width steps:

    4 bits   v & 15, v >> 4                          one vector, 2 steps
    2 bits   v & 3, (v >> 2) & 3, …                  one vector, 4 steps
    6 bits   4 + 2: two vectors and one              three vectors, 4 steps

3 bits would need two fields for every code as 2 + 1. Instead three bytes hold two codes each in
their low 6 bits, and in their upper bits two more: 8 codes for 19 instructions instead of 32.
A *unit* is the smallest run of steps that fills its vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Codes:
    """How codes of one width are stored.

    Attributes:
        bits: of a code, 1 to 8.
    """

    bits: int

    @property
    def planes(self) -> tuple[int, ...]:
        """Widths of the planes, lowest bits first."""
        return tuple(width for width in (8, 4, 2, 1) if self.bits & width)

    @property
    def steps(self) -> int:
        """Vectors of codes in a unit."""
        return 8 // min(self.planes)

    @property
    def vectors(self) -> int:
        """Vectors of bytes in a unit."""
        return self.steps * self.bits // 8

    def pack(self, codes: Bytes) -> Bytes:
        """(…, steps, bytes) codes -> (…, vectors, bytes) as stored."""
        if self.bits == 3:
            return _pack_triples(codes)
        stored, below = [], 0
        for width in self.planes:
            field = (codes >> below) & ((1 << width) - 1)
            for first in range(0, self.steps, 8 // width):
                shared = field[..., first : first + 8 // width, :]
                shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
                stored.append(np.bitwise_or.reduce(shared << shifts, axis=-2))
            below += width
        return np.stack(stored, -2)

    def unpack(self, vectors: list[Any]) -> list[Any]:
        """The steps of a unit as expressions, from its loaded vectors."""
        if self.bits == 3:
            return _unpack_triples(vectors)
        steps: list[Any] = [None] * self.steps
        below, start = 0, 0
        for width in self.planes:
            for step in range(self.steps):
                v = vectors[start + step * width // 8]
                field = _field(v, step * width % 8, width)
                moved = field if below == 0 else T.shift_left(field, _all(below, v))
                steps[step] = moved if below == 0 else steps[step] | moved
            start += self.steps * width // 8
            below += width
        return steps


def _pack_triples(codes: Bytes) -> Bytes:
    step = [codes[..., i, :] for i in range(8)]
    a = step[0] | step[1] << 3 | (step[6] & 3) << 6
    b = step[2] | step[3] << 3 | (step[7] & 3) << 6
    c = step[4] | step[5] << 3 | (step[6] >> 2) << 6 | (step[7] >> 2) << 7
    return np.stack([a, b, c], -2)


def _unpack_triples(vectors: list[Any]) -> list[Any]:
    a, b, c = vectors
    four = _all(4, c)
    pairs = [_field(v, at, 3) for v in vectors for at in (0, 3)]
    above = [T.shift_right(c, _all(shift, c)) & four for shift in (4, 5)]
    return [*pairs, _field(a, 6, 2) | above[0], _field(b, 6, 2) | above[1]]


def _field(vector: Any, at: int, width: int) -> Any:
    """``width`` bits of every byte, from bit ``at`` on."""
    if at:
        vector = T.shift_right(vector, _all(at, vector))
    return vector if at + width == 8 else vector & _all((1 << width) - 1, vector)


def _all(value: int, like: Any) -> Any:
    dtype = like.ty.dtype
    return T.broadcast(tirx.const(value, "uint8"), dtype.lanes)
