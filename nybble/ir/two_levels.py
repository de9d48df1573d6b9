"""Weights of 4 bits on two levels: integers within, one float scale per channel (QServe).

    weight ≈ scale · w        scale (O,) float32
    w = base + step · c       of each group: c of 0..15, step of 1..16, base an integer; w fits int8

So a layer computes as with weights of 8 bits, exactly, and may store 4 (Lin et al., arXiv
2405.04532). The largest weight becomes 119 and not 127, QServe's protective range: rounding within
a group adds up to half a step, 8, and nothing leaves int8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PROTECTED = 119
"""Of the first level."""
CODES = 15
"""The largest code."""
STEPS = 16
"""The largest step: 2·119 / 15, rounded up."""


def second_level(rows: NDArray[np.float64], group: int) -> NDArray[np.int8]:
    """Rounds rows in units of the first level to what a step and a base for each group can say.

    Of the steps next to range / 15, and with the codes from the smallest weight up or around the
    middle, those of least squared error are taken.

    Args:
        rows: (O, K) within ±119.
        group: inputs that share step and base; the last group may be shorter.

    Returns:
        (O, K) integers.
    """
    o, k = rows.shape
    groups = -(-k // group)
    padded = np.pad(rows, ((0, 0), (0, groups * group - k)), mode="edge")
    apart = padded.reshape(o, groups, group)
    low, high = apart.min(axis=2, keepdims=True), apart.max(axis=2, keepdims=True)
    best, least = np.zeros(apart.shape), np.full(low.shape, np.inf)
    for rounding in (np.floor, np.ceil):
        step = np.clip(rounding((high - low) / CODES), 1, STEPS)
        for base in (np.rint(low), np.rint((low + high - CODES * step) / 2)):
            codes = np.clip(np.rint((apart - base) / step), 0, CODES)
            found = base + codes * step
            error = np.square(found - apart).sum(axis=2, keepdims=True)
            fits = (found >= -128).all(2, keepdims=True) & (found <= 127).all(2, keepdims=True)
            better = fits & (error < least)
            best, least = np.where(better, found, best), np.where(better, error, least)
    return best.reshape(o, -1)[:, :k].astype(np.int8)


def split(w: NDArray[Any], group: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
    """Codes, steps and bases of weights that lie on two levels; None where they do not.

    Args:
        w: (O, K) integers of 8 bits.
        group: inputs that share step and base, of which K is a multiple.

    Returns:
        codes (O, K) of 0..15, steps (O, G) of 1..255, bases (O, G).
    """
    o, k = w.shape
    apart = w.astype(np.int64).reshape(o, k // group, group)
    base = apart.min(axis=2, keepdims=True)
    step = np.maximum(np.gcd.reduce(apart - base, axis=2, keepdims=True), 1)
    codes = (apart - base) // step
    if codes.max(initial=0) > CODES:
        return None
    return codes.reshape(o, k), step[..., 0], base[..., 0]
