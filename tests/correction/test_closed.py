"""Scales, GPTQ, low rank, equalisation and statistics on small networks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nybble
from nybble.errors import NybbleError
from nybble.ir import graph
from nybble.passes.correction import layers
from nybble.passes.correction.equalize import scaled
from nybble.passes.correction.gptq import _Spread
from nybble.passes.correction.layers import Learned, Problem
from nybble.passes.correction.run import correct
from nybble.passes.differentiable import Differentiable
from nybble.passes.grids import BIAS_LIMIT, weight_levels
from nybble.passes.settle import Settled, bias_of, rows_of
from nybble.passes.simulation import Simulation
from nybble.passes.view import View
from nybble.recipe import Recipe
from nybble.stages import Gptq
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

STAGES: dict[str, Any] = {
    "mse": "scales",
    "output": {"scales": {"by": "output"}},
    "prediction": {"scales": {"by": "prediction", "candidates": 4}},
    "gptq": "gptq",
    "natural": {"gptq": {"order": "natural", "block": 5}},
    "low_rank": {"low_rank": {"rank": 3}},
    "statistics": "statistics",
    "bias": "bias_correction",
    "means": {"statistics": {"deviation": False}},
}
ROUNDING = ("output", "gptq", "natural", "bias")


def recipe(stage: str, weights: Any = 3, activations: int = 4) -> Recipe:
    return Recipe(weights=weights, activations=activations, correct=(STAGES[stage],))


def silent(done: int, of: int) -> None:
    assert done <= of


class Chain(nn.Module):
    """Convolution, depthwise, pool, residual, linear: all behind ReLU, channels of many sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.head = nn.Linear(12, 5)
        with torch.no_grad():
            spread = torch.logspace(-1, 1, 12)
            for layer in (self.first, self.depthwise, self.grouped):
                layer.weight *= spread[torch.randperm(12)].reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        x = torch.relu(x + self.grouped(x))
        return self.head(nn.functional.max_pool2d(x, 2).mean((2, 3)))


class Odd(nn.Module):
    """A layer of zeros, columns that never see anything, a channel of zeros, one row a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros = nn.Conv2d(3, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.mixed = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 9)
        with torch.no_grad():
            self.zeros.weight.zero_()
            self.zeros.bias = nn.Parameter(torch.tensor([-1.0, 1.0, -1.0, 2.0]))
            self.depthwise.weight[1].zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.zeros(x))) + 0.5)
        return self.head(torch.relu(self.mixed(x)).mean((2, 3)))


@cache
def made(build: type[nn.Module], size: int = 12) -> Any:
    torch.manual_seed(2)
    return canonical(nybble.load_torch(build().eval(), (torch.zeros(1, 3, size, size),)))


def through(mod: Any, asked: Recipe, images: Any) -> tuple[Settled, Settled]:
    """Before and after the recipe's stages."""
    before = settled_from(mod, images, asked)
    with spooled(mod, images) as samples:
        return before, correct(before, samples, asked, silent)


def outputs(settled: Settled, images: Any) -> tuple[Tensor, Tensor]:
    """Of the float network, and as it will be deployed."""
    net = Differentiable(settled.aim)
    batch = {net.inputs[0]: torch.from_numpy(images)}
    with torch.no_grad():
        return net(batch)[0], Simulation(settled)(batch)[0]


# ---------------------------------------------------------------- what each is for


