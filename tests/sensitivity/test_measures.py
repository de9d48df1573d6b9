"""Each measure against an independent computation of the same numbers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

import nybble
from nybble import Measure
from nybble.passes.sensitivity import forward, hessian
from nybble.passes.sensitivity.hessian import settled
from tests.sensitivity.nets import (
    LAYERS,
    SAMPLES,
    divergence,
    images,
    model,
    names,
    net,
    parameters,
    rounded,
)

WIDTHS = (2, 3, 4)


def measured(name: str, **options: Any) -> nybble.Sensitivity:
    measure = Measure(name, remember=False, **options)
    return nybble.sensitivity(model(), images(), measure, WIDTHS)


# ---------------------------------------------------------------- hessian


def explicit(layer: str) -> np.ndarray:
    """The Hessian of the divergence by one layer's weights."""
    weights = net().get_parameter(f"{layer}.weight").detach()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return divergence(parameters(**{layer: flat.reshape(weights.shape)}))

    found: Any = torch.autograd.functional.hessian(loss, weights.reshape(-1))
    return found.numpy()


def duals(layer: str) -> np.ndarray:
    """SᵀJJᵀS / N: the same trace, between the outputs' directions."""
    weights = net().get_parameter(f"{layer}.weight")
    x = torch.from_numpy(images()).double()

    def outputs(flat: torch.Tensor) -> torch.Tensor:
        return functional_call(net(), parameters(**{layer: flat.reshape(weights.shape)}), (x,))

    jacobian: Any = torch.autograd.functional.jacobian(outputs, weights.reshape(-1))
    rows = []
    for p, own in zip(torch.softmax(net()(x), 1).numpy(), jacobian.numpy(), strict=True):
        values, vectors = np.linalg.eigh(np.diag(p) - np.outer(p, p))
        # any root gives the trace; the one with (I - p1ᵀ)√p gives this estimator's variance too
        root = (np.eye(len(p)) - p[:, None]) * np.sqrt(p)
        np.testing.assert_allclose(root @ root.T, (vectors * values) @ vectors.T, atol=1e-12)
        rows.append(root.T @ own)
    stacked = np.concatenate(rows)
    return stacked @ stacked.T / len(x)


def own_loss(outputs: list[torch.Tensor], batch: Any) -> torch.Tensor:
    """The default one, given as if it were another: then vectors are used."""
    mine, right = torch.log_softmax(outputs[0], 1), torch.softmax(batch.wanted[0], 1)
    return torch.nn.functional.kl_div(mine, right, reduction="batchmean")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("loss", [None, own_loss])
def test_hutchinson_is_within_three_sigma_of_the_explicit_trace(layer: str, loss: Any) -> None:
    vectors, truth = 256 if loss is None else 64, explicit(layer)
    found = measured(
        "hessian", layers=(names()[layer],), tolerance=0.0, fewest=vectors, most=vectors, loss=loss
    )
    assert found.effort.backward == (256 if loss is None else 64 + 16)
    error = float((rounded(layer, 4) - net().get_parameter(f"{layer}.weight")).square().sum())
    trace = found.losses[names()[layer]][4] / error * len(truth)
    estimated = duals(layer) if loss is None else truth
    assert np.trace(estimated) == pytest.approx(np.trace(truth))
    off = estimated - np.diag(np.diag(estimated))
    sigma = np.sqrt(2 * np.square(off).sum())  # of vᵀAv, v of random signs
    assert sigma > 0.05 * np.trace(truth)  # else the bound below says nothing
    assert abs(trace - np.trace(truth)) <= 3 * sigma / np.sqrt(vectors) + 1e-4 * trace


def test_hessian_losses_are_the_mean_trace_times_the_weight_error() -> None:
    found = measured("hessian", fewest=2, most=4)
    for layer in LAYERS:
        weights = net().get_parameter(f"{layer}.weight")
        errors = [float((rounded(layer, w) - weights).square().sum()) for w in WIDTHS]
        losses = list(found.losses[names()[layer]].values())
        np.testing.assert_allclose(np.array(losses) / losses[0], np.array(errors) / errors[0], 1e-5)


def test_the_running_mean_decides_how_many_vectors() -> None:
    measure = Measure("hessian", tolerance=1e-3, fewest=4, most=8)
    assert settled([1.0] * 3, measure) is None
    assert settled([1.0] * 4, measure) == 4
    assert settled([1.0, 2.0, 1.0, 3.0, 1.75 + 1e-3], measure) == 5  # the mean of the first four
    assert settled([1.0, 9.0, 1.0, 9.0, 1.0, 9.0, 1.0], measure) is None
    assert settled([1.0, 9.0, 1.0, 9.0, 1.0, 9.0, 1.0, 9.0], measure) == 8
    assert settled([0.0] * 4, measure) == 4


