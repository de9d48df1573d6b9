"""Gives every layer's outputs the mean and the deviation that they have in the float network."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nybble.passes.biases import bias_name, set_biases
from nybble.passes.correction.bounds import with_bounds
from nybble.passes.differentiable import Differentiable
from nybble.passes.settle import Rounded, Settled, bias_of
from nybble.passes.simulation import Simulation
from nybble.passes.view import View
from nybble.stages import Statistics

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work

SAMPLES = 64  # a mean over an image's pixels and so many images
MOST = 2.0  # by which a channel's scale may grow or shrink
TINY = 1e-6  # deviation of a channel that does not vary


def restore_statistics(settled: Settled, stage: Statistics, work: Work) -> Settled:
    """Moves the bias and the weights' scale of every channel, layer after layer.

    What batch norm would do to outputs y, had it seen the quantized network: r·(y - mean) + mean
    of the float network's, r the quotient of the deviations. So the integers stay.

    Source: Hubara et al., arXiv 2006.10518, section 3.4 (para-normalisation).
    """
    lesson = _Lesson(settled, stage)
    batch = next(work.samples.batches(SAMPLES))
    with torch.no_grad():
        Differentiable(settled.aim)(batch, lesson.remember)
        Simulation(settled, lesson.net)(batch, lambda name, y: lesson.mend(name, y, work))
    module = set_biases(settled.module, lesson.biases)
    mended = replace(settled, module=module, weights=lesson.weights, goal=settled.aim)
    return with_bounds(mended)


class _Lesson:
    """One run of both networks over the samples."""

    def __init__(self, settled: Settled, stage: Statistics):
        self.settled, self.stage = settled, stage
        self.view, self.net = View(settled.module), Differentiable(settled.module)
        self.layers = {bias_name(self.view, name): name for name in settled.weights}
        self.wanted: dict[str, tuple[Tensor, Tensor]] = {}
        self.weights: dict[str, Rounded] = {}
        self.biases: dict[str, NDArray[Any]] = {}

    def remember(self, name: str, y: Tensor) -> None:
        if name in self.layers:
            self.wanted[name] = _moments(y)

    def mend(self, name: str, y: Tensor, work: Work) -> Tensor | None:
        if name not in self.layers:
            return None
        (mean, deviation), (aim, spread) = _moments(y), self.wanted[name]
        ratio = torch.ones_like(spread)
        if self.stage.deviation:
            varies = (deviation > TINY) & (spread > TINY)
            ratio = torch.where(varies, spread / deviation.clamp(min=TINY), ratio)
            ratio = ratio.clamp(1 / MOST, MOST)
        layer, rounded = self.layers[name], self.settled.weights[self.layers[name]]
        bias = bias_of(self.view, self.settled.plan, layer, len(mean))
        self.weights[layer] = Rounded(rounded.integers, rounded.scale * ratio.numpy())
        self.biases[layer] = bias * ratio.numpy() + (aim - ratio * mean).numpy()
        work.report(len(self.weights), len(self.layers))
        return (y - mean) * ratio + aim


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel."""
    axes = tuple(range(y.dim() - 1))
    return y.mean(dim=axes), y.std(dim=axes, correction=0)
