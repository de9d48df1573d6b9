"""Learns the weights, the bias and both scales of every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nybble.ir import numerics
from nybble.passes.correction.fitting import fit, integers_through, round_through
from nybble.passes.correction.layers import Learned, Problem, Tick, learn_layers
from nybble.passes.settle import Settled
from nybble.stages import AdaQuant

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work


def adaquant(settled: Settled, stage: AdaQuant, work: Work) -> Settled:
    """Moves weights, biases and scales so that the layers' outputs suffer least.

    The scale of a layer's inputs is learned where no other layer reads them, and they have a 0.

    Source: Hubara et al., arXiv 2006.10518, equation 2; sequential as in its section 3.2.
    """

    def learn(problem: Problem, generator: torch.Generator, tick: Tick) -> Learned:
        form = _Free(problem, stage.rate)
        fit(problem, form, stage.iterations, stage.batch, (generator, tick))
        return form.learned()

    return learn_layers(settled, work, learn, stage.sequential, grids=True)


class _Free:
    """What moves, all at a rate that suits the width.

    Weights move in steps, scales so that the largest integer does, biases in parts of the
    channel's error.
    """

    def __init__(self, problem: Problem, rate: float):
        self.problem, self.rate = problem, rate
        self.steps = problem.scale.reshape(len(problem.weights), -1, 1)
        self.spread = problem.errors(problem.settled()).sqrt().float()
        self.moved = torch.zeros_like(problem.weights, requires_grad=True)
        self.factor = torch.zeros_like(self.steps, requires_grad=True)  # logarithms
        self.offset = torch.zeros_like(problem.bias, requires_grad=True)
        self.wider = torch.zeros((), requires_grad=True)
        self.limits = numerics.limits(problem.grid.dtype)
        self.learns_grid = problem.place.owner is not None and problem.grid.dtype != "int1"

    def parameters(self) -> list[dict[str, object]]:
        groups: list[dict[str, object]] = [
            {"params": [self.moved, self.offset], "lr": self.rate},
            {"params": [self.factor], "lr": self.rate / max(1, self.problem.levels.hi)},
        ]
        if self.learns_grid:
            groups.append({"params": [self.wider], "lr": self.rate / self.limits[1]})
        return groups

    def _scaled(self) -> tuple[Tensor, Tensor]:
        factor = torch.exp(self.factor)
        steps = (self.problem.weights / self.steps + self.moved) / factor
        return integers_through(steps, self.problem.levels), self.steps * factor

    def weights(self) -> Tensor:
        integers, scale = self._scaled()
        return integers * scale

    def bias(self) -> Tensor:
        return self.problem.bias + self.offset * self.spread

    def inputs(self, rows: Tensor) -> Tensor:
        if not self.learns_grid:
            return self.problem.inputs(rows, self.problem.grid)
        grid = self.problem.grid
        scale = grid.scale * torch.exp(self.wider)
        steps = round_through(rows / scale) + grid.zero_point
        return (torch.clamp(steps, *self.limits) - grid.zero_point) * scale

    def at(self, progress: float) -> float:
        """Slower and slower."""
        return 1 - progress

    def learned(self) -> Learned:
        """What is left of it on the grids."""
        with torch.no_grad():
            integers, scale = self._scaled()
            grid, bias = self.problem.grid, self.bias()
            if self.learns_grid:
                wider = np.float32(grid.scale * float(torch.exp(self.wider)))
                grid = replace(grid, scale=float(wider))
        return Learned(integers, scale.reshape(-1), bias, grid)
