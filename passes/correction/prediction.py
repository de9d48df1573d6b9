"""Scales of activations and weights, judged by what they do to the network's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nybble.passes.correction.bounds import with_bounds
from nybble.passes.correction.front import IMAGES, Front
from nybble.passes.correction.spool import Spool
from nybble.passes.differentiable import Differentiable
from nybble.passes.grids import Grid, quantize_weights
from nybble.passes.sensitivity.losses import term_of
from nybble.passes.settle import Rounded, Settled, bias_of, rows_of
from nybble.passes.simulation import Simulation, fake
from nybble.passes.view import View
from nybble.stages import Scales

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work

SAMPLES = 64
LEAST = 0.2  # of the calibrated scale of a tensor: the last candidate
FACTORS = (0.8, 0.9, 1.0, 1.1, 1.25)  # of the scales of least squared error, for weights


def by_prediction(
    settled: Settled, found: Mapping[str, Rounded], stage: Scales, work: Work
) -> Settled:
    """Chooses the scale of each tensor and each layer's weights, in order of computation.

    What comes before is quantized as chosen so far, what comes behind is float. Of the weights,
    all channels move together.

    Args:
        settled: what to start from.
        found: weights with the scales of least squared error.
        stage: how many scales of a tensor are tried.
        work: the samples, of which the first 64 count.

    Source: Liu et al., arXiv 2212.07048, equation 4, without the correction of distributions.
    """
    with Spool() as samples:
        for batch in work.samples.batches(IMAGES, SAMPLES):
            samples.add({name: values.numpy() for name, values in batch.items()})
        search = _Search(settled, samples)
        try:
            for done, (start, name) in enumerate(search.decisions):
                search.front.advance(start)
                if name in settled.weights and start == search.net.index(name):
                    search.choose_weights(name, found[name])
                else:
                    search.choose_grid(name, start, stage.candidates)
                work.report(1 + done, 1 + len(search.decisions))
        finally:
            search.front.close()
    grids = {**settled.grids, **search.grids}
    return with_bounds(replace(settled, grids=grids, weights=search.weights))


class _Search:
    """One walk over the tensors and layers.

    Attributes:
        decisions: (index of the first binding that feels it, owner of a grid or layer), in order.
        grids: chosen so far, by owner.
        weights: chosen so far.
    """

    def __init__(self, settled: Settled, samples: Spool):
        self.settled, self.view = settled, View(settled.module)
        self.net = Differentiable(settled.module)
        self.simulation = Simulation(settled, self.net)
        self.grids: dict[str, Grid] = {}
        self.weights: dict[str, Rounded] = {}
        self.points: dict[str, list[str]] = {}
        for point, owner in settled.plan.owner.items():
            self.points.setdefault(owner, []).append(point)
        size = next(
            (n for i in self.view.inputs if isinstance(n := self.view.shape(i)[0], int)), IMAGES
        )
        self.front = Front(self.net, samples, size)
        self.wanted = self._wanted(Differentiable(settled.aim), samples, size)
        each = [
            torch.cat(list(y)).double().var(correction=0).item()
            for y in zip(*self.wanted, strict=True)
        ]
        named = zip(self.net.outputs, each, strict=True)
        self.terms = [term_of(self.view, name, variance) for name, variance in named]
        starts = [(min(map(self._behind, points)), 0, o) for o, points in self.points.items()]
        starts += [(self.net.index(name), 1, name) for name in settled.weights]
        self.decisions = [(start, name) for start, _, name in sorted(starts)]

    def _behind(self, point: str) -> int:
        return 0 if point in self.view.inputs else self.net.index(point) + 1

    @staticmethod
    def _wanted(net: Differentiable, samples: Spool, size: int) -> list[list[Tensor]]:
        with torch.no_grad():
            return [net(batch) for batch in samples.batches(size)]

    def choose_grid(self, owner: str, start: int, candidates: int) -> None:
        """The scale of one grid."""
        points, grid = self.points[owner], self.settled.grids[owner]
        best, chosen = np.inf, grid
        for factor in np.geomspace(1, LEAST, candidates):
            offered = replace(grid, scale=float(np.float32(grid.scale * factor)))
            self.front.grids |= dict.fromkeys(points, offered)
            loss = self._measured(start, dict.fromkeys(points, offered), {})
            if loss < best:
                best, chosen = loss, offered
        self.grids[owner] = chosen
        self.front.grids |= dict.fromkeys(points, chosen)

    def choose_weights(self, name: str, found: Rounded) -> None:
        """The scales of one layer's weights."""
        weights, width = rows_of(self.view.calls[name]), self.settled.plan.weights[name]
        owner = self.settled.plan.owner[self.view.sources(name)[0]]
        bias = bias_of(self.view, self.settled.plan, name, len(weights))
        best, chosen = np.inf, found
        offers = [self.settled.weights[name]]
        for factor in () if width == 1 else FACTORS:
            steps = found.scale.astype(np.float64) * factor
            scale_in = self.grids[owner].scale
            offers.append(Rounded(*quantize_weights(weights, bias, scale_in, width, steps)))
        for offered in offers:
            swaps = {name: self.simulation.laid_out(name, offered)}
            loss = self._measured(self.net.index(name), {}, swaps)
            if loss < best:
                best, chosen = loss, offered
        self.weights[name] = chosen
        self.front.swaps[name] = self.simulation.laid_out(name, chosen)

    def _measured(self, start: int, grids: dict[str, Grid], swaps: dict[str, Tensor]) -> float:
        """The loss with these grids and weights, behind them float."""

        def rounded(name: str, value: Tensor) -> Tensor | None:
            return fake(value, grids[name]) if name in grids else None

        total = 0.0
        with torch.no_grad():
            for values, wanted in zip(self.front.read(), self.wanted, strict=True):
                here = {name: self.front.rounded(name, value) for name, value in values.items()}
                outputs = self.net.run(here, start, rounded, swaps)
                for term, y, right in zip(self.terms, outputs, wanted, strict=True):
                    total += len(y) * float(term.distance(y.double(), right.double()))
        return total
