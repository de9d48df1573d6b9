"""Weights of 4 bits on two levels (`nybble.ir.two_levels`), as tensor-core kernels decode them.

number   of a channel and a part of the inputs, 16 bits: step, (base + 128) · 256
decode   four codes of a word, a byte each, times step, plus base + 128 in each byte: none
         exceeds 255, so one multiply-add does all four; with the upper bits flipped they are
         base + step·c
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from nybble.errors import ScheduleError
from nybble.ir.two_levels import split
from nybble.schedules.kernel import Problem

ATTR = "levels"
"""Of a problem: inputs that share step and base, found in the weights."""
LENGTHS = (128, 64, 32)
NEUTRAL = 128 << 8
"""The number of weights that are 0, with codes of 0."""
_FEW = 8  # channels, which tell of most weights that they have no two levels
_CODES, _SIGNS = 0x0F0F0F0F, 0x80808080


def length_of(w: NDArray[Any]) -> int:
    """The longest part of the inputs on two levels that kernels take; 0 for none."""
    fitting = [n for n in LENGTHS if gcd(n, w.shape[1]) == n]
    return next((n for n in fitting if all(split(part, n) for part in (w[:_FEW], w))), 0)


def refuse(problem: Problem) -> str | None:
    """Why a problem has no such weights; None when it has."""
    return None if dict(problem.attrs).get(ATTR) else "the weights have no two levels"


def numbered(weights: NDArray[Any], length: int) -> tuple[NDArray[Any], NDArray[np.uint16]]:
    """Codes (O, K) and numbers (O, K / length) of weights, (O, K).

    Raises:
        ScheduleError: they do not lie on two levels.
    """
    found = split(weights, length)
    if found is None:
        raise ScheduleError(f"the weights have no two levels in parts of {length} inputs")
    codes, steps, bases = found
    return codes, (NEUTRAL + steps + (bases << 8)).astype(np.uint16)


def decoded(word: Any, step: Any, base: Any) -> tuple[Any, Any]:
    """Four weights each of the lower and the upper halves of a word's bytes.

    Args:
        word: eight codes.
        step: of the part.
        base: the part's base + 128, in each byte.
    """
    halves = [half & T.uint32(_CODES) for half in (word, word >> T.uint32(4))]
    low, high = ((codes * step + base) ^ T.uint32(_SIGNS) for codes in halves)
    return low, high
