"""Keeps what `grids.quantize_weights` promises where scales or biases have changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from nybble.passes.correction.layers import Learned, bounded
from nybble.passes.settle import Rounded, Settled, bias_of
from nybble.passes.view import View


def with_bounds(settled: Settled) -> Settled:
    """Every layer's scales large enough that its biases fit 32 bits; the integers stay."""
    view, points = View(settled.module), settled.points()
    weights: dict[str, Rounded] = {}
    for name, rounded in settled.weights.items():
        bias = np.array(bias_of(view, settled.plan, name, len(rounded.scale)), np.float32)
        given = torch.from_numpy(rounded.integers), torch.from_numpy(rounded.scale)
        grid = points[view.sources(name)[0]]
        scale = bounded(Learned(*given, torch.from_numpy(bias), grid)).scale
        weights[name] = Rounded(rounded.integers, scale.numpy())
    return replace(settled, weights=weights)
