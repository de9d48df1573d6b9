"""The accuracy-aware loop: the cheapest network whose accuracy drops no further than asked.

Predicted losses order the candidates, they do not judge them: every trial is compiled, and the
user's own function evaluates the deployed library.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import tvm

from nybble.allocation.result import Allocation
from nybble.errors import AllocationError, NybbleError
from nybble.model import Model, QuantizedModel, Trial
from nybble.passes.correction.spool import Spool
from nybble.phases import Phases, Progress
from nybble.place import Place
from nybble.recipe import Recipe
from nybble.refine import Calibrated, calibrated, phases_of

POINTS = 33  # of the front; bisection tries six of them
Evaluate = Callable[[Any], Any]
Deploy = Callable[[Model | QuantizedModel, Path], Any]
"""Compiles a network to a path and loads it: a `nybble.Session`."""


@dataclass(frozen=True)
class Goal:
    """What is accepted.

    Attributes:
        max_drop: by how much the score may lie below the float network's, in its own unit.
        evaluate: score of a deployed network, a `nybble.Session`; the larger the better.
        deploy: compiles and loads.
        show: called with every trial.
    """

    max_drop: float
    evaluate: Evaluate
    deploy: Deploy
    show: Callable[[Trial], None] | None = None


def cheapest(
    canonical: tvm.IRModule,
    batches: Iterable[Mapping[str, Any]],
    recipe: Recipe,
    place: Place,
    goal: Goal,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Bisects the Pareto front of predicted loss and cost, by measured scores.

    The cost is the first that the recipe's budget names, or size; the budget's limits hold for
    every trial. Bisection takes the score to rise with the cost; where it does not, the result
    still keeps ``max_drop``, and something cheaper may exist.

    Args:
        canonical: float.
        batches: the calibration data, by input name.
        recipe: of mixed widths.
        place: what trials are compiled for.
        goal: what is accepted.
        progress: called with (steps done, steps in all) until the first trial.

    Returns:
        The cheapest network that was accepted, with all ``trials``.

    Raises:
        AllocationError: no network on the front keeps ``max_drop``.
        NybbleError: the recipe leaves no width open, or ``evaluate`` gives no number.
    """
    phases = Phases(progress, phases_of(canonical, recipe))
    with Spool() as samples, tempfile.TemporaryDirectory(prefix="nybble-") as folder:
        network = calibrated(canonical, samples, samples.passing(batches), recipe, place, phases)
        bench = _Bench(network, goal, Path(folder))
        wanted = bench.score(Model(canonical)) - goal.max_drop
        found = bench.bisected(_front(network), wanted)
    if found is None:
        best = max(trial.score for trial in bench.trials)
        raise AllocationError(
            f"No allocation keeps max_drop={goal.max_drop}: the score must reach {wanted:.4g}, the "
            f"best of {len(bench.trials)} trials was {best:.4g}. Allow larger widths in choices, "
            "add corrections (Recipe.correct), or raise max_drop."
        )
    return replace(found, trials=tuple(bench.trials))


def _front(network: Calibrated) -> list[Allocation]:
    """Candidates from the cheapest to the dearest that keep the budget."""
    if network.trade is None:
        raise NybbleError(
            "max_drop needs widths to choose from: Recipe(weights='mixed', choices=(2, 4, 8))."
        )
    axis = next(iter(network.recipe.limits), "size")
    limits = network.trade.limits()
    front = network.trade.front(axis, POINTS)
    kept = [one for one in front if all(one.costs[k] <= limits[k] for k in limits)]
    return kept or [network.trade.allocated()]  # or an error that says which limit binds


class _Bench:
    """Compiles, evaluates and remembers."""

    def __init__(self, network: Calibrated, goal: Goal, folder: Path):
        self.network, self.goal, self.folder = network, goal, folder
        self.trials: list[Trial] = []

    def score(self, model: Model | QuantizedModel) -> float:
        """What the user's function says of a deployed network."""
        path = self.folder / f"{len(self.trials)}.so"
        score = self.goal.evaluate(self.goal.deploy(model, path))
        path.unlink(missing_ok=True)
        if not isinstance(score, Real) or math.isnan(score):
            raise NybbleError(f"evaluate returned {score!r}; a number is expected.")
        return float(score)

    def bisected(self, front: Sequence[Allocation], wanted: float) -> QuantizedModel | None:
        """The cheapest that is accepted, as far as bisection sees."""
        low, high, found = 0, len(front) - 1, None
        while low <= high:
            middle = (low + high) // 2
            made = self.network.quantized(front[middle])
            score = self.score(made)
            trial = Trial(front[middle], score, score >= wanted)
            self.trials.append(trial)
            if self.goal.show is not None:
                self.goal.show(trial)
            if trial.accepted:
                found, high = made, middle - 1
            else:
                low = middle + 1
        return found
