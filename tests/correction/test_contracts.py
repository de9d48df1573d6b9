"""What holds for every correction in closed form: same bits, widths, dead columns, deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nybble
from nybble.errors import NybbleError
from nybble.passes.grids import BIAS_LIMIT, weight_levels
from nybble.passes.settle import Settled, bias_of
from nybble.passes.view import View
from nybble.recipe import Recipe
from tests import models
from tests.correction.closed import STAGES, Chain, Odd, made, outputs, recipe, through
from tests.correction.learning import (
    corrected,
    equal,
    settled,
)
from tests.walking import SMALL, assert_equal_to_the_law, few, runs_here, tiny


@pytest.mark.parametrize("stage", list(STAGES))
def test_the_same_recipe_gives_the_same_bits(stage: str) -> None:
    first, again = corrected(recipe(stage)), corrected(recipe(stage))
    before = settled(recipe(stage))
    assert equal(first, again)
    assert _biases(first) == _biases(again)
    assert not equal(first, before) or _biases(first) != _biases(before)


def _biases(settled: Settled) -> dict[str, list[float]]:
    view = View(settled.module)
    return {
        name: bias_of(view, settled.plan, name, len(rounded.scale)).tolist()
        for name, rounded in settled.weights.items()
    }


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("weights", [1, "ternary"])
def test_widths_and_bounds_are_kept(stage: str, weights: Any) -> None:
    after = corrected(recipe(stage, weights, 3))
    view = View(after.module)
    for name, rounded in after.weights.items():
        levels = weight_levels(after.plan.weights[name])
        assert rounded.integers.dtype == np.int8
        assert rounded.scale.dtype == np.float32
        assert levels.lo <= rounded.integers.min()
        assert rounded.integers.max() <= levels.hi
        assert levels.dtype != "int1" or np.all(rounded.integers != 0)
        bias = bias_of(view, after.plan, name, len(rounded.scale))
        scale_in = after.points()[view.sources(name)[0]].scale
        assert np.all(np.abs(bias) <= rounded.scale * scale_in * BIAS_LIMIT * 1.001)


@pytest.mark.parametrize("stage", list(STAGES))
def test_zeros_dead_columns_and_single_rows(stage: str) -> None:
    mod, image = made(Odd, 8), models.images(1, (3, 8, 8))
    asked = Recipe(weights=2, activations=2, first_last=None, correct=(STAGES[stage],))
    if stage == "low_rank":
        asked = Recipe(
            weights=2, activations=2, first_last=None, correct=({"low_rank": {"rank": 1}},)
        )
    _, after = through(mod, asked, image)
    for name, rounded in after.weights.items():
        assert np.all(np.isfinite(rounded.scale)), name
        assert rounded.scale.min() > 0
    assert not after.weights["zeros"].integers.any()
    assert bool(torch.isfinite(outputs(after, image)[1]).all())


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("stages", "weights", "activations"),
    [
        (("gptq", {"low_rank": {"rank": 2}}, "statistics"), 2, 3),
        (({"scales": {"by": "prediction", "candidates": 4}}, "statistics"), "ternary", 2),
    ],
)
def test_the_library_equals_the_law(
    stages: Any, weights: Any, activations: int, tmp_path: Path
) -> None:
    runs_here("x86-64-v3")
    asked = Recipe(weights=weights, activations=activations, correct=stages)
    quantized = nybble.quantize(tiny(), [few()], asked)
    assert_equal_to_the_law(quantized, "x86-64-v3", tmp_path / "net.so", (3, SMALL, SMALL))


def test_an_equalised_network_is_deployed(tmp_path: Path) -> None:
    runs_here("x86-64-v3")
    torch.manual_seed(2)
    model = nybble.load_torch(Chain().eval(), (torch.zeros(1, 3, 12, 12),))
    asked = Recipe(weights=4, activations=4, correct=("equalize", "gptq", "statistics"))
    quantized = nybble.quantize(model, [models.images(6, (3, 12, 12))], asked)
    assert_equal_to_the_law(quantized, "x86-64-v3", tmp_path / "net.so", (3, 12, 12))


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"equalize": {"by": "luck"}}, "by='luck' is not one of: weights, activations"),
        ({"scales": {"by": "luck"}}, "by='luck' is not one of: mse, output, prediction"),
        ({"scales": {"candidates": 0}}, "candidates=0 is not a number from 1 up"),
        ({"gptq": {"damping": 0}}, "damping=0 is not a number from 1e-06 up"),
        ({"gptq": {"order": "random"}}, "order='random' is not one of: act, natural"),
        ({"low_rank": {"rank": 0}}, "rank=0 is not a number from 1 up"),
    ],
)
def test_bad_options(stage: Any, words: str) -> None:
    with pytest.raises(NybbleError, match=words):
        Recipe(correct=(stage,))
