"""8-bit grids: from a range to a scale, from weights to integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WEIGHT_LEVELS = 127
SMALLEST = 2.0**-60  # products of two scales stay normal float32 numbers
BIAS_LIMIT = 2.0**29  # leaves the accumulators room for the products
BIAS_STEPS = 2.0**20  # resolution of the bias of a channel without weights


@dataclass(frozen=True)
class Grid:
    """Where integers stand: value = (q - zero_point) * scale.

    Attributes:
        scale: float32 value of one step.
        dtype: ``uint8`` or ``int8``.
        zero_point: the integer that stands for 0.
    """

    scale: float
    dtype: str
    zero_point: int = 0


def grid(lo: float, hi: float, non_negative: bool) -> Grid:
    """The grid of a range: unsigned where the tensor cannot be negative, else symmetric.

    A range of nothing but zeros gets a harmless scale, never 0.
    """
    levels, dtype = (255, "uint8") if non_negative else (127, "int8")
    largest = max(hi, 0.0) if non_negative else max(abs(lo), abs(hi))
    scale = np.float32(largest / levels)
    return Grid(float(scale) if scale > SMALLEST else float(np.float32(1 / levels)), dtype)


def quantize_weights(
    weights: NDArray[Any], bias: NDArray[Any], scale_in: float
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric, narrow-range int8 per output channel.

    The bias bounds the scale from below: it must fit 32 bits in steps of scale * scale_in. So a
    channel of zeros keeps its bias to 20 bits, and a channel without anything gets scale 1.

    Args:
        weights: (O, …) float32.
        bias: (O,) float32.
        scale_in: of the activations that the weights meet.

    Returns:
        (O, …) int8 within -127..127, and (O,) scales.
    """
    rows = weights.reshape(weights.shape[0], -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1)
    magnitude = np.abs(bias.astype(np.float64))
    natural = np.maximum(largest / WEIGHT_LEVELS, magnitude / (scale_in * BIAS_LIMIT))
    only_bias = magnitude / (scale_in * BIAS_STEPS)
    scale = np.where(largest > SMALLEST * WEIGHT_LEVELS, natural, only_bias)
    scale = np.where(scale > SMALLEST, scale, 1.0).astype(np.float32)
    steps = np.rint(rows / scale.astype(np.float64)[:, None])
    integers = np.clip(steps, -WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
    return integers.reshape(weights.shape), scale
