"""Learning one layer after the other: what each meets, what it should answer, what it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nybble.ir import graph
from nybble.passes.biases import bias_name, set_biases
from nybble.passes.correction.front import IMAGES, LIMIT, Front
from nybble.passes.correction.places import Place, place_of
from nybble.passes.correction.rows import choose, outputs_at
from nybble.passes.correction.spool import Spool
from nybble.passes.differentiable import Differentiable
from nybble.passes.grids import BIAS_LIMIT, BIAS_STEPS, SMALLEST, Grid, Levels, weight_levels
from nybble.passes.settle import Rounded, Settled, bias_of, rows_of
from nybble.passes.simulation import Simulation, fake
from nybble.passes.view import View

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work

Array = NDArray[Any]
ROWS = 4096  # of a layer's product, from all samples together
ROWS_IN_MEMORY = 192 << 20  # bytes; wider layers have fewer rows
JUDGED = 1024  # rows that tell better from worse
PRIME = 1_000_003  # seeds of layers do not meet


@dataclass(frozen=True)
class Problem:
    """What one layer learns from.

    Attributes:
        place: where it stands.
        levels: the integers that its weights may be.
        weights: (groups, O / groups, K) float.
        scale: (O,) of the weights' steps, as settled so far.
        integers: (groups, O / groups, K), as settled so far.
        bias: (O,).
        grid: of the inputs.
        rows: (R, groups, K) inputs; on their grid, unless ``place.owner`` is given.
        beside: (R, O) what is added to the outputs.
        target: (R, O).
    """

    place: Place
    levels: Levels
    weights: Tensor
    scale: Tensor
    integers: Tensor
    bias: Tensor
    grid: Grid
    rows: Tensor
    beside: Tensor | None
    target: Tensor

    def answers(self, rows: Tensor, weights: Tensor, bias: Tensor, beside: Tensor | None) -> Tensor:
        """What the layer makes of some rows, (R, O)."""
        made = self.place.product.times(rows, weights) + bias
        return torch.clamp(made if beside is None else made + beside, *self.place.bounds)

    def inputs(self, rows: Tensor, grid: Grid) -> Tensor:
        """Rows on a grid, unless they are on theirs already."""
        return rows if self.place.owner is None else fake(rows, grid)

    def errors(self, learned: Learned) -> Tensor:
        """Mean squared error of every channel, (O,), over rows from all samples."""
        some = slice(None, None, -(-len(self.rows) // JUDGED))
        weights = learned.integers * learned.scale.reshape(len(self.weights), -1, 1)
        beside = None if self.beside is None else self.beside[some]
        x = self.inputs(self.rows[some], learned.grid)
        made = self.answers(x, weights, learned.bias, beside)
        return (made - self.target[some]).double().square().mean(dim=0)

    def settled(self) -> Learned:
        """The layer as it was before learning."""
        return Learned(self.integers, self.scale, self.bias, self.grid)


@dataclass(frozen=True)
class Learned:
    """What became of a layer.

    Attributes:
        integers: (groups, O / groups, K) float, whole numbers.
        scale: (O,).
        bias: (O,).
        grid: of the inputs.
    """

    integers: Tensor
    scale: Tensor
    bias: Tensor
    grid: Grid


Tick = Callable[[int, int], None]
Learn = Callable[[Problem, torch.Generator, Tick], Learned]


def learn_layers(
    settled: Settled,
    work: Work,
    learn: Learn,
    sequential: bool = True,
    grids: bool = False,
) -> Settled:
    """Lets every quantized layer learn, in order.

    Args:
        settled: what the layers start from; the targets are those of its float module.
        work: the samples.
        learn: makes the best of one layer; its result is kept channel by channel where it is
            better than what was.
        sequential: inputs are what the layers learned so far make of the samples; otherwise those
            of the float network.
        grids: ``learn`` may change the grid of a layer's inputs where no other layer reads them.

    Returns:
        With new integers, scales and biases, and new grids where ``learn`` changed them.
    """
    lesson = _Lesson(settled, work, sequential, grids)
    try:
        for index, place in enumerate(lesson.places):
            tick = _ticking(work.report, index, len(lesson.places))
            lesson.take(place, learn, tick)
    finally:
        lesson.close()
    return lesson.settled()


class _Lesson:
    """One walk over the layers; holds what was learned so far."""

    def __init__(self, settled: Settled, work: Work, sequential: bool, grids: bool):
        self.before, self.sequential = settled, sequential
        self.view = View(settled.module)
        self.net = Differentiable(settled.module)
        self.simulation = Simulation(settled, self.net)
        places = [place_of(self.view, settled, n) for n in self.net.layers if n in settled.weights]
        self.places = places if grids else [replace(place, owner=None) for place in places]
        self.generators = {
            place.name: torch.Generator().manual_seed(work.recipe.seed * PRIME + index)
            for index, place in enumerate(self.places)
        }
        self.chosen = {p.name: self._choose(p, len(work.samples)) for p in self.places}
        self.weights, self.biases = dict(settled.weights), dict[str, Array]()
        self.grids = dict(settled.grids)
        size = _batch(self.view)
        self.targets = _targets(Differentiable(settled.aim), work.samples, size, self)
        self.front = Front(self.net, work.samples, size)
        if sequential:
            self.front.grids = settled.points()

    def close(self) -> None:
        self.targets.__exit__(None, None, None)
        self.front.close()

    def settled(self) -> Settled:
        module = set_biases(self.before.module, self.biases)
        return replace(
            self.before, module=module, grids=self.grids, weights=self.weights, goal=self.before.aim
        )

    def take(self, place: Place, learn: Learn, tick: Tick) -> None:
        """One layer's turn."""
        self.front.advance(self.net.index(place.name))
        problem = self._problem(place)
        learned = learn(problem, self.generators[place.name], tick)
        self._keep(place, best_of(problem, learned))

    def _choose(self, place: Place, samples: int) -> Tensor:
        product = place.product
        most = max(samples, ROWS_IN_MEMORY // (4 * product.groups * product.depth))
        generator = self.generators[place.name]
        return choose(samples, product.pixels, min(ROWS, most), generator)

    def _problem(self, place: Place) -> Problem:
        rounded = self.before.weights[place.name]
        grid, product = self.grids[self.before.plan.owner[place.source]], place.product
        rows, beside = self._inputs(place)
        return Problem(
            place=place,
            levels=weight_levels(self.before.plan.weights[place.name]),
            weights=product.weights(rows_of(self.view.calls[place.name])),
            scale=torch.from_numpy(rounded.scale.copy()),
            integers=product.weights(rounded.integers.astype(np.float32)),
            bias=self._bias(place.name, len(rounded.scale)),
            grid=grid,
            rows=rows,
            beside=beside,
            target=self.targets.column(place.name),
        )

    def _bias(self, name: str, channels: int) -> Tensor:
        bias = bias_of(self.view, self.before.plan, name, channels)
        return torch.from_numpy(np.array(bias, np.float32))

    def _inputs(self, place: Place) -> tuple[Tensor, Tensor | None]:
        rows: list[Tensor] = []
        beside: list[Tensor] = []
        start, learns_grid = 0, place.owner is not None
        for values in self.front.read():
            x = values[place.source]
            chosen = self.chosen[place.name][start : start + len(x)]
            start += len(x)
            x = x if learns_grid else self.front.rounded(place.source, x)
            rows.append(place.product.rows(x, chosen))
            if place.beside is not None:
                other = self.front.rounded(place.beside, values[place.beside])
                beside.append(outputs_at(other, chosen))
        return torch.cat(rows), torch.cat(beside) if beside else None

    def _keep(self, place: Place, learned: Learned) -> None:
        name, product = place.name, place.product
        rounded = Rounded(
            product.unfolded(learned.integers).astype(np.int8), learned.scale.numpy().copy()
        )
        self.weights[name] = rounded
        self.biases[name] = learned.bias.numpy().copy()
        if place.owner is not None:
            self.grids[place.owner] = learned.grid
        if self.sequential:
            self.front.swaps[name] = self.simulation.laid_out(name, rounded)
            self.front.swaps[_bias_key(self.view, name)] = learned.bias
            owner = self.before.plan.owner
            self.front.grids = {point: self.grids[owner[point]] for point in owner}


def best_of(problem: Problem, learned: Learned) -> Learned:
    """For each channel the better of what it was and what it learned; of both grids the better.

    Scales keep what `nybble.passes.grids.quantize_weights` promises: biases fit 32 bits.
    """
    before = problem.settled()
    grids = dict.fromkeys([before.grid, learned.grid])
    mixed = [_mixed(problem, replace(before, grid=g), replace(learned, grid=g)) for g in grids]
    return min(mixed, key=lambda one: float(problem.errors(one).sum()))


def _mixed(problem: Problem, before: Learned, learned: Learned) -> Learned:
    before, learned = bounded(before), bounded(learned)
    worse = problem.errors(learned) > problem.errors(before)
    rows = worse.reshape(len(problem.weights), -1, 1)
    return Learned(
        torch.where(rows, before.integers, learned.integers),
        torch.where(worse, before.scale, learned.scale),
        torch.where(worse, before.bias, learned.bias),
        learned.grid,
    )


def bounded(learned: Learned) -> Learned:
    """With scales that biases fit: 32 bits of steps, 20 where a channel has no weights."""
    magnitude = learned.bias.abs().double()
    enough = magnitude / (learned.grid.scale * BIAS_LIMIT)
    empty = ~learned.integers.reshape(len(enough), -1).any(dim=1)
    alone = magnitude / (learned.grid.scale * BIAS_STEPS)
    alone = torch.where(alone > SMALLEST, alone, torch.ones_like(alone))
    scale = torch.where(empty, alone, torch.maximum(learned.scale.double(), enough))
    return replace(learned, scale=scale.float())


def _batch(view: View) -> int:
    """Samples run together: what the inputs fix, else a few."""
    fixed = [view.shape(name)[0] for name in view.inputs if view.shape(name)]
    return next((extent for extent in fixed if isinstance(extent, int)), IMAGES)


def _targets(net: Differentiable, samples: Spool, size: int, lesson: _Lesson) -> Spool:
    """The float network's answers at the chosen outputs, by layer."""
    ends = {place.end: place for place in lesson.places}
    found, start = Spool(LIMIT), 0
    for values in samples.batches(size):
        count = len(next(iter(values.values())))
        part: dict[str, Array] = {}

        def observe(name: str, y: Tensor, part: dict[str, Array] = part, at: int = start) -> None:
            if name in ends:
                chosen = lesson.chosen[ends[name].name][at : at + len(y)]
                part[ends[name].name] = outputs_at(y, chosen).numpy()

        with torch.no_grad():
            net(values, observe)
        found.add(part)
        start += count
    return found


def _bias_key(view: View, name: str) -> str:
    """Under which a differentiable network keeps a layer's bias."""
    adds = bias_name(view, name)
    assert adds is not None, name
    index = next(i for i, a in enumerate(view.calls[adds].args) if graph.is_constant(a))
    return f"{adds}.{index}"


def _ticking(report: Callable[[int, int], None], index: int, layers: int) -> Tick:
    return lambda step, steps: report(1000 * index + 1000 * step // steps, 1000 * layers)
