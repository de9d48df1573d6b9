"""Allocations against HAWQ-V3's own optima, brute force, and numerical optimisation."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble import allocate, pareto
from nybble.allocation.closed_form import rates
from nybble.allocation.result import Allocation
from nybble.errors import AllocationError

WIDTHS = (2, 4, 8)


def random_problem(seed: int, layers: int, widths: Any = WIDTHS, pairs: bool = True) -> Any:
    """(sensitivity, costs): losses fall and costs grow with the width, with noise."""
    rng = np.random.default_rng(seed)
    names = [f"layer{i}" for i in range(layers)]
    scale, size = rng.exponential(size=layers), rng.integers(1, 100, layers)
    losses = {
        name: {w: float(scale[i] * 4.0**-w * 100 * rng.uniform(0.5, 1.5)) for w in widths}
        for i, name in enumerate(names)
    }
    between = {
        ((a, v), (b, w)): float(rng.normal() * np.sqrt(losses[a][v] * losses[b][w]))
        for a, b in itertools.combinations(names, 2)
        for v in widths
        for w in widths
    }
    costs = {
        "size": {name: {w: float(size[i] * w) for w in widths} for i, name in enumerate(names)},
        "latency": {n: {w: float(rng.uniform(1, 9) * (1 + w / 8)) for w in widths} for n in names},
    }
    return SimpleNamespace(losses=losses, pairs=between if pairs else {}), costs


def brute_force(
    sensitivity: Any, costs: Any, limits: dict[str, float], tied: tuple[int, ...] = (0,)
) -> float:
    names, best = list(sensitivity.losses), np.inf
    for widths in itertools.product(WIDTHS, repeat=len(names)):
        if len({widths[i] for i in tied}) > 1:
            continue
        chosen = list(zip(names, widths, strict=True))
        if all(
            sum(costs[k][n][w] for n, w in chosen) <= limit * (1 + 1e-9)
            for k, limit in limits.items()
        ):
            loss = sum(sensitivity.losses[n][w] for n, w in chosen)
            loss += sum(
                sensitivity.pairs.get(ends, 0) for ends in itertools.combinations(chosen, 2)
            )
            best = min(best, loss)
    return best


def _reach(table: Any) -> tuple[float, float]:
    each = [list(widths.values()) for widths in table.values()]
    return sum(map(min, each)), sum(map(max, each))


# ---------------------------------------------------------------- golden


def golden() -> dict[str, Any]:
    folder = os.environ.get("NYBBLE_DATA")
    if folder is None:
        pytest.skip("NYBBLE_DATA is not set: HAWQ-V3's tables are not here")
    data: dict[str, Any] = json.loads((Path(folder) / "hawq_v3_allocation.json").read_text())
    return data


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_hawqs_own_optima(name: str) -> None:
    """All nine budgets of a network; HAWQ counts losses from 4 bits."""
    net = golden()[name]
    layers = [f"{i}" for i in range(len(net["mean_hessian_trace"]))]
    errors = {b: np.array(net["weight_error_sq"][str(b)]) for b in (4, 8)}
    gain = np.array(net["mean_hessian_trace"]) * (errors[8] - errors[4])
    both = {
        "size": {b: np.array(net["parameters_mb_int8"]) * b / 8 for b in (4, 8)},
        "bops": {b: np.array(net["bops_fp32_g"]) * b * b / 1024 for b in (4, 8)},
        "latency": {b: np.array(net["latency_ms"][str(b)]) for b in (4, 8)},
    }
    costs = {
        cost: {layer: {b: float(each[b][i]) for b in (4, 8)} for i, layer in enumerate(layers)}
        for cost, each in both.items()
    }
    losses = {layer: {4: 0.0, 8: float(gain[i])} for i, layer in enumerate(layers)}
    ties = [[layers[i] for i in group] for group in net["tied_layers"]]
    for budget, optimum in net["optimum"].items():
        cost, share = budget.split("@")
        found = allocate(losses, costs, {cost: float(share)}, ties)
        assert found.objective == pytest.approx(optimum["objective"], abs=1e-9), budget
        assert [found.widths[layer] for layer in layers] == optimum["bits"], budget
        assert found.gap == 0


# ---------------------------------------------------------------- brute force


@pytest.mark.parametrize("solver", ["ilp", "iqp"])
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    layers=st.integers(1, 7),
    budget=st.sampled_from([{}, {"size": 0.3}, {"size": 0.5, "latency": 0.6}, {"latency": 0.0}]),
)
def test_optima_equal_brute_force(
    solver: str, seed: int, layers: int, budget: dict[str, float]
) -> None:
    sensitivity, costs = random_problem(seed, layers, pairs=solver == "iqp")
    reach = {k: _reach(table) for k, table in costs.items()}
    limits = {k: low + budget[k] * (high - low) for k, (low, high) in reach.items() if k in budget}
    if brute_force(sensitivity, costs, limits) == np.inf:  # one layer may not fit two limits
        with pytest.raises(AllocationError, match="together with the others"):
            allocate(sensitivity, costs, budget, solver=solver)
        return
    found = allocate(sensitivity, costs, budget, solver=solver)
    assert found.limits == pytest.approx(limits)
    assert found.objective == pytest.approx(brute_force(sensitivity, costs, found.limits), rel=1e-9)
    assert found.gap == 0
    assert all(found.costs[k] <= limit * (1 + 1e-9) for k, limit in found.limits.items())


@pytest.mark.parametrize("solver", ["ilp", "iqp"])
def test_ten_layers_of_three_widths(solver: str) -> None:
    sensitivity, costs = random_problem(1, 10, pairs=solver == "iqp")
    found = allocate(sensitivity, costs, {"size": 0.4}, solver=solver)
    assert found.objective == pytest.approx(brute_force(sensitivity, costs, found.limits), rel=1e-9)


def test_the_front_holds_every_optimum() -> None:
    """Each point is the programme's answer to its own cost, and nothing lies between two points."""
    sensitivity, costs = random_problem(3, 8, pairs=False)
    front = pareto(sensitivity, costs, "size")
    assert front[0].widths == dict.fromkeys(sensitivity.losses, 2)
    for point, after in itertools.pairwise(front):
        assert after.costs["size"] > point.costs["size"]
        assert after.objective < point.objective
        for limit in (point.costs["size"], after.costs["size"] - 0.5):
            best = allocate(sensitivity, costs, {"size": limit})
            assert best.objective == pytest.approx(point.objective, rel=1e-9)
    few = pareto(sensitivity, costs, "size", points=4)
    assert len(few) <= 4
    assert few[0].widths == front[0].widths
    assert few[-1].widths == front[-1].widths


