"""Scales, GPTQ, low rank, equalisation and statistics on small networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nybble.errors import NybbleError
from nybble.ir import graph
from nybble.passes.correction import layers
from nybble.passes.correction.equalize import scaled
from nybble.passes.correction.gptq import _Spread
from nybble.passes.correction.layers import Learned, Problem
from nybble.passes.differentiable import Differentiable
from nybble.passes.grids import weight_levels
from nybble.passes.settle import Settled, rows_of
from nybble.passes.simulation import Simulation
from nybble.passes.view import View
from nybble.recipe import Recipe
from nybble.stages import Gptq
from tests import models
from tests.correction.closed import Chain, made, outputs, recipe, through
from tests.correction.learning import (
    corrected,
    module,
    settled,
)
from tests.walking import few

ROUNDING = ("output", "gptq", "natural", "bias")


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
