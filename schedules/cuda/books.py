"""Weights of a code book (`nybble.ir.code_books`) as half-precision numbers, by permuting bytes.

A level is at most 8 bits, so a book is four words, and ``prmt`` looks up four numbers in eight of
its bytes at once; their upper bit then chooses between the two halves of the book:

    word     n7 … n1 n0                numbers of 4 bits; two and two become a pair of halves
    prmt     book[0:8][n & 7], book[8:16][n & 7]
    prmt     of the first four bytes or of the second, by n / 8          level + 128
    prmt     bytes b -> 0x6400 | b = 1024 + b, a pair of them            then - 1152

Each unit of 16 pairs (`nybble.schedules.cuda.halves`) lies in four words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import code_books
from nybble.schedules.cuda.halves import PAIRS, Decoded

OFFSET = 128
"""What is added to levels, to make bytes without a sign."""
_EACH = 4  # pairs of a word
_HIGH = 0x64646464  # upper bytes of 1024
_FIRST, _SECOND = 0x4140, 0x4342  # prmt: of four bytes two, each below an upper byte


@dataclass(frozen=True)
class BookCodes:
    """How numbers of levels lie in words.

    Attributes:
        book: the code book.
    """

    book: str

    @property
    def bits(self) -> int:
        """Of a number; also the words of a unit."""
        return code_books.BITS

    def pack(self, codes: NDArray[Any]) -> NDArray[np.uint32]:
        """Words of units.

        Args:
            codes: (…, 16, 2) numbers: pairs, the low half first.

        Returns:
            (…, 4) words.
        """
        numbers = codes.astype(np.uint32).reshape(*codes.shape[:-2], PAIRS // _EACH, 2 * _EACH)
        shifts = np.arange(0, 32, 4, dtype=np.uint32)
        return np.bitwise_or.reduce(numbers << shifts, axis=-1)

    def decode(
        self, words: Callable[[int], Any], into: Any, pairs: range, zero: Decoded
    ) -> None:  # fmt: skip
        """Emits the conversion of some pairs of a unit, all those of a word at once.

        Args:
            words: the nth word of the unit.
            into: uint32 registers for these pairs.
            pairs: which.
            zero: what to subtract from ``level + 128``.
        """
        for first in range(pairs.start, pairs.stop, _EACH):
            word, at = words(first // _EACH), first - pairs.start
            low = T.Bind(word & _word(0x77777777))
            upper = T.Bind((word >> _word(1)) & _word(0x44444444) | _word(0x32103210))
            for half in (0, 1):
                shift = _word(16 * half)
                self._look_up(into, at + 2 * half, (low >> shift, upper >> shift))
            for pair in range(_EACH):
                zero.subtract(into[at + pair], first + pair, 0)

    def _look_up(self, into: Any, at: int, selectors: tuple[Any, Any]) -> None:
        """Two pairs ``1024 + 128 + level`` from four numbers: their lower bits, their upper one."""
        prmt, (low, upper) = T.ptx["prmt.b32"], map(T.Bind, selectors)
        book = code_books.levels(self.book).astype(np.int16) + OFFSET
        entries = [_word(int(word)) for word in book.astype(np.uint8).view(np.uint32)]
        both = into[at], into[at + 1]
        T.evaluate(prmt(both[0], entries[0], entries[1], low))
        T.evaluate(prmt(both[1], entries[2], entries[3], low))
        T.evaluate(prmt(both[0], both[0], both[1], upper))
        T.evaluate(prmt(both[1], both[0], _word(_HIGH), _word(_SECOND)))
        T.evaluate(prmt(both[0], both[0], _word(_HIGH), _word(_FIRST)))


def _word(value: int) -> Any:
    return tirx.const(value, "uint32")