# ---------------------------------------------------------------- closed form


@pytest.mark.parametrize("seed", range(5))
def test_rates_are_the_convex_optimum(seed: int) -> None:
    """No exchange of bits between two layers lowers the loss, and the budget is spent."""
    rng = np.random.default_rng(seed)
    c, n = 4.0 ** rng.uniform(0, 8, 12), rng.uniform(1, 50, 12)
    lo, hi = np.full(12, 2.0), np.full(12, 8.0)
    budget = float(n.sum() * rng.uniform(2.5, 6))
    found = rates(c, n, budget, lo, hi)
    assert (n * found).sum() == pytest.approx(budget)
    loss = (c * 4.0**-found).sum()
    for a, b in itertools.permutations(range(12), 2):
        moved = found.copy()
        step = 1e-4
        moved[a] += step / n[a]
        moved[b] -= step / n[b]
        if moved[a] <= hi[a] and moved[b] >= lo[b]:
            assert (c * 4.0**-moved).sum() >= loss * (1 - 1e-12)


def test_rates_of_equal_layers_are_baqs_formula() -> None:
    c = np.array([1.0, 4.0, 16.0, 64.0])
    found = rates(c, np.ones(4), 4 * 5.0, np.zeros(4), np.full(4, 20.0))
    expected = 5 + np.log2(c / np.exp(np.log(c).mean())) / 2
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_closed_form_is_near_the_programme() -> None:
    for seed in range(10):
        sensitivity, costs = random_problem(seed, 30, pairs=False)
        found = allocate(sensitivity, costs, {"size": 0.4}, solver="closed_form")
        best = allocate(sensitivity, costs, {"size": 0.4})
        assert found.costs["size"] <= found.limits["size"] * (1 + 1e-9)
        assert best.objective <= found.objective <= 1.5 * best.objective
        assert found.rates is not None


# ---------------------------------------------------------------- ties, patterns, scale, errors


def test_tied_and_fixed_layers() -> None:
    sensitivity, costs = random_problem(5, 6)
    ties, fixed = [("layer0", "layer3"), ("layer3", "layer5")], {"layer*": 4, "layer[0-3]": 8}
    found = allocate(sensitivity, costs, {}, [("layer0", "layer3")], "iqp", fixed=fixed)
    assert found.widths == {f"layer{i}": 8 if i < 4 else 4 for i in range(6)}
    tied = allocate(sensitivity, costs, {"size": 0.5}, ties, "iqp")
    assert tied.widths["layer0"] == tied.widths["layer3"] == tied.widths["layer5"]
    best = brute_force(sensitivity, costs, tied.limits, tied=(0, 3, 5))
    assert tied.objective == pytest.approx(best, rel=1e-9)


