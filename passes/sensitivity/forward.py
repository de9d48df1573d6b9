"""Measures by evaluation: the loss with one layer quantized, or with two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nybble.passes.differentiable import Enter
from nybble.passes.sensitivity.losses import Judge
from nybble.passes.sensitivity.samples import count
from nybble.passes.sensitivity.spread import Unit, double, doubles, single, singles, spread
from nybble.passes.sensitivity.task import Losses, Task
from nybble.sensitivity_table import Effort, Option

Matrix = NDArray[np.float64]
Pairs = dict[tuple[Option, Option], float]


def perturbation_effort(layers: int, widths: int, samples: int) -> Effort:
    """What `perturbation` takes at most."""
    return Effort(samples, forward=2 + layers * widths)


def perturbation(task: Task, judge: Judge) -> Losses:
    """L(only this layer's weights at this width) - L(float), activations in float.

    Where the width names them too, what enters the layer is rounded as well.

    Source: Hubara et al., arXiv 2006.10518, section 4, with a loss of the outputs.
    """
    network = Evaluation(task, judge)
    if task.executor is not None:
        spread(task, task.executor, singles(task))
    return _alone(network, network.float_loss())


def _alone(network: Evaluation, base: float) -> Losses:
    """What single layers lose."""
    task = network.task
    return {
        layer: {
            width: loss - base
            for width, loss in zip(task.widths, network.singles(layer), strict=True)
        }
        for layer in task.layers
    }


def pairwise_effort(layers: int, widths: int, samples: int) -> Effort:
    """What `pairwise` takes at most."""
    pairs = layers * (layers - 1) // 2 * widths**2
    return Effort(samples, forward=2 + layers * widths + pairs)


def pairwise(task: Task, judge: Judge) -> tuple[Losses, Pairs]:
    """Losses of single layers, and what two layers lose together beyond the sum of both.

    Ω_(ib)(jc) = L(i at b, j at c) - L(i at b) - L(j at c) + L(float), from forward passes only.
    Then the form that the allocation minimises is made positive semidefinite (`projected`).

    Source: Deng et al. (CLADO), arXiv 2307.05657, section 3.
    """
    network = Evaluation(task, judge)
    if task.executor is not None:
        spread(task, task.executor, [*singles(task), *doubles(task)])
    base = network.float_loss()
    losses = _alone(network, base)
    pairs: Pairs = {}
    for index, layer in enumerate(task.layers):
        for width in task.widths:
            mine, later = (layer, width), task.layers[index + 1 :]
            options = [(other, w) for other in later for w in task.widths]
            for other, both in zip(options, network.together(mine, later), strict=True):
                apart = losses[layer][width] + losses[other[0]][other[1]]
                pairs[mine, other] = both - base - apart
    return projected(losses, pairs)


def projected(losses: Losses, pairs: Pairs) -> tuple[Losses, Pairs]:
    """A positive semidefinite form near the one measured, with the same losses.

    With z the choices, one option a layer, the allocation minimises Σ loss·z + Σ_(i<j) pair·z·z.
    That is zᵀGz with the losses on the diagonal of G, since z² = z, and half of each pair on both
    sides of it. Negative eigenvalues come from noise and from what no quadratic form expresses, and
    a minimum would run after them: they are set to zero.

    CLADO does this to G itself. There the few largest losses decide, and small ones change by
    more than their size; so it is done to the correlations G_ij / √(G_ii·G_jj), none beyond 1, and
    the diagonal set back to 1, which leaves every single loss as it was measured. Losses below
    zero count as zero. Between two widths of one layer, which never meet, G holds 0.
    """
    options = [(layer, width) for layer, widths in losses.items() for width in widths]
    place = {option: index for index, option in enumerate(options)}
    kept = {layer: {w: max(loss, 0.0) for w, loss in of.items()} for layer, of in losses.items()}
    roots = np.sqrt([kept[layer][width] for layer, width in options])
    scale = np.outer(roots, roots)
    correlation: Matrix = np.eye(len(options))
    for (one, other), value in pairs.items():
        i, j = place[one], place[other]
        if scale[i, j] > 0:
            correlation[i, j] = correlation[j, i] = np.clip(value / 2 / scale[i, j], -1, 1)
    values, vectors = np.linalg.eigh(correlation)
    correlation = (vectors * values.clip(min=0)) @ vectors.T
    units = np.sqrt(np.diag(correlation))
    matrix = correlation / np.outer(units, units) * scale
    return kept, {(a, b): 2 * float(matrix[place[a], place[b]]) for a, b in pairs}


class Evaluation:
    """Losses of the network with layers quantized, as units of work."""

    def __init__(self, task: Task, judge: Judge):
        self.task, self.judge, self.net = task, judge, judge.net

    def float_loss(self) -> float:
        """Of the float network; 0 with the default loss."""
        return float(self.task.units.do("float", 1, self._plain))

    def singles(self, layer: str) -> list[float]:
        """L(layer at w) for every width w."""
        return self._done(single(self.task, layer))

    def together(self, option: Option, later: Sequence[str]) -> list[float]:
        """L(option, later layer at w), for every later layer and every width w of it."""
        return self._done(double(self.task, option, later))

    def _done(self, unit: Unit) -> list[float]:
        work = partial(self.evaluated, unit.fixed, unit.others)
        found: list[float] = self.task.units.do(unit.name, len(unit.others), work)
        return found

    def _plain(self) -> float:
        total, samples = 0.0, 0
        with torch.no_grad():
            for batch in self.judge.batches():
                size = count(batch.inputs)
                loss = self.judge.loss(self.net(batch.inputs), batch)
                total, samples = total + size * float(loss), samples + size
        self.task.units.passed(forward=1)
        return total / samples

    def evaluated(self, fixed: Option | None, others: Sequence[Option]) -> list[float]:
        """The loss with ``fixed``, if any, and each of ``others``, which are in order.

        The network's state walks from layer to layer, and each evaluation goes on from a copy of
        it: what stands before a layer runs once, however many evaluations begin there.
        """
        held = [] if fixed is None else [fixed]
        changes = self._changes(held)
        totals, samples = np.zeros(len(others)), 0
        with torch.no_grad():
            for batch in self.judge.batches():
                size, values, at = count(batch.inputs), dict(batch.inputs), 0
                for index, option in enumerate(others):
                    start = self.net.index(option[0])
                    self.net.advance(values, range(at, start), None, *changes)
                    both = self._changes([*held, option])
                    outputs = self.net.run(dict(values), start, None, *both)
                    totals[index] += size * float(self.judge.loss(outputs, batch))
                    at = start
                samples += size
        self.task.units.passed(forward=len(others))
        found: list[float] = (totals / samples).tolist()
        return found

    def _changes(self, options: Sequence[Option]) -> tuple[dict[str, Tensor], dict[str, Enter]]:
        """The weights of layers, and what is done to what enters them."""
        swaps = {layer: self.task.swap(layer, width) for layer, width in options}
        return swaps, self.task.entering(options)
