"""Rounds columns one by one; later columns make up for the errors of earlier ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nybble.passes.correction.fitting import integers_through
from nybble.passes.correction.layers import Learned, Problem, Tick, learn_layers
from nybble.passes.grids import Levels
from nybble.passes.settle import Settled
from nybble.stages import Gptq

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work

CHUNK = 512  # rows of a product in double precision


def gptq(settled: Settled, stage: Gptq, work: Work) -> Settled:
    """Rounds each layer for the inputs that the quantized layers before it give.

    All output channels of a group share one Hessian H = 2·XXᵀ. Scales stay those of the channels,
    set before any column moves, whatever the order of the columns ("static groups").

    Source: Frantar et al., arXiv 2210.17323, equations 2 and 3, algorithm 1.
    """

    def learn(problem: Problem, generator: torch.Generator, tick: Tick) -> Learned:  # noqa: ARG001
        steps = problem.scale.reshape(len(problem.weights), -1, 1).double()
        spread = _Spread(hessian(problem), steps, problem.levels)
        integers = spread.integers(problem.weights.double(), stage)
        tick(1, 1)
        return replace(problem.settled(), integers=integers.float())

    return learn_layers(settled, work, learn)


def hessian(problem: Problem) -> Tensor:
    """2·XXᵀ of a layer's inputs, for each group: (groups, K, K) float64, a mean over rows."""
    _, groups, depth = problem.rows.shape
    total = torch.zeros((groups, depth, depth), dtype=torch.float64)
    for rows in problem.rows.split(CHUNK):
        x = problem.inputs(rows, problem.grid).double().transpose(0, 1)
        total += x.transpose(1, 2) @ x
    return total.mul_(2 / len(problem.rows))


class _Spread:
    """Algorithm 1 for all groups at once.

    Args:
        hessian: (groups, K, K) float64.
        steps: (groups, O / groups, 1) scales of the channels.
        levels: the integers allowed.
    """

    def __init__(self, hessian: Tensor, steps: Tensor, levels: Levels):
        self.hessian, self.steps, self.levels = hessian, steps, levels

    def integers(self, weights: Tensor, stage: Gptq) -> Tensor:
        """(groups, O / groups, K) float64 weights as whole numbers."""
        diagonal = self.hessian.diagonal(dim1=1, dim2=2)
        dead = diagonal == 0  # columns whose input is always 0: nothing to learn from them
        weights = weights.masked_fill(dead.unsqueeze(1), 0.0)
        means = diagonal.mean(dim=1, keepdim=True)
        added = torch.where(dead, torch.ones_like(diagonal), stage.damping * means)
        damped = self.hessian + torch.diag_embed(added)
        order = torch.arange(weights.shape[2]).expand(diagonal.shape)
        if stage.order == "act":
            order = diagonal.argsort(dim=1, descending=True, stable=True)
        rows = order.unsqueeze(2).expand_as(damped)
        damped = damped.gather(1, rows).gather(2, rows.transpose(1, 2))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        upper = torch.linalg.cholesky(inverse, upper=True)
        columns = order.unsqueeze(1).expand_as(weights)
        integers = self._in_order(weights.gather(2, columns), upper, stage.block)
        return torch.zeros_like(integers).scatter_(2, columns, integers)

    def _in_order(self, weights: Tensor, upper: Tensor, block: int) -> Tensor:
        """From the first column to the last; far columns are updated once for each block."""
        made = torch.empty_like(weights)
        for start in range(0, weights.shape[2], block):
            near = slice(start, start + block)
            far = slice(start + block, None)
            made[:, :, near], errors = self._block(weights[:, :, near], upper[:, near, near])
            weights[:, :, far] -= errors @ upper[:, near, far]
        return made

    def _block(self, weights: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        weights, made, errors = weights.clone(), weights.clone(), torch.empty_like(weights)
        for i in range(weights.shape[2]):
            column = weights[:, :, i : i + 1]
            made[:, :, i : i + 1] = integers_through(column / self.steps, self.levels)
            left = column - made[:, :, i : i + 1] * self.steps
            errors[:, :, i : i + 1] = left / upper[:, i : i + 1, i : i + 1]
            weights[:, :, i:] -= errors[:, :, i : i + 1] * upper[:, i : i + 1, i:]
        return made, errors