@pytest.mark.parametrize("stage", ROUNDING)
@pytest.mark.parametrize("weights", [2, 3, 6])
def test_every_layers_error_falls(
    stage: str, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: dict[str, tuple[float, float]] = {}
    chosen = layers.best_of

    def watched(problem: Problem, learned: Learned) -> Learned:
        before = float(problem.errors(problem.settled()).sum())
        errors[problem.place.name] = before, float(problem.errors(learned).sum())
        return chosen(problem, learned)

    monkeypatch.setattr(layers, "best_of", watched)
    corrected(recipe(stage, weights))
    inner = {
        n: e for n, e in errors.items() if settled(recipe(stage, weights)).plan.weights[n] != 8
    }
    assert len(inner) >= 4
    fallen = [after / before for before, after in inner.values()]
    assert np.mean(fallen) < 0.99
    assert sum(share < 1 for share in fallen) >= len(fallen) - 1


@pytest.mark.parametrize("weights", [2, "ternary", 3, 4, 6, 8])
def test_scales_by_mse_lower_every_channels_error(weights: Any) -> None:
    before, after = settled(recipe("mse", weights)), corrected(recipe("mse", weights))
    view = View(module())
    better = 0
    for name, rounded in after.weights.items():
        rows = rows_of(view.calls[name])
        axes = tuple(range(1, rows.ndim))
        new = np.square(rounded.values() - rows).sum(axis=axes)
        old = np.square(before.weights[name].values() - rows).sum(axis=axes)
        assert np.all(new <= old * (1 + 1e-5)), name
        better += int(np.sum(new < 0.999 * old))
    assert weights in (2, "ternary", 8) or better > 10


def test_gptq_is_rounding_where_columns_know_nothing_of_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn((2, 4, 6), generator=generator, dtype=torch.float64)
    steps = torch.full((2, 4, 1), 0.3, dtype=torch.float64)
    spread = _Spread(torch.diag_embed(torch.rand((2, 6)).double() + 0.1), steps, weight_levels(4))
    expected = torch.clamp(torch.round(weights / steps), -7, 7)
    for order in ("act", "natural"):
        torch.testing.assert_close(spread.integers(weights, Gptq(order=order)), expected)


@pytest.mark.parametrize("order", ["act", "natural"])
def test_gptq_equals_algorithm_1(order: str) -> None:
    """Against the update of all later columns by the inverse of what is left of H (equation 2)."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn((40, 7), generator=generator, dtype=torch.float64)
    gram = rows.T @ rows
    weights = torch.randn((5, 7), generator=generator, dtype=torch.float64)
    steps, levels = torch.full((5, 1), 0.4, dtype=torch.float64), weight_levels(4)
    found = _Spread(gram[None], steps[None], levels).integers(
        weights[None], Gptq(order=order, block=3)
    )[0]
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(7, dtype=torch.float64)
    sequence = list(range(7))
    if order == "act":
        sequence = gram.diagonal().argsort(descending=True).tolist()
    left, expected = weights.clone(), torch.zeros_like(weights)
    while sequence:
        inverse = torch.linalg.inv(damped[sequence][:, sequence])
        i = sequence[0]
        expected[:, i] = torch.clamp(torch.round(left[:, i] / steps[:, 0]), -7, 7)
        error = (left[:, i] - expected[:, i] * steps[:, 0]) / inverse[0, 0]
        left[:, sequence] -= error[:, None] * inverse[0]
        sequence = sequence[1:]
    torch.testing.assert_close(found, expected)


def test_dead_columns_become_0() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn((30, 4), generator=generator, dtype=torch.float64)
    rows[:, 2] = 0
    weights = torch.full((1, 2, 4), 0.7, dtype=torch.float64)
    steps = torch.full((1, 2, 1), 0.1, dtype=torch.float64)
    found = _Spread((rows.T @ rows)[None], steps, weight_levels(4)).integers(weights, Gptq())
    assert not found[0, :, 2].any()
    assert found[0, :, [0, 1, 3]].all()
    nothing = torch.zeros((1, 4, 4), dtype=torch.float64)
    assert not _Spread(nothing, steps, weight_levels(4)).integers(weights, Gptq()).any()


@pytest.mark.parametrize("weights", [2, 3])
def test_low_rank_comes_closer_and_keeps_the_function(weights: Any) -> None:
    before, after = settled(recipe("low_rank", weights)), corrected(recipe("low_rank", weights))
    new = [name for name in after.weights if name not in before.weights]
    assert new
    assert all(after.plan.weights[name] == 8 for name in new)
    assert {n: after.plan.weights[n] for n in before.weights} == before.plan.weights
    assert {o: after.plan.bits[o] for o in before.plan.bits if o in after.plan.bits} == {
        o: bits for o, bits in before.plan.bits.items() if o in after.plan.bits
    }
    view, old = View(after.module), View(module())
    errors = []
    for name in (n.removesuffix(".low_rank.up") for n in new if n.endswith(".up")):
        wanted = rows_of(old.calls[name])
        up, down = (after.weights[f"{name}.low_rank.{part}"].values() for part in ("up", "down"))
        mended = after.weights[name].values() + np.tensordot(up.reshape(len(up), -1), down, 1)
        errors.append(
            np.linalg.norm(mended - wanted) / np.linalg.norm(before.weights[name].values() - wanted)
        )
        assert rows_of(view.calls[name]).shape == wanted.shape
    assert max(errors) < 0.95
    floats, _ = outputs(before, few())
    torch.testing.assert_close(outputs(after, few())[0], floats, rtol=1e-4, atol=1e-4)


def test_low_rank_says_where_it_has_nothing_to_do() -> None:
    with pytest.raises(NybbleError, match="'low_rank' of rank 3 has no layer"):
        corrected(recipe("low_rank", 8))


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_equalisation_keeps_the_function_and_evens_ranges(by: str) -> None:
    mod, images = made(Chain), models.images(6, (3, 12, 12))
    asked = Recipe(weights=4, activations=4, correct=({"equalize": {"by": by}},))
    before, after = through(mod, asked, images)
    wanted, found = outputs(before, images)[0], outputs(after, images)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert any(
        not np.array_equal(rows_of(View(mod).calls[n]), rows_of(View(after.module).calls[n]))
        for n in before.weights
    )
    view = View(after.module)
    written = np.abs(rows_of(view.calls["first"]).reshape(12, -1)).max(axis=1)
    read = np.abs(rows_of(view.calls["depthwise"]).reshape(12, -1)).max(axis=1)
    if by == "weights":
        np.testing.assert_allclose(written, read, rtol=0.05)
    else:
        old = View(mod)
        assert _evenness(view, "first", "depthwise") > _evenness(old, "first", "depthwise")


def _evenness(view: View, written: str, read: str) -> float:
    """1 where the largest weights that read a channel are as large for all channels."""
    largest = np.abs(rows_of(view.calls[read]).reshape(12, -1)).max(axis=1)
    assert len(rows_of(view.calls[written])) == 12
    return float(largest.min() / largest.max())


def test_equalisation_helps_a_network_of_uneven_channels() -> None:
    mod, images = made(Chain), models.images(8, (3, 12, 12))
    errors = []
    for stages in ((), ("equalize",)):
        _, after = through(mod, Recipe(weights=4, activations=4, correct=stages), images)
        wanted, found = outputs(after, images)
        errors.append(float((found - wanted).square().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_equalisation_leaves_what_a_clip_binds() -> None:
    """ReLU6 between: a per-tensor bound is no function that scales channel by channel."""
    mod = module()
    asked = Recipe(weights=4, correct=("equalize",))
    with pytest.raises(NybbleError, match="no two layers"):
        through(mod, asked, few())


def test_equalisation_comes_first() -> None:
    with pytest.raises(NybbleError, match="whose work it would undo"):
        Recipe(correct=("scales", "equalize"))
    assert len(Recipe(correct=("equalize", {"equalize": {"by": "weights"}}, "gptq")).correct) == 3


def test_scaling_by_hand_is_the_same_function() -> None:
    mod, images = made(Chain), models.images(2, (3, 12, 12))
    net = Differentiable(mod)
    batch = {net.inputs[0]: torch.from_numpy(images)}
    scale = np.logspace(-2, 2, 12)
    names = [str(b.var.name) for b in graph.bindings(mod)]
    between = names[names.index("first") : names.index("depthwise")]
    with torch.no_grad():
        wanted = net(batch)[0]
        found = Differentiable(scaled(mod, dict.fromkeys(between, scale)))(batch)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_bias_correction_takes_the_mean_error_out() -> None:
    images = models.images(16, (3, 12, 12), seed=5)
    before, after = through(made(Chain), recipe("bias", 3, 8), images)
    means = []
    for one in (before, after):
        right, mine = outputs(one, images)
        means.append(float((mine - right).mean(dim=0).abs().max()))
    assert means[1] < 0.1 * means[0]  # nothing stands behind the last layer, all samples are rows


@pytest.mark.parametrize("deviation", [True, False])
def test_statistics_bring_moments_back(deviation: bool) -> None:
    asked = Recipe(weights=3, activations=8, correct=({"statistics": {"deviation": deviation}},))
    before, after = settled(asked), corrected(asked)
    wanted, rough, mended = (_moments(*args) for args in ((before, True), (before,), (after,)))
    for name, (mean, spread) in wanted.items():
        error, was = (float((m[name][0] - mean).abs().sum()) for m in (mended, rough))
        assert error < 0.35 * was + 1e-3 * float(spread.sum()), name
    gaps = [
        sum(float((m[n][1] / spread - 1).abs().mean()) for n, (_, spread) in wanted.items())
        for m in (mended, rough)
    ]
    assert not deviation or gaps[0] < 0.5 * gaps[1]
    for name, rounded in after.weights.items():
        np.testing.assert_array_equal(rounded.integers, before.weights[name].integers)


def _moments(settled: Settled, as_float: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    view, found = View(settled.module), dict[str, tuple[Tensor, Tensor]]()
    kinds = settled.plan.kinds

    def observe(name: str, y: Tensor) -> None:
        if kinds.get(name) == "bias":
            axes = tuple(range(y.dim() - 1))
            found[name] = y.mean(dim=axes), y.std(dim=axes, correction=0)

    batch = {view.inputs[0]: torch.from_numpy(few())}
    with torch.no_grad():
        (Differentiable(settled.aim) if as_float else Simulation(settled))(batch, observe)
    return found


def test_prediction_lowers_the_divergence_of_the_outputs() -> None:
    asked = recipe("prediction", 4, 3)
    errors = []
    for one in (settled(asked), corrected(asked)):
        wanted, found = (torch.log_softmax(y, 1) for y in outputs(one, few()))
        errors.append(float((wanted.exp() * (wanted - found)).sum(1).mean()))
    assert errors[1] < 0.9 * errors[0]


# ---------------------------------------------------------------- what holds for all


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
