"""What every measure works with: layers and their rounded weights, samples, finished units."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from torch import Tensor

from nybble.budget import bits_of
from nybble.executors.interface import Executor
from nybble.passes.calibrate import Ranges
from nybble.passes.differentiable import Enter
from nybble.passes.grids import Grid
from nybble.passes.sensitivity.journal import Journal
from nybble.passes.sensitivity.options import Measure
from nybble.passes.sensitivity.samples import Samples
from nybble.passes.settle import Rounded, channel_axis, rows_of, settle
from nybble.passes.simulation import fake
from nybble.passes.view import View
from nybble.phases import Progress
from nybble.recipe import Recipe, Widths
from nybble.sensitivity_table import Effort, Width

Array = NDArray[Any]
Losses = dict[str, dict[Width, float]]


@dataclass(frozen=True)
class Uniform:
    """What all layers are at one width.

    Attributes:
        weights: of every quantized layer.
        entering: the grid of what enters each, where the width names activations too.
    """

    weights: Mapping[str, Rounded]
    entering: Mapping[str, Grid]


def uniform(mod: tvm.IRModule, ranges: Ranges, recipe: Recipe, width: Width) -> Uniform:
    """Every quantized layer rounded to nearest at a width."""
    settled, view = settle(mod, ranges, at_width(recipe, width)), View(mod)
    if bits_of(width)[1] is None:
        return Uniform(settled.weights, {})
    points = settled.points()
    return Uniform(settled.weights, {n: points[view.sources(n)[0]] for n in settled.weights})


@dataclass(frozen=True)
class Task:
    """What is to be measured.

    Attributes:
        module: float canonical.
        view: of it.
        layers: the layers to measure, in order.
        widths: to be measured.
        rounded: all layers at each of those widths, and at others that the measure needs.
        samples: the calibration data.
        measure: which, and its options.
        seed: of random vectors.
        units: the work.
        executor: where units may be worked out that do not depend on each other; None for here.
    """

    module: tvm.IRModule
    view: View
    layers: tuple[str, ...]
    widths: tuple[Width, ...]
    rounded: Mapping[Width, Uniform]
    samples: Samples
    measure: Measure
    seed: int
    units: Units
    executor: Executor | None = None

    def weights(self, layer: str) -> Array:
        """A layer's float weights, output channels first."""
        return rows_of(self.view.calls[layer])

    def error(self, layer: str, width: Width) -> Array:
        """What rounding adds to a layer's weights, output channels first, float64."""
        made = self.rounded[width].weights[layer].values().astype(np.float64)
        return np.asarray(made - self.weights(layer))

    def swap(self, layer: str, width: Width) -> Tensor:
        """A layer's rounded weights as the module holds them."""
        values = self.rounded[width].weights[layer].values()
        values = np.moveaxis(values, 0, channel_axis(self.view.calls[layer]))
        return torch.from_numpy(np.ascontiguousarray(values))

    def entering(self, options: Iterable[tuple[str, Width]]) -> dict[str, Enter]:
        """The rounding of what enters layers, for widths that name activations too."""
        grids = {layer: self.rounded[width].entering.get(layer) for layer, width in options}
        return {layer: partial(fake, grid=grid) for layer, grid in grids.items() if grid}


def at_width(recipe: Recipe, width: Width) -> Recipe:
    """The recipe with one width for all layers, whatever it says of them.

    Activations, whose scales bound those of the weights, are what the recipe says, unless the
    width names them too.
    """
    weights, activations = bits_of(width)
    layers = (*recipe.overrides, ("*", Widths(weights, activations)))
    return replace(recipe, weights=weights, layers=layers, correct=(), choices=(), budget=())


class Units:
    """Does units of work, or finds them done; tells progress and what is left to wait.

    Args:
        journal: the finished units.
        effort: an upper bound, before the work.
        total: steps of all units.
        progress: called with (steps done, steps in all).
        announce: called with the effort, and again when its time can be told.
    """

    def __init__(
        self,
        journal: Journal,
        effort: Effort,
        total: int,
        progress: Progress | None = None,
        announce: Callable[[Effort], None] | None = None,
    ):
        self._journal, self._effort, self._total = journal, effort, total
        self._progress, self._announce = progress, announce
        self._done = self._known = self._forward = self._backward = 0
        self._spent, self._since = 0.0, 0.0
        self._warm: tuple[int, float] | None = None  # steps and seconds of the first unit
        self._told = False
        self._entered: set[str] = set()
        if announce is not None:
            announce(effort)

    def do(self, unit: str, steps: int, work: Callable[[], Any]) -> Any:
        """A unit's result, from the journal or worked out: plain data."""
        if unit in self._entered:
            return self._journal[unit]
        if unit in self._journal:
            self._known += steps
        else:
            self._since = time.perf_counter()
            self._journal.add(unit, work())
            self._spent += time.perf_counter() - self._since
            self._tell(self._done + steps - self._known, self._spent)
        self.skip(steps)
        return self._journal[unit]

    def enter(self, unit: str, steps: int, found: Any, seconds: float) -> None:
        """Keeps a unit of so many forward passes that was worked out elsewhere.

        Args:
            unit: its name; `do` finds it done.
            steps: its passes.
            found: plain data.
            seconds: since the unit before it came.
        """
        self._entered.add(unit)
        self._journal.add(unit, found)
        self._spent += seconds
        self.passed(forward=steps)
        self._tell(self._done + steps - self._known, self._spent)
        self.skip(steps)

    def has(self, unit: str) -> bool:
        """Whether a unit is known."""
        return unit in self._journal

    def skip(self, steps: int) -> None:
        """Counts steps that are done, or need not be."""
        self._done += steps
        self._show(self._done)

    def within(self, steps: int) -> None:
        """Shows that a unit has done some of its steps."""
        spent = self._spent + time.perf_counter() - self._since
        self._tell(self._done + steps - self._known, spent)
        self._show(self._done + steps)

    def passed(self, forward: int = 0, backward: int = 0) -> None:
        """Counts passes as they are made."""
        self._forward += forward
        self._backward += backward

    def taken(self) -> Effort:
        """What the work took."""
        share = self._known / self._done if self._done else 0.0
        return Effort(self._effort.samples, self._forward, self._backward, self._spent, share)

    def _tell(self, steps: int, seconds: float) -> None:
        """Announces the time that is left, once: the first steps only warm up."""
        if self._warm is None:
            self._warm = steps, seconds
        elif self._announce is not None and not self._told and steps > self._warm[0]:
            self._told = True
            rate = (seconds - self._warm[1]) / (steps - self._warm[0])
            self._announce(replace(self._effort, seconds=rate * (self._total - self._done)))

    def _show(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total)
