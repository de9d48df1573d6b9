"""Scales of least error: of the weights, of each layer's outputs, or of the network's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nybble.passes.correction.fitting import integers_through
from nybble.passes.correction.gptq import hessian
from nybble.passes.correction.layers import Learned, Problem, Tick, learn_layers
from nybble.passes.correction.prediction import by_prediction
from nybble.passes.grids import Levels, least_squares, quantize_weights, weight_levels
from nybble.passes.settle import Rounded, Settled, bias_of, rows_of
from nybble.passes.view import View
from nybble.stages import Scales

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work

Array = NDArray[Any]
EXACT = 7  # the largest integer up to which the best scale is computed, not searched
LEAST = 0.2  # of the scale of the largest value: the first candidate
AGAIN = 3  # times that scales and integers are each made the best for the other


def choose_scales(settled: Settled, stage: Scales, work: Work) -> Settled:
    """Rounds the weights anew, to nearest, with better scales; earlier roundings are lost.

    Source: for ``prediction``, Liu et al., arXiv 2212.07048.
    """
    if stage.by == "output":
        return _by_output(settled, stage, work)
    view = View(settled.module)
    weights = {name: of_least_error(view, settled, name, stage) for name in settled.weights}
    work.report(1, 4 if stage.by == "prediction" else 1)
    if stage.by == "mse":
        return replace(settled, weights=weights)
    return by_prediction(settled, weights, stage, work)


def of_least_error(view: View, settled: Settled, name: str, stage: Scales) -> Rounded:
    """A layer's weights with the scales of least squared error: exact up to 4 bits."""
    weights, width = rows_of(view.calls[name]), settled.plan.weights[name]
    scale_in = settled.points()[view.sources(name)[0]].scale
    bias = bias_of(view, settled.plan, name, len(weights))
    if width == 1:
        return Rounded(*quantize_weights(weights, bias, scale_in, width))
    rows, levels = weights.reshape(len(weights), -1).astype(np.float64), weight_levels(width)
    if levels.hi <= EXACT:
        steps = np.array([least_squares(row, levels) for row in rows])
    else:
        identity = torch.eye(1, dtype=torch.float64)
        found = _searched(torch.from_numpy(rows)[None], identity, levels, stage.candidates)
        steps = found[1].reshape(-1).numpy()
    return Rounded(*quantize_weights(weights, bias, scale_in, width, steps))


def _by_output(settled: Settled, stage: Scales, work: Work) -> Settled:
    def learn(problem: Problem, generator: torch.Generator, tick: Tick) -> Learned:  # noqa: ARG001
        if problem.levels.dtype == "int1":
            return problem.settled()
        gram, weights = hessian(problem), problem.weights.double()
        integers, steps = _searched(weights, gram, problem.levels, stage.candidates)
        tick(1, 1)
        scale = steps.reshape(-1).float()
        return replace(problem.settled(), integers=integers.float(), scale=scale)

    return learn_layers(settled, work, learn)


def _searched(
    weights: Tensor, gram: Tensor, levels: Levels, candidates: int
) -> tuple[Tensor, Tensor]:
    """Integers and scales of least d·H·dᵀ, d the error of a row of weights.

    Candidates are scales from that of the largest weight down; the best one is then made the least
    squares scale of its integers, these are rounded anew, and so on.

    Args:
        weights: (groups, O / groups, K) float64.
        gram: H, (groups, K, K), or (1, 1) for the weights' own error.
        levels: the integers allowed.
        candidates: scales to try.

    Returns:
        (groups, O / groups, K) integers and (groups, O / groups, 1) scales.
    """

    def times(rows: Tensor) -> Tensor:
        return rows if gram.shape[-1] == 1 else rows @ gram

    largest = weights.abs().amax(dim=2, keepdim=True) / levels.hi
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    best = torch.full_like(largest, torch.inf)
    integers, steps = torch.zeros_like(weights), largest.clone()

    def offer(offered: Tensor) -> None:
        nonlocal best, integers, steps
        made = integers_through(weights / offered, levels)
        left = weights - made * offered
        error = (times(left) * left).sum(dim=2, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        steps = torch.where(better, offered, steps)
        integers = torch.where(better, made, integers)

    for factor in np.geomspace(1, LEAST, candidates):
        offer(largest * factor)
    for _ in range(AGAIN):
        met = times(integers)
        above, below = (met * weights).sum(2, keepdim=True), (met * integers).sum(2, keepdim=True)
        offer(torch.where((above > 0) & (below > 0), above / below.clamp(min=1e-30), steps))
    return integers, steps
