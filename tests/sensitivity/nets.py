"""Networks small enough to differentiate and evaluate by hand, and how these tests measure them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

import nybble
from nybble.passes.grids import quantize_weights
from tests import models

SIZE, SAMPLES = 8, 6


class Residual(nn.Module):
    """Three convolutions, one of them in a residual branch, and a linear layer: 119 weights."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, 2)
        self.branch = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.mix = nn.Conv2d(3, 2, 1)
        self.head = nn.Linear(2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.branch(x))
        return self.head(torch.tanh(self.mix(x)).mean((2, 3)))


LAYERS = ("stem", "branch", "mix", "head")


@cache
def net() -> Any:
    return models.settled(Residual, (1, SIZE, SIZE)).double().requires_grad_(False)


@cache
def images(count: int = SAMPLES) -> np.ndarray:
    return models.images(count, (1, SIZE, SIZE), seed=3)


@cache
def model(source: str = "torch") -> nybble.Model:
    float_net = models.settled(Residual, (1, SIZE, SIZE))
    example = torch.zeros(1, 1, SIZE, SIZE)
    if source == "torch":
        return nybble.load_torch(float_net, (example,))
    return nybble.load_onnx(models.export_onnx(float_net, example))


@cache
def names() -> dict[str, str]:
    """The torch network's layer -> Nybble's, by order."""
    found = nybble.sensitivity(model(), images(), nybble.Measure("influence", remember=False))
    return dict(zip(LAYERS, found.losses, strict=True))


def parameters(**swaps: Tensor) -> dict[str, Tensor]:
    own = {name: p.detach() for name, p in net().named_parameters()}
    return own | {f"{layer}.weight": w for layer, w in swaps.items()}


def divergence(given: dict[str, Tensor]) -> Tensor:
    """KL of the softmax, float network to this one, over all images: independent of Nybble."""
    x = torch.from_numpy(images()).double()
    with torch.no_grad():
        right = torch.softmax(net()(x), 1)
    mine: Any = functional_call(net(), given, (x,))
    return nn.functional.kl_div(torch.log_softmax(mine, 1), right, reduction="batchmean")


def rounded(layer: str, width: Any) -> Tensor:
    """A layer's weights at a width; its biases are far too small to bound the scale."""
    weights = net().get_parameter(f"{layer}.weight").detach().numpy()
    integers, scale = quantize_weights(weights, np.zeros(len(weights)), 1.0, width)
    return torch.from_numpy(integers * scale.reshape(-1, *[1] * (weights.ndim - 1))).double()