def test_three_hundred_layers_in_a_second() -> None:
    sensitivity, costs = random_problem(0, 300, (2, 3, 4, 8), pairs=False)
    allocate(sensitivity, costs, {"size": 0.9})  # loads the solver
    start = time.process_time()
    found = allocate(sensitivity, costs, {"size": 0.4, "latency": 0.5})
    assert time.process_time() - start < 1
    assert found.gap == 0


@pytest.mark.slow
def test_pairs_of_fifty_layers_within_a_minute() -> None:
    """ResNet-50's size, errors that correlate: proven within the time."""
    rng = np.random.default_rng(0)
    names = [f"layer{i}" for i in range(54)]
    error = {
        (name, w): rng.exponential() * 2.0**-w * (rng.normal(size=200) + shared)
        for shared in [0.3 * rng.normal(size=200)]
        for name in names
        for w in WIDTHS
    }
    losses = {n: {w: float(error[n, w] @ error[n, w]) / 2 for w in WIDTHS} for n in names}
    between = {
        ((a, v), (b, w)): float(error[a, v] @ error[b, w])
        for a, b in itertools.combinations(names, 2)
        for v in WIDTHS
        for w in WIDTHS
    }
    costs = {"size": {n: {w: float(w) for w in WIDTHS} for n in names}}
    sensitivity = SimpleNamespace(losses=losses, pairs=between)
    start = time.monotonic()
    found = allocate(sensitivity, costs, {"size": 0.5}, solver="iqp", seconds=60)
    assert time.monotonic() - start < 90
    assert found.gap is not None
    assert found.gap < 0.05
    assert found.objective < allocate(sensitivity, costs, {"size": 0.5}).objective


def test_what_numbers_in_a_budget_mean() -> None:
    losses = {"a": {4: 1.0, 8: 0.5}, "b": {4: 1.0, 8: 0.4}}
    costs = {"size": {"a": {4: 40.0, 8: 80.0}, "b": {4: 40.0, 8: 80.0}}}
    assert allocate(losses, costs, {"size": 0.5}).limits == {"size": 120.0}
    assert allocate(losses, costs, {"size": 121}).costs == {"size": 120.0}
    seconds = {"time": {"a": {4: 0.1, 8: 0.2}, "b": {4: 0.1, 8: 0.2}}}
    assert allocate(losses, seconds, {"time": 0.3}).limits == {"time": 0.3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": {"size": 79}}, "size=79 is below what can be reached; the nearest is 80"),
        ({"budget": {"sise": 1.0}}, "no costs 'sise' .did you mean 'size'"),
        ({"budget": {"size": -1.0}}, "size=-1.0 is no limit"),
        ({"budget": {"size": float("nan")}}, "is no limit"),
        ({"ties": [["a", "c"]]}, "no layer 'c'"),
        ({"fixed": {"lair*": 4}}, "matches no layer"),
        ({"fixed": {"a": 3}}, "cannot be fixed at 3"),
        ({"solver": "best"}, "not one of: ilp"),
        ({"sensitivity": {}}, "no layer to allocate"),
        ({"sensitivity": {"a": {4: 1.0, 2: 3.0}}}, "'a' has no value for the widths .2."),
        ({"sensitivity": {"a": {4: float("inf")}}}, "not finite"),
        ({"solver": "closed_form", "budget": {}}, "keeps one limit, got 0"),
        ({"fixed": {"a": 4, "b": 8}, "ties": [["a", "b"]]}, "no width in common"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "sensitivity": {"a": {4: 1.0, 8: 0.5}, "b": {4: 1.0, 8: 0.4}},
        "costs": {"size": {"a": {4: 40.0, 8: 80.0}, "b": {4: 40.0, 8: 80.0}}},
        "budget": {"size": 0.5},
    }
    with pytest.raises(AllocationError, match=message):
        allocate(**given | change)


def test_two_limits_that_exclude_each_other() -> None:
    losses = {"a": {4: 1.0, 8: 0.5}}
    costs = {"size": {"a": {4: 40.0, 8: 80.0}}, "latency": {"a": {4: 9.0, 8: 5.0}}}
    with pytest.raises(AllocationError, match="together with the others; the nearest is"):
        allocate(losses, costs, {"size": 50, "latency": 6})


def test_an_allocation_survives_json() -> None:
    found = allocate({"a": {4: 1.0}}, {"size": {"a": {4: 40.0}}}, {"size": 50})
    assert Allocation.from_json(found.to_json()) == found
    with pytest.raises(AllocationError, match="not JSON"):
        Allocation.from_json("{")
