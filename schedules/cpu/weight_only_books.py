"""Weights of a code book (`nybble.ir.code_books`) for few rows: 4 bits each, looked up in vectors.

One ``vpshufb`` turns a vector of numbers into the levels' bytes, which are multiplied as weights of
8 bits are: half their memory, for an instruction more in each vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import code_books
from nybble.schedules.cpu.gemv_codes import Codes

_SHUFFLES = {
    16: "llvm.x86.ssse3.pshuf.b.128",
    32: "llvm.x86.avx2.pshuf.b",
    64: "llvm.x86.avx512.pshuf.b.512",
}


@dataclass(frozen=True)
class BookCodes(Codes):
    """Numbers of levels, stored as codes of 4 bits.

    Attributes:
        entries: the byte that each number stands for.
    """

    entries: tuple[int, ...] = ()

    def unpack(self, vectors: list[Any]) -> list[Any]:
        """The bytes of a unit's steps as expressions, from its loaded vectors."""
        return [self._look_up(step) for step in super().unpack(vectors)]

    def _look_up(self, numbers: Any) -> Any:
        lanes = int(numbers.ty.dtype.lanes)
        entries = [tirx.const(entry, "uint8") for entry in self.entries]
        table = T.Shuffle(entries * (lanes // len(entries)), list(range(lanes)))
        return T.call_llvm_pure_intrin(f"uint8x{lanes}", _SHUFFLES[lanes], table, numbers)


def codes_of(book: str, base: int) -> BookCodes:
    """How the weights of a book are stored where a byte of 0 stands for the weight ``base``."""
    entries = (code_books.levels(book).astype(np.int16) - base).astype(np.uint8)
    return BookCodes(code_books.BITS, tuple(map(int, entries)))
