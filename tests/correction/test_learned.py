"""AdaRound, AdaQuant and FlexRound on a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nybble
from nybble.errors import NybbleError
from nybble.passes.correction import layers
from nybble.passes.correction.layers import Learned, Problem
from nybble.passes.correction.run import correct
from nybble.passes.grids import weight_levels
from nybble.passes.settle import rows_of
from nybble.passes.view import View
from nybble.recipe import Recipe
from tests import models
from tests.correction.learning import (
    canonical,
    corrected,
    equal,
    module,
    settled,
    settled_from,
    spooled,
)
from tests.walking import SMALL, assert_equal_to_the_law, few, runs_here, tiny

QUICK = {"iterations": 40, "batch": 64, "rate": 0.03}
STAGES: dict[str, Any] = {
    "adaround": {"adaround": QUICK},
    "adaquant": {"adaquant": QUICK},
    "parallel": {"adaquant": {**QUICK, "sequential": False}},
    "flexround": {"flexround": {**QUICK, "rate": 0.01}},
}


def recipe(stage: str, weights: Any = 3, activations: int = 4, seed: int = 0) -> Recipe:
    return Recipe(weights=weights, activations=activations, correct=(STAGES[stage],), seed=seed)


@pytest.mark.parametrize("stage", list(STAGES))
def test_every_layer_comes_closer_to_its_float_outputs(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: dict[str, tuple[float, float]] = {}
    chosen = layers.best_of

    def watched(problem: Problem, learned: Learned) -> Learned:
        found = chosen(problem, learned)
        before = problem.errors(problem.settled()).sum()
        errors[problem.place.name] = float(before), float(problem.errors(found).sum())
        return found

    monkeypatch.setattr(layers, "best_of", watched)
    corrected(recipe(stage))
    assert errors.keys() == settled(recipe(stage)).weights.keys()
    for name, (before, after) in errors.items():
        assert after < before, name
    assert sum(after / before for before, after in errors.values()) < 0.9 * len(errors)


@pytest.mark.parametrize("weights", [1, 2, "ternary", 3, 8])
def test_adaround_takes_a_neighbour(weights: Any) -> None:
    found = corrected(recipe("adaround", weights))
    view = View(module())
    moved = 0
    for name, rounded in found.weights.items():
        levels = weight_levels(found.plan.weights[name])
        gap = 2 if levels.dtype == "int1" else 1
        steps = rows_of(view.calls[name]) / rounded.scale.reshape(
            -1, *[1] * (rounded.integers.ndim - 1)
        )
        inside = np.clip(steps, levels.lo, levels.hi)
        assert np.abs(rounded.integers - inside).max() <= gap
        nearest = settled(recipe("adaround", weights)).weights[name]
        np.testing.assert_array_equal(rounded.scale, nearest.scale)
        moved += int((rounded.integers != nearest.integers).sum())
    assert moved > 0


@pytest.mark.parametrize("stage", ["adaround", "adaquant", "flexround"])
def test_a_seed_is_one_result(stage: str) -> None:
    first, again, other = (corrected(recipe(stage, seed=seed)) for seed in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("weights", [1, "ternary", 5])
def test_widths_are_kept(stage: str, weights: Any) -> None:
    before, after = settled(recipe(stage, weights, 3)), corrected(recipe(stage, weights, 3))
    assert after.plan == before.plan
    for name, rounded in after.weights.items():
        levels = weight_levels(before.plan.weights[name])
        assert rounded.integers.shape == before.weights[name].integers.shape
        assert rounded.integers.dtype == np.int8
        assert rounded.scale.dtype == np.float32
        assert levels.lo <= rounded.integers.min()
        assert rounded.integers.max() <= levels.hi
        assert levels.dtype != "int1" or np.all(rounded.integers != 0)
    changed = {o for o, grid in after.grids.items() if grid != before.grids[o]}
    assert bool(changed) == ("adaquant" in STAGES[stage])
    for owner in changed:
        old, new = before.grids[owner], after.grids[owner]
        assert (old.dtype, old.zero_point) == (new.dtype, new.zero_point)


def test_adaquant_leaves_a_grid_alone_that_others_read() -> None:
    """The stem's output is read by two convolutions or an add: not one layer's to change."""
    before, after = settled(recipe("adaquant")), corrected(recipe("adaquant"))
    view = View(module())
    shared = [owner for point, owner in before.plan.owner.items() if len(view.readers[point]) > 1]
    assert shared
    for owner in shared:
        assert after.grids[owner] == before.grids[owner]


class Odd(nn.Module):
    """A layer of zeros, a channel of zeros, and a layer with one row for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros = nn.Conv2d(3, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.zeros.weight.zero_()
            self.depthwise.weight[1].zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.zeros(x))) + 0.5)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("stage", list(STAGES))
def test_zeros_and_single_rows(stage: str) -> None:
    torch.manual_seed(1)
    net = Odd().eval()
    mod = canonical(nybble.load_torch(net, (torch.zeros(1, 3, 8, 8),)))
    image = models.images(1, (3, 8, 8))
    asked = recipe(stage, 2, 2)
    with spooled(mod, image) as samples:
        found = correct(settled_from(mod, image, asked), samples, asked, lambda _, __: None)
    for rounded in found.weights.values():
        assert np.all(np.isfinite(rounded.scale))
        assert rounded.scale.min() > 0
    assert not found.weights["zeros"].integers.any()


@pytest.mark.parametrize("stage", ["adaround", "adaquant", "flexround"])
@pytest.mark.parametrize("option", [{"iterations": 0}, {"batch": 1.5}, {"rate": "fast"}])
def test_options_that_cannot_learn_are_refused(stage: str, option: dict[str, Any]) -> None:
    with pytest.raises(NybbleError, match=f"'{stage}': {next(iter(option))}="):
        Recipe(correct=({stage: option},))


def test_progress_is_reported() -> None:
    seen: list[tuple[int, int]] = []
    corrected(recipe("adaround"), lambda done, of: seen.append((done, of)))
    assert len(seen) >= len(settled(recipe("adaround")).weights)
    assert seen == sorted(seen)
    assert all(done <= of for done, of in seen)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("stage", "weights", "activations"),
    [("adaround", 4, 8), ("adaquant", 2, 4), ("flexround", "ternary", 2), ("adaquant", 1, 3)],
)
def test_the_library_equals_the_law(
    stage: str, weights: Any, activations: int, tmp_path: Path
) -> None:
    quantized = nybble.quantize(tiny(), [few()], recipe(stage, weights, activations))
    runs_here("x86-64-v3")
    assert_equal_to_the_law(quantized, "x86-64-v3", tmp_path / "net.so", (3, SMALL, SMALL))
