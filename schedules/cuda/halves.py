"""Weights of 2 to 8 bits as half-precision numbers, by logic and one fused multiply-add.

The bits of a half 1024 + n are 0x6400 | n for n < 1024. So a mask and an ``or``, one ``lop3``, turn
two codes of a word, one in each of its halves, into two numbers (Kim et al., arXiv 2211.10017):

    word     … c2 c1 c0 | … c2 c1 c0       codes lie in fields of a half, lowest first
    lop3     (word & (mask << p)) | 0x6400  =  1024 + c·2^p      p + bits <= 10, else shift first
    fma      · 2^-p  - 1024·2^-p - zero     =  c - zero          exact: all are integers below 2048

A register of the tensor core's operand is such a *pair*. A *unit* is 16 pairs, what a lane holds of
16 x 64 weights; it lies in ``bits`` words. Of 3 bits five fields fit a half, and one bit is left:
pair 15 is gathered from the left bits of the three words, lowest from the first. Codes of 5, 6 and
7 bits are stored in 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

PAIRS = 16
"""Of a unit: 32 weights."""
BIAS = 1024
_MAGIC = 0x64006400
_MANTISSA = 10
_AND_OR = 0xEA  # lop3's table for (a & b) | c


def stored_bits(bits: int) -> int:
    """The width in which codes of ``bits`` lie."""
    return next(width for width in (2, 3, 4, 8) if bits <= width)


@dataclass(frozen=True)
class Codes:
    """How codes of one width lie in words.

    Attributes:
        bits: of a stored code: 2, 3, 4 or 8; also the words of a unit.
    """

    bits: int

    @property
    def fields(self) -> int:
        """Whole codes in half a word."""
        return 16 // self.bits

    def pack(self, codes: NDArray[Any]) -> NDArray[np.uint32]:
        """Words of units.

        Args:
            codes: (…, 16, 2) integers below 2^bits: pairs, the low half first.

        Returns:
            (…, bits) words.
        """
        pairs = codes[..., 0].astype(np.uint32) | codes[..., 1].astype(np.uint32) << 16
        words = np.zeros((*codes.shape[:-2], self.bits), np.uint32)
        for pair in range(min(PAIRS, self.fields * self.bits)):
            word, field = divmod(pair, self.fields)
            words[..., word] |= pairs[..., pair] << np.uint32(field * self.bits)
        if self.bits == 3:
            for word in range(3):
                bit = (pairs[..., 15] >> np.uint32(word)) & np.uint32(0x00010001)
                words[..., word] |= bit << np.uint32(15)
        return words

    def decode(
        self, words: Callable[[int], Any], into: Any, pairs: range, zero: Decoded
    ) -> None:  # fmt: skip
        """Emits the conversion of some pairs of a unit.

        Args:
            words: the nth word of the unit.
            into: uint32 registers for these pairs.
            pairs: which.
            zero: what to subtract.
        """
        for pair in pairs:
            word, field = divmod(pair, self.fields)
            to, at = into[pair - pairs.start], 0
            if word < self.bits:
                shift, at = self._place(field)
                source = words(word) if shift == 0 else T.shift_right(words(word), _word(shift))
                _select(to, source, ((1 << self.bits) - 1) << at, _word(_MAGIC))
            else:
                for left in range(self.bits):
                    source = T.shift_right(words(left), _word(15 - left))
                    _select(to, source, 1 << left, to if left else _word(_MAGIC))
            zero.subtract(to, pair, at)

    def _place(self, field: int) -> tuple[int, int]:
        """(right shift of the word, bit where the field lies then)."""
        reach = _MANTISSA // self.bits  # fields that need no shift
        first = field // reach * reach
        return first * self.bits, (field - first) * self.bits


@dataclass(frozen=True)
class Decoded:
    """What is subtracted from codes.

    Attributes:
        zero: the zero point of all of them, as a code, or None.
        rows: without it: registers of two halves ``1024 + zero`` for a pair, by its place in the
            unit.
    """

    zero: int | None
    rows: Callable[[int], Any] | None = None

    def subtract(self, to: Any, pair: int, at: int) -> None:
        """Emits 1024 + c·2^at -> c - zero for a pair in its register."""
        if self.rows is not None:
            if at:
                _fma(to, 2.0**-at, BIAS - BIAS * 2.0**-at)
            T.evaluate(T.ptx["sub.f16x2"](to, to, self.rows(pair)))
            return
        assert self.zero is not None
        _fma(to, 2.0**-at, -(BIAS * 2.0**-at) - self.zero)


def _fma(to: Any, factor: float, addend: float) -> None:
    if factor == 1.0:
        T.evaluate(T.ptx["add.f16x2"](to, to, _both(addend)))
    else:
        T.evaluate(T.ptx["fma.rn.f16x2"](to, to, _both(factor), _both(addend)))


def _select(to: Any, source: Any, mask: int, other: Any) -> None:
    T.evaluate(T.ptx["lop3.b32"](to, source, _word(mask << 16 | mask), other, _AND_OR))


def _both(value: float) -> Any:
    """A word with the same half twice."""
    half = int(np.float16(value).view(np.uint16))
    assert float(np.float16(value)) == value
    return _word(half << 16 | half)


def _word(value: int) -> Any:
    return tirx.const(value, "uint32")
