"""Takes the mean error of every output channel out of the bias of its layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nybble.passes.biases import bias_name, set_biases
from nybble.passes.differentiable import Differentiable
from nybble.passes.settle import Settled, bias_of
from nybble.passes.simulation import Simulation
from nybble.passes.view import View
from nybble.stages import BiasCorrection

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work

SAMPLES = 64  # a mean over an image's pixels and so many images


def correct_biases(settled: Settled, stage: BiasCorrection, work: Work) -> Settled:  # noqa: ARG001
    """Lowers each bias by the mean of (quantized - float) outputs, layer after layer.

    Later layers see what the correction of earlier ones made of their inputs.

    Source: Nagel et al., arXiv 1906.04721, section 4.2, with the means taken from data.
    """
    view, net = View(settled.module), Differentiable(settled.module)
    aim = Differentiable(settled.aim) if settled.goal else net
    layers = {bias_name(view, name): name for name in settled.weights}
    batch = next(work.samples.batches(SAMPLES))
    wanted: dict[str, Tensor] = {}
    corrected: dict[str, Tensor] = {}

    def remember(name: str, y: Tensor) -> None:
        if name in layers:
            wanted[name] = _means(y)

    def mend(name: str, y: Tensor) -> Tensor | None:
        if name not in layers:
            return None
        error = _means(y) - wanted[name]
        layer = layers[name]
        bias = bias_of(view, settled.plan, layer, y.shape[-1])
        corrected[layer] = torch.from_numpy(bias.astype("float32")) - error
        work.report(len(corrected), len(layers))
        return y - error

    with torch.no_grad():
        aim(batch, remember)
        Simulation(settled, net)(batch, mend)
    biases = {layer: values.numpy() for layer, values in corrected.items()}
    return replace(settled, module=set_biases(settled.module, biases), goal=settled.aim)


def _means(y: Tensor) -> Tensor:
    """Of every channel."""
    return y.mean(dim=tuple(range(y.dim() - 1)))