def test_hessian_stops_early_and_says_so() -> None:
    few = measured("hessian", tolerance=10.0, fewest=4, most=64).effort
    assert few.backward == hessian.BLOCK
    own = measured("hessian", tolerance=10.0, fewest=4, most=64, loss=own_loss).effort
    assert own.backward == len(LAYERS) * (hessian.BLOCK + 1)


# ---------------------------------------------------------------- perturbation and pairwise


def lost(**widths: Any) -> float:
    with torch.no_grad():
        return float(divergence(parameters(**{n: rounded(n, w) for n, w in widths.items()})))


@pytest.mark.parametrize("source", ["torch", "onnx"])
def test_perturbation_is_the_loss_of_the_network_with_one_layer_quantized(source: str) -> None:
    measure = Measure("perturbation", remember=False)
    found = nybble.sensitivity(model(source), images(), measure, WIDTHS)
    for layer, losses in zip(LAYERS, found.losses.values(), strict=True):
        assert list(losses) == list(WIDTHS)
        for width, loss in losses.items():
            assert loss == pytest.approx(lost(**{layer: width}), rel=1e-3, abs=1e-9)


def test_what_enters_a_layer_is_rounded_where_the_width_names_activations() -> None:
    measure = Measure("perturbation", (names()["mix"],), remember=False)
    found = nybble.sensitivity(model(), images(), measure, ("w8a8", "w8a3", "w3a8", "w3a3"))
    losses = found.losses[names()["mix"]]
    assert losses["w8a8"] < min(losses["w8a3"], losses["w3a8"]) < losses["w3a3"]
    calls: list[torch.Tensor] = []

    def enter(_: Any, operands: tuple[torch.Tensor]) -> torch.Tensor:
        calls.append(operands[0])  # behind a ReLU: unsigned, 7 steps up to the largest value
        step = calls[0].max() / 7
        is_reference = len(calls) == 1
        rounded_in = torch.clamp(torch.round(operands[0] / step), 0, 7) * step
        return operands[0] if is_reference else rounded_in

    with net().mix.register_forward_pre_hook(enter):
        wanted = lost(mix=3)  # runs the float network first
    assert len(calls) == 2
    assert losses["w3a3"] == pytest.approx(wanted, rel=1e-3)


def test_pairs_are_what_two_layers_lose_beyond_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "projected", lambda losses, pairs: (losses, pairs))
    found = measured("pairwise")
    assert len(found.pairs) == 6 * len(WIDTHS) ** 2
    for one, other in itertools.combinations(LAYERS, 2):
        for v, w in itertools.product(WIDTHS, WIDTHS):
            wanted = lost(**{one: v, other: w}) - lost(**{one: v}) - lost(**{other: w})
            value = found.pairs[(names()[one], v), (names()[other], w)]
            assert value == pytest.approx(wanted, rel=1e-2, abs=1e-6), (one, v, other, w)


def form(losses: Any, pairs: Any, choice: dict[str, Any]) -> np.ndarray:
    """The quadratic form between the options of one choice."""
    matrix = np.diag([losses[layer][w] for layer, w in choice.items()])
    for (i, one), (j, other) in itertools.combinations(enumerate(choice.items()), 2):
        matrix[i, j] = matrix[j, i] = pairs[one, other] / 2
    return matrix


def test_every_choice_of_a_pairwise_table_is_positive_semidefinite() -> None:
    found = measured("pairwise")
    single = measured("perturbation")
    for widths in itertools.product(WIDTHS, repeat=len(LAYERS)):
        matrix = form(found.losses, found.pairs, dict(zip(found.losses, widths, strict=True)))
        assert np.linalg.eigvalsh(matrix)[0] >= -1e-7 * np.trace(matrix)
    for layer, losses in single.losses.items():  # projecting leaves the losses as they were
        assert found.losses[layer] == pytest.approx(losses)


