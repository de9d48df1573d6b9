"""Hutchinson's estimate of each layer's trace of the Hessian, times what rounding costs."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from nybble.errors import StageError
from nybble.passes.sensitivity.losses import Judge
from nybble.passes.sensitivity.options import Batch, Measure
from nybble.passes.sensitivity.samples import count
from nybble.passes.sensitivity.task import Losses, Task
from nybble.sensitivity_table import Effort

BLOCK = 4  # vectors of a unit of work: they share the first derivatives
PRIME = 1_000_003  # seeds of layers do not meet


def hessian_effort(layers: int, measure: Measure, samples: int) -> Effort:
    """What `hessian` takes at most."""
    blocks = -(-measure.most // BLOCK)
    return Effort(samples, 1 + layers * blocks, layers * (blocks + blocks * BLOCK))


def hessian(task: Task, judge: Judge) -> Losses:
    """trace(H_i) / n_i · ‖Q_b(W_i) - W_i‖², H_i the loss's Hessian by the n_i weights of layer i.

    Source: Yao et al. (HAWQ-V3), arXiv 2011.10680, section 3, after Dong et al., arXiv 1911.03852.
    """
    losses: Losses = {}
    for layer in task.layers:
        estimates = Hutchinson(task, judge, layer).estimates()
        mean = float(np.mean(estimates)) / task.weights(layer).size
        errors = {w: float(np.square(task.error(layer, w)).sum()) for w in task.widths}
        losses[layer] = {width: mean * error for width, error in errors.items()}
    return losses


def settled(estimates: list[float], measure: Measure) -> int | None:
    """How many estimates are enough; None where more are needed.

    Enough is the first number, from ``fewest`` on, whose mean differs from that of one fewer by
    less than ``tolerance`` of it; ``most`` are enough in any case.
    """
    means = np.cumsum(estimates) / np.arange(1, len(estimates) + 1)
    for used in range(measure.fewest, min(len(estimates), measure.most) + 1):
        now, before = means[used - 1], means[used - 2]
        if used == measure.most or abs(now - before) <= measure.tolerance * abs(now):
            return used
    return None


class Hutchinson:
    """Estimates vᵀHv of one layer, v of random signs: their mean tends to the trace of H.

    Each vector meets all samples, and has a seed of its own, so a run that goes on later finds the
    same ones.
    """

    def __init__(self, task: Task, judge: Judge, layer: str):
        self.task, self.judge, self.layer = task, judge, layer
        self.index = judge.net.layers.index(layer)
        weights = judge.net.weights[layer]
        self.weights = weights.detach().clone().requires_grad_()

    def estimates(self) -> list[float]:
        """As many as it takes."""
        measure, units = self.task.measure, self.task.units
        found: list[float] = []
        while (used := settled(found, measure)) is None:
            numbers = range(len(found), len(found) + BLOCK)
            unit = f"vectors {numbers.start} {self.layer}"
            found += units.do(unit, BLOCK, partial(self._block, numbers))
        units.skip(-(-measure.most // BLOCK) * BLOCK - len(found))
        return found[:used]

    def _block(self, numbers: range) -> list[float]:
        vectors = [self._vector(number) for number in numbers]
        total, samples = torch.zeros(len(vectors), dtype=torch.float64), 0
        for batch in self.judge.batches():
            size = count(batch.inputs)
            total += size * self._products(batch, vectors)
            samples += size
        self.task.units.passed(forward=1, backward=1 + len(vectors))
        found: list[float] = (total / samples).tolist()
        return found

    def _vector(self, number: int) -> Tensor:
        seed = (self.task.seed * PRIME + self.index) * PRIME + number
        generator = torch.Generator().manual_seed(seed % 2**63)
        return torch.randint(0, 2, self.weights.shape, generator=generator).float() * 2 - 1

    def _products(self, batch: Batch, vectors: list[Tensor]) -> Tensor:
        """vᵀHv of each vector on one batch, by two derivatives."""
        outputs = self.judge.net(batch.inputs, swaps={self.layer: self.weights})
        loss = self.judge.loss(outputs, batch)
        if not loss.requires_grad:
            raise StageError(
                f"measure='hessian': the loss has no derivative by the weights of '{self.layer}'. "
                "Its outputs are unused, or the loss leaves torch (detach, item, argmax). Use "
                "'perturbation', which needs none."
            )
        (gradient,) = torch.autograd.grad(loss, self.weights, create_graph=True)
        if not gradient.requires_grad:  # the loss is linear in these weights
            return torch.zeros(len(vectors), dtype=torch.float64)
        found = []
        for vector in vectors:
            (product,) = torch.autograd.grad(
                gradient, self.weights, vector, retain_graph=True, materialize_grads=True
            )
            found.append((product.double() * vector).sum())
        return torch.stack(found)
