"""Learns for every weight whether it is rounded up or down."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nybble.passes.correction.fitting import fit, gap_of
from nybble.passes.correction.layers import Learned, Problem, Tick, learn_layers
from nybble.passes.settle import Settled
from nybble.stages import AdaRound

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work

STRETCH, SHIFT = 1.2, -0.1  # of the sigmoid, so that it reaches 0 and 1
SHARPNESS = (20.0, 2.0)  # of the penalty, first and last
FREE = 0.2  # share of the iterations without it


def adaround(settled: Settled, stage: AdaRound, work: Work) -> Settled:
    """Rounds each weight to one of its two neighbours, so that the layers' outputs suffer least.

    Source: Nagel et al., arXiv 2004.10568, equations 21 to 24; asymmetric reconstruction, behind
    the activation. The loss is each channel's error in parts of its error before.
    """

    def learn(problem: Problem, generator: torch.Generator, tick: Tick) -> Learned:
        form = _Choices(problem, stage)
        fit(problem, form, stage.iterations, stage.batch, (generator, tick))
        return Learned(form.integers(), problem.scale, problem.bias, problem.grid)

    return learn_layers(settled, work, learn)


class _Choices:
    """Weights between their lower and their upper neighbour."""

    def __init__(self, problem: Problem, stage: AdaRound):
        self.problem, self.rate, self.regularizer = problem, stage.rate, stage.regularizer
        levels = problem.levels
        self.gap = gap_of(levels)
        self.most = (levels.hi - levels.lo) // self.gap
        self.steps = problem.scale.reshape(len(problem.weights), -1, 1)
        index = (problem.weights / self.steps - levels.lo) / self.gap
        self.lower = index.floor()
        share = (index - self.lower).clamp(0.0, 1.0)
        self.choice = torch.log((share - SHIFT) / (STRETCH + SHIFT - share)).requires_grad_()
        self.free = ((self.lower >= 0) & (self.lower < self.most)).float()  # both ends are levels
        self.sharpness: float | None = None

    def integers(self) -> Tensor:
        """The nearer end of every choice."""
        return self._integers((self.choice.detach() >= 0).float())

    def _integers(self, up: Tensor) -> Tensor:
        index = (self.lower + up).clamp_(0, self.most)
        return index.mul_(self.gap).add_(self.problem.levels.lo)

    def parameters(self) -> list[dict[str, object]]:
        return [{"params": [self.choice], "lr": self.rate}]

    def weights(self) -> Tensor:
        made: Tensor = _Softly.apply(self.choice, self)  # type: ignore[no-untyped-call]
        return made

    def bias(self) -> Tensor:
        return self.problem.bias

    def inputs(self, rows: Tensor) -> Tensor:
        return rows

    def at(self, progress: float) -> float:
        """The penalty's sharpness falls along a cosine; the rate stays."""
        if progress < FREE:
            return 1.0
        first, last = SHARPNESS
        along = math.pi * (progress - FREE) / (1 - FREE)
        self.sharpness = last + 0.5 * (first - last) * (1 + math.cos(along))
        return 1.0

    def softly(self, choice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, share of the way up h, and the slope of h."""
        soft = torch.sigmoid(choice)
        slope = (1 - soft).mul_(soft).mul_(STRETCH)
        up = soft.mul_(STRETCH).add_(SHIFT)
        slope.mul_((up > 0) & (up < 1)).mul_(self.free)
        up.clamp_(0.0, 1.0)
        return self._integers(up).mul_(self.steps), up, slope

    def pull(self, up: Tensor) -> Tensor | float:
        """The derivative by h of λ Σ 1 - |2h - 1|^β, β the sharpness."""
        if self.sharpness is None:
            return 0.0
        side = up * 2 - 1
        sign = torch.sign(side)
        return (
            side.abs_()
            .pow_(self.sharpness - 1)
            .mul_(sign)
            .mul_(-2 * self.regularizer * self.sharpness)
        )


class _Softly(torch.autograd.Function):
    """Weights of a choice; its gradient holds the penalty's, which saves half of the time."""

    @staticmethod
    def forward(ctx: Any, choice: Tensor, choices: _Choices) -> Tensor:
        weights, up, slope = choices.softly(choice)
        ctx.choices = choices
        ctx.save_for_backward(up, slope)
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        up, slope = ctx.saved_tensors
        choices: _Choices = ctx.choices
        total = gradient * choices.steps * choices.gap + choices.pull(up)
        return total.mul_(slope), None
