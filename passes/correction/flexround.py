"""Learns what every weight is divided by before it is rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nybble.passes.correction.fitting import fit, integers_through
from nybble.passes.correction.layers import Learned, Problem, Tick, learn_layers
from nybble.passes.settle import Settled
from nybble.stages import FlexRound

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work


def flexround(settled: Settled, stage: FlexRound, work: Work) -> Settled:
    """Rounds W / (s1 S2 s3), S2 of every weight, s1 and s3 of every channel; deploys with s1.

    Large weights move further than small ones, as the gradient of a quotient has it.

    Source: Lee et al., arXiv 2306.00317, equation 2; s4 of input channels is left to S2.
    """

    def learn(problem: Problem, generator: torch.Generator, tick: Tick) -> Learned:
        form = _Divided(problem, stage.rate)
        fit(problem, form, stage.iterations, stage.batch, (generator, tick))
        return form.learned()

    return learn_layers(settled, work, learn)


class _Divided:
    """Logarithms of all divisors, so that they stay positive."""

    def __init__(self, problem: Problem, rate: float):
        self.problem, self.rate = problem, rate
        self.steps = problem.scale.reshape(len(problem.weights), -1, 1)
        self.each = torch.zeros_like(problem.weights, requires_grad=True)
        self.channel = torch.zeros_like(self.steps, requires_grad=True)
        self.common = torch.zeros_like(self.steps, requires_grad=True)

    def parameters(self) -> list[dict[str, object]]:
        return [{"params": [self.each, self.channel, self.common], "lr": self.rate}]

    def _scaled(self) -> tuple[Tensor, Tensor]:
        scale = self.steps * torch.exp(self.common)
        steps = self.problem.weights / scale * torch.exp(-self.each - self.channel)
        return integers_through(steps, self.problem.levels), scale

    def weights(self) -> Tensor:
        integers, scale = self._scaled()
        return integers * scale

    def bias(self) -> Tensor:
        return self.problem.bias

    def inputs(self, rows: Tensor) -> Tensor:
        return rows

    def at(self, progress: float) -> float:
        """Slower and slower."""
        return 1 - progress

    def learned(self) -> Learned:
        """What is left of it on the grids."""
        with torch.no_grad():
            integers, scale = self._scaled()
        return Learned(integers, scale.reshape(-1), self.problem.bias, self.problem.grid)
