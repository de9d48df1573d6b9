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
    if measure.loss is None:
        return Effort(samples, 1 + blocks, blocks * BLOCK)
    return Effort(samples, 1 + layers * blocks, layers * (blocks + blocks * BLOCK))


def hessian(task: Task, judge: Judge) -> Losses:
    """trace(H_i) / n_i · ‖Q_b(W_i) - W_i‖², H_i the loss's Hessian by the n_i weights of layer i.

    Hutchinson's estimate of the trace: the mean of vᵀHv for v of random signs, where Hv is a second
    derivative (`Vectors`). The default loss has a shorter way (`through_outputs`).

    Source: Yao et al. (HAWQ-V3), arXiv 2011.10680, section 3, after Dong et al., arXiv 1911.03852.
    """
    if task.measure.loss is None:
        found = through_outputs(task, judge)
    else:
        found = {layer: Vectors(task, judge, layer).estimates() for layer in task.layers}
    losses: Losses = {}
    for layer in task.layers:
        mean = float(np.mean(found[layer])) / task.weights(layer).size
        errors = {w: float(np.square(task.error(layer, w)).sum()) for w in task.widths}
        losses[layer] = {width: mean * error for width, error in errors.items()}
    return losses


def through_outputs(task: Task, judge: Judge) -> dict[str, list[float]]:
    """Estimates of the trace for all layers at once, for the default loss.

    At the float weights its gradient by the outputs is zero, so its Hessian is exactly
    JᵀSSᵀJ / N, with J the outputs' derivative by the weights and SSᵀ the loss's second derivative
    by the outputs. Its trace is that of SᵀJJᵀS / N, which Hutchinson estimates as ‖JᵀSe‖² / N with
    e of random signs: one derivative gives it for every layer, none in the others' way.
    """
    measure, units = task.measure, task.units
    found: dict[str, list[float]] = {layer: [] for layer in task.layers}
    done = 0
    while any(settled(estimates, measure) is None for estimates in found.values()):
        numbers = range(done, done + BLOCK)
        unit = f"signs {numbers.start}"
        block = units.do(unit, BLOCK, partial(_signs, task, judge, numbers))
        for layer in task.layers:
            found[layer] += block[layer]
        done += BLOCK
    units.skip(-(-measure.most // BLOCK) * BLOCK - done)
    return {layer: estimates[: measure.most] for layer, estimates in found.items()}


def _signs(task: Task, judge: Judge, numbers: range) -> dict[str, list[float]]:
    """‖JᵀSe‖² / N of every layer, for some e."""
    weights = {layer: judge.net.weights[layer].detach().clone() for layer in task.layers}
    for values in weights.values():
        values.requires_grad_()
    totals = np.zeros((len(task.layers), len(numbers)))
    samples = 0
    generators = [seeded(task.seed * PRIME + number) for number in numbers]
    for batch in judge.batches():
        outputs = judge.net(batch.inputs, swaps=weights)
        for column, generator in enumerate(generators):
            pulls = [
                term.root(wanted.double(), signs(wanted.shape, generator).double()).float()
                for term, wanted in zip(judge.terms, batch.wanted, strict=True)
            ]
            gradients = torch.autograd.grad(
                outputs, list(weights.values()), pulls, retain_graph=True, materialize_grads=True
            )
            totals[:, column] += [float(g.double().square().sum()) for g in gradients]
        samples += count(batch.inputs)
    task.units.passed(forward=1, backward=len(numbers))
    means = (totals / samples).tolist()
    return dict(zip(task.layers, means, strict=True))


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed % 2**63)


def signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random -1 and +1."""
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1


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


class Vectors:
    """Estimates vᵀHv of one layer, v of random signs, by two derivatives of any loss.

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
        return signs(self.weights.shape, seeded(seed))

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
