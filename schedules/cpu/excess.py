"""Further steps: what windows of 16-bit sums could not take, as lists behind the panels.

A further step is a vector of weights and where its activations begin, seen from a tile's first
pixel. The further steps of a panel stand one behind the other, in windows of their own, as long as
16 bits allow. Four arrays go into the library:

    weights (steps, chunk), offsets (steps,)    the further steps of all panels
    windows (windows + 1,)                      where each window begins
    begin   (panels + 1,)                       the first window of each panel

Both lists of beginnings start with 0, which `nybble.schedules.cpu.windows.places` relies on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.errors import ScheduleError
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.headroom import DEPTH, Limits

MOST = 0.6  # further steps for each step; vpmaddwd is the faster one beyond


def offsets_of(geometry: Geometry, pitch: int) -> NDArray[np.int64]:
    """Where the activations of each step of a panel begin; ``pitch``: elements of an input row."""
    row, col = geometry.dilation[0] * pitch, geometry.dilation[1] * geometry.c
    taps = np.add.outer(np.arange(geometry.tap_rows) * row, np.arange(geometry.tap_cols) * col)
    return np.add.outer(taps, np.arange(geometry.runs(DEPTH)) * DEPTH).reshape(-1)


def pack(
    parts: list[NDArray[np.int8]], offsets: NDArray[np.int64], limits: Limits
) -> list[NDArray[Any]]:
    """The four arrays.

    Args:
        parts: one or more times (panels, steps, chunk) weights, nearly all zero; each step of
            each part is safe by itself.
        offsets: of the steps.
        limits: of a window.

    Raises:
        ScheduleError: there are too many to be worth it.
    """
    found = [np.nonzero(part.any(axis=2)) for part in parts]
    weights = np.concatenate([part[where] for part, where in zip(parts, found, strict=True)])
    panel, step = (np.concatenate(indices) for indices in zip(*found, strict=True))
    panels, steps, chunk = parts[0].shape
    if len(panel) > MOST * panels * steps:
        raise ScheduleError(f"{len(panel)} of {panels * steps} steps go beyond 16 bits")
    order = np.argsort(panel, kind="stable")
    windows, counts = _windows(weights[order], panel[order], panels, limits)
    begin = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    if not len(order):  # tensors are never empty
        return [np.zeros((1, chunk), np.int8), np.zeros(1, np.int32), windows, begin]
    return [weights[order], offsets[step[order]].astype(np.int32), windows, begin]


def _windows(
    weights: NDArray[np.int8], panel: NDArray[np.int64], panels: int, limits: Limits
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(where each window begins and the last one ends, windows of each panel); greedy."""
    lanes = weights.reshape(len(weights), weights.shape[1] // 2, 2).astype(np.int32)
    signed = np.stack([np.maximum(lanes, 0).sum(2), np.maximum(-lanes, 0).sum(2)], axis=1)
    most = np.array([[limits.positive], [limits.negative]])
    starts, counts, total = [], np.zeros(panels, np.int64), np.zeros(signed.shape[1:], np.int32)
    for i, sums in enumerate(signed):
        total = total + sums
        if i == 0 or panel[i] != panel[i - 1] or np.any(total > most):
            starts.append(i)
            counts[panel[i]] += 1
            total = sums
    return np.array([*starts, len(weights)], np.int32), counts