def test_projection_mends_an_indefinite_form_and_keeps_a_definite_one() -> None:
    losses: Any = {"a": {4: 1.0}, "b": {4: 4.0}, "c": {4: 1e-6}, "zero": {4: 0.0}}
    pairs: Any = {(("a", 4), ("b", 4)): 1.0, (("a", 4), ("c", 4)): -5e-4}
    pairs[("a", 4), ("zero", 4)] = 0.5
    kept, between = forward.projected(losses, pairs)
    assert kept == losses
    assert between[("a", 4), ("b", 4)] == pytest.approx(1.0)
    assert between[("a", 4), ("c", 4)] == pytest.approx(-5e-4)
    assert between[("a", 4), ("zero", 4)] == 0  # whoever loses nothing loses nothing together

    pairs[("a", 4), ("b", 4)] = -3.9  # with c that is more than two layers can save
    pairs[("b", 4), ("c", 4)] = -3.9e-3
    losses["d"] = {4: -1e-9}  # rounding may lower a loss; a form cannot
    kept, between = forward.projected(losses, pairs)
    assert kept["d"] == {4: 0.0}
    assert between[("a", 4), ("b", 4)] < 0
    matrix = form(kept, between | {(("b", 4), ("zero", 4)): 0, (("c", 4), ("zero", 4)): 0},
                  {"a": 4, "b": 4, "c": 4, "zero": 4})  # fmt: skip
    assert np.linalg.eigvalsh(matrix)[0] >= -1e-12


def test_pairs_change_what_is_allocated() -> None:
    """A table with its pairs goes to the quadratic solver as it is."""
    found = measured("pairwise")
    size = {layer: {w: float(w) for w in WIDTHS} for layer in found.losses}
    best = nybble.allocate(found, {"size": size}, {"size": 12.0}, solver="iqp")
    assert best.gap == 0
    every = [
        form(found.losses, found.pairs, dict(zip(found.losses, widths, strict=True))).sum()
        for widths in itertools.product(WIDTHS, repeat=len(LAYERS))
        if sum(widths) <= 12
    ]
    assert best.objective == pytest.approx(min(every))


# ---------------------------------------------------------------- layers by themselves


def test_hessian_proxy_is_the_error_of_columns_over_the_inverse() -> None:
    found = measured("hessian_proxy")
    rows: list[Any] = []
    handle = net().head.register_forward_hook(lambda _, x, __: rows.append(x[0].detach()))
    with torch.no_grad():
        net()(torch.from_numpy(images()).double())
    handle.remove()
    x = rows[0].numpy()
    hessian_ = 2 * x.T @ x / SAMPLES
    hessian_ += 0.01 * np.diag(hessian_).mean() * np.eye(len(hessian_))
    error = (rounded("head", 4) - net().head.weight.detach()).numpy()
    wanted = (np.square(error).sum(axis=0) / np.diag(np.linalg.inv(hessian_))).sum()
    losses = found.losses[names()["head"]]
    assert losses[4] == pytest.approx(wanted, rel=1e-4)
    assert losses[2] == pytest.approx(16 * wanted, rel=1e-4)
    assert losses[3] == pytest.approx(4 * wanted, rel=1e-4)


def test_influence_of_a_residual_branch_is_that_of_the_whole_block() -> None:
    found = measured("influence")
    with torch.no_grad():
        x = torch.relu(net().stem(torch.from_numpy(images()).double()))
        y = torch.relu(x + net().branch(x))
    cosine = torch.cosine_similarity(x.flatten(1), y.flatten(1), 1).mean()
    weights = net().branch.weight.detach()
    share = (weights > weights.mean() + weights.std(unbiased=False)).double().mean()
    for width in WIDTHS:
        lost_power = (rounded("branch", width) - weights).square().sum() / weights.square().sum()
        wanted = float((1 - cosine) * (1 - share) * lost_power)
        assert found.losses[names()["branch"]][width] == pytest.approx(wanted, rel=1e-4)


def test_a_layer_that_changes_the_shape_keeps_nothing() -> None:
    found = measured("influence")
    weights = net().stem.weight.detach()
    share = (weights > weights.mean() + weights.std(unbiased=False)).double().mean()
    lost_power = (rounded("stem", 2) - weights).square().sum() / weights.square().sum()
    wanted = float((1 - share) * lost_power)
    assert found.losses[names()["stem"]][2] == pytest.approx(wanted, rel=1e-4)


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "name", ["hessian", "perturbation", "pairwise", "hessian_proxy", "influence"]
)
def test_the_same_call_gives_the_same_bits_and_wider_is_better(name: str) -> None:
    first, again = (measured(name, fewest=4, most=8) for _ in range(2))
    assert (first.losses, first.pairs) == (again.losses, again.pairs)
    assert first.measure == name
    assert list(first.losses) == list(names().values())
    for losses in first.losses.values():
        assert losses[2] > losses[4] > 0


def test_ternary_is_a_width_like_others() -> None:
    measure = Measure("hessian_proxy", remember=False)
    found = nybble.sensitivity(model(), images(), measure, ("ternary", 2))
    for losses in found.losses.values():
        assert losses["ternary"] > losses[2]
