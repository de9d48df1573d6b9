"""Networks and recipes for the corrections in closed form."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import nybble
from nybble.passes.correction.run import correct
from nybble.passes.differentiable import Differentiable
from nybble.passes.settle import Settled
from nybble.passes.simulation import Simulation
from nybble.recipe import Recipe
from tests.correction.learning import canonical, settled_from, spooled

STAGES: dict[str, Any] = {
    "mse": "scales",
    "output": {"scales": {"by": "output"}},
    "prediction": {"scales": {"by": "prediction", "candidates": 4}},
    "gptq": "gptq",
    "natural": {"gptq": {"order": "natural", "block": 5}},
    "low_rank": {"low_rank": {"rank": 3}},
    "statistics": "statistics",
    "bias": "bias_correction",
    "means": {"statistics": {"deviation": False}},
}


def recipe(stage: str, weights: Any = 3, activations: int = 4) -> Recipe:
    return Recipe(weights=weights, activations=activations, correct=(STAGES[stage],))


def silent(done: int, of: int) -> None:
    assert done <= of


class Chain(nn.Module):
    """Convolution, depthwise, pool, residual, linear: all behind ReLU, channels of many sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.head = nn.Linear(12, 5)
        with torch.no_grad():
            spread = torch.logspace(-1, 1, 12)
            for layer in (self.first, self.depthwise, self.grouped):
                layer.weight *= spread[torch.randperm(12)].reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        x = torch.relu(x + self.grouped(x))
        return self.head(nn.functional.max_pool2d(x, 2).mean((2, 3)))


class Odd(nn.Module):
    """A layer of zeros, columns that never see anything, a channel of zeros, one row a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros = nn.Conv2d(3, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.mixed = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 9)
        with torch.no_grad():
            self.zeros.weight.zero_()
            self.zeros.bias = nn.Parameter(torch.tensor([-1.0, 1.0, -1.0, 2.0]))
            self.depthwise.weight[1].zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.zeros(x))) + 0.5)
        return self.head(torch.relu(self.mixed(x)).mean((2, 3)))


@cache
def made(build: type[nn.Module], size: int = 12) -> Any:
    torch.manual_seed(2)
    return canonical(nybble.load_torch(build().eval(), (torch.zeros(1, 3, size, size),)))


def through(mod: Any, asked: Recipe, images: Any) -> tuple[Settled, Settled]:
    """Before and after the recipe's stages."""
    before = settled_from(mod, images, asked)
    with spooled(mod, images) as samples:
        return before, correct(before, samples, asked, silent)


def outputs(settled: Settled, images: Any) -> tuple[Tensor, Tensor]:
    """Of the float network, and as it will be deployed."""
    net = Differentiable(settled.aim)
    batch = {net.inputs[0]: torch.from_numpy(images)}
    with torch.no_grad():
        return net(batch)[0], Simulation(settled)(batch)[0]
