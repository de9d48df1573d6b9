"""Moves every bias to where the layer's outputs err least."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nybble.passes.correction.layers import Learned, Problem, Tick, learn_layers
from nybble.passes.settle import Settled
from nybble.stages import BiasCorrection

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work

STEPS = 8
FEWEST = 0.01  # share of rows between the clamps; fewer say nothing of a channel


def correct_biases(settled: Settled, stage: BiasCorrection, work: Work) -> Settled:  # noqa: ARG001
    """Takes the mean error of the outputs out of each bias, layer after layer.

    Later layers see what the correction of earlier ones made of their inputs. Means are those of
    the errors behind the activation, over the rows that it does not clamp, and so again until the
    squared error falls no more. Without an activation that is the mean error. In front of one, the
    mean also counts what no output shows: at 2 bits that correction broke networks which this one
    mends (docs/corrections.md).

    Source: Nagel et al., arXiv 1906.04721, section 4.2, with the means taken from data.
    """

    def learn(problem: Problem, generator: torch.Generator, tick: Tick) -> Learned:  # noqa: ARG001
        bias = _corrected(problem)
        tick(1, 1)
        return replace(problem.settled(), bias=bias)

    return learn_layers(settled, work, learn)


def _corrected(problem: Problem) -> Tensor:
    """(O,): of all biases that were tried, each channel's best."""
    lo, hi = problem.place.bounds
    weights = problem.integers * problem.scale.reshape(len(problem.weights), -1, 1)
    x = problem.inputs(problem.rows, problem.grid)
    products = problem.place.product.times(x, weights)
    if problem.beside is not None:
        products += problem.beside
    bias = best = problem.bias
    least = torch.full(bias.shape, torch.inf, dtype=torch.float64)
    for _ in range(STEPS):
        outputs = products + bias
        between = (outputs > lo) & (outputs < hi)
        errors = torch.clamp(outputs, lo, hi) - problem.target
        squares = errors.double().square().mean(dim=0)
        best, least = torch.where(squares < least, bias, best), torch.minimum(squares, least)
        share = between.float().mean(dim=0)
        means = (errors * between).mean(dim=0) / share.clamp(min=FEWEST)
        bias = bias - torch.where(share >= FEWEST, means, torch.zeros_like(means))
    return best
