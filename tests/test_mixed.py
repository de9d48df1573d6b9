"""Mixed widths through the whole walk: budgets are kept, fixed layers stay, trials are deployed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nybble
from nybble import search
from nybble.budget import bits_of, limit_of, parse_budget
from nybble.choices import tied_layers
from nybble.commands import CompileJob, compile_to_file
from nybble.commands_drop import Drop
from nybble.errors import AllocationError, NybbleError
from nybble.mixed import Trade
from nybble.options import RecipeOptions
from nybble.passes import pipeline
from nybble.passes.view import View
from tests import models
from tests.walking import SMALL, compared, few, imported, law_of, tiny


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One folder for the whole module: sensitivities are measured once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def recipe(**changes: Any) -> nybble.Recipe:
    return nybble.Recipe(**{"weights": "mixed", "choices": (2, 4, 8)} | changes)


def stored(quantized: Any) -> dict[str, str]:
    artifact = nybble.compile(quantized, prefer="size")
    return {la["name"]: la["weights"] for la in artifact.manifest.layers if la["weights"]}


# ---------------------------------------------------------------- budgets


def test_widths_within_a_budget_are_deployed(tmp_path: Path) -> None:
    quantized: Any = nybble.quantize(tiny(), few(), recipe(budget={"size": 0.5}))
    found = quantized.allocation
    assert found.costs["size"] <= found.limits["size"]
    assert len(set(found.widths.values())) > 1
    artifact = nybble.compile(quantized, prefer="size")
    assert {la["name"]: la["weights"] for la in artifact.manifest.layers if la["weights"]} == {
        layer: f"int{width}" for layer, width in found.widths.items()
    }
    x = models.images(2, (3, SMALL, SMALL), seed=9)
    report, _ = compared(law_of(quantized, x), artifact.save(tmp_path / "net.so"), x, 1)
    assert report.equal


def test_a_share_lies_between_all_low_and_all_high() -> None:
    lowest: Any = nybble.quantize(tiny(), few(), recipe(budget={"size": 0.0}))
    highest: Any = nybble.quantize(tiny(), few(), recipe(budget={"bops": 1.0}))
    middle: Any = nybble.quantize(tiny(), few(), recipe(budget={"size": 0.5}))
    inner = [layer for layer in lowest.allocation.widths if "stem" not in layer]
    assert {lowest.allocation.widths[layer] for layer in inner} == {2, 8}  # the last one has 8
    assert set(highest.allocation.widths.values()) == {8}
    reach = (lowest.allocation.costs["size"], highest.allocation.costs["size"])
    assert middle.allocation.limits["size"] == pytest.approx(sum(reach) / 2)


def test_fixed_layers_keep_their_width() -> None:
    asked = recipe(budget={"size": 0.2}, layers={"/mix/*": {"weights": 3}}, first_last=6)
    widths = stored(nybble.quantize(tiny(), few(), asked))
    assert [widths[name] for name in widths if "/mix/" in name] == ["int3"]
    first, *_, last = widths.values()
    assert first == last == "int6"
    assert set(widths.values()) <= {"int2", "int3", "int4", "int6", "int8"}


@pytest.mark.slow  # every kernel of every layer at every width is compiled and timed
def test_latency_is_measured_on_the_target() -> None:
    quantized: Any = nybble.quantize(tiny(), few(), recipe(budget={"latency": 0.7, "size": 0.9}))
    found = quantized.allocation
    assert 0 < found.costs["latency"] <= found.limits["latency"] < 1e-2
    assert all(len(times) in (1, 3) for times in quantized.trade.costs["latency"].values())


@pytest.mark.slow
def test_the_widths_of_an_allocation_can_be_edited_and_used_again() -> None:
    quantized: Any = nybble.quantize(tiny(), few(), recipe(budget={"size": 0.5}))
    widths = quantized.allocation.widths
    edited = {layer: 5 if width == 4 else width for layer, width in widths.items()}
    again = nybble.recipe.with_widths(nybble.Recipe(), edited)
    assert stored(nybble.quantize(tiny(), few(), again)) == {
        layer: f"int{width}" for layer, width in edited.items()
    }


def test_a_written_allocation_is_read_and_edited(tmp_path: Path) -> None:
    source, data, file = tmp_path / "tiny.onnx", tmp_path / "few.npy", tmp_path / "widths.json"
    example = torch.zeros(1, 3, SMALL, SMALL)
    source.write_bytes(models.export_onnx(models.tiny_cnn(SMALL), example))
    np.save(data, few())
    asked = RecipeOptions(weights="ternary", layers=("/mix/*=w3",))
    job = CompileJob(source, tmp_path / "net.so", data, asked, ("native",), False, allocation=file)
    compile_to_file(job)
    written = json.loads(file.read_text())
    assert set(written["widths"].values()) == {8, 3, "ternary"}
    layers = {la["name"]: la for la in nybble.load(tmp_path / "net.so").manifest.layers}
    for name, of in written["layers"].items():
        assert of["kernel"] == layers[name]["kernel"]
        assert of["activations"] == layers[name]["activations"]
        assert all(0 < scale < 1 for scale in [of["input_scale"], *of["scales"]])
    written["widths"]["/mix/Conv"] = 5
    file.write_text(json.dumps(written))
    again = RecipeOptions(allocation=file).recipe()
    widths = stored(nybble.quantize(tiny(), few(), again))
    assert widths["/mix/Conv"] == "int5"
    assert widths["/dilated/Conv"] == "int2"
    with pytest.raises(NybbleError, match="--allocation-out needs"):
        compile_to_file(dataclasses.replace(job, keep_float=True, calibration=None))


# ---------------------------------------------------------------- weights and activations


def both(**changes: Any) -> nybble.Recipe:
    return recipe(**{"choices": ("w4a4", "w8a8")} | changes)


@cache
def forked() -> Any:
    """Two convolutions read what the first gives: a residual block with one in its shortcut."""

    def build() -> nn.Module:
        block, pool = models.BasicBlock(8, 16, 2), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(nn.Conv2d(3, 8, 3), block, pool, nn.Flatten(), nn.Linear(16, 4))

    return imported(models.settled(build, (3, SMALL, SMALL)), SMALL, "torch")


def test_weights_and_activations_are_chosen_together(tmp_path: Path) -> None:
    quantized: Any = nybble.quantize(forked(), few(), both(budget={"bops": 0.5}))
    widths = quantized.allocation.widths
    assert {"w4a4", "w8a8"} <= set(widths.values())
    assert quantized.allocation.costs["bops"] <= quantized.allocation.limits["bops"]
    artifact = nybble.compile(quantized, prefer="size")
    layers = {la["name"]: la for la in artifact.manifest.layers if la["weights"]}
    for name, choice in widths.items():
        weights, activations = bits_of(choice)
        assert layers[name]["weights"] == f"int{weights}"
        assert activations is None or layers[name]["activations"][-1] == str(activations)
    (tied,) = quantized.trade.ties
    assert len({widths[layer] for layer in tied}) == 1 < len(tied)
    x = models.images(2, (3, SMALL, SMALL), seed=9)
    report, _ = compared(law_of(quantized, x), artifact.save(tmp_path / "net.so"), x, 1)
    assert report.equal


def test_layers_that_read_one_tensor_agree() -> None:
    canonical = pipeline.canonicalize(forked().module)
    (tied,) = tied_layers(canonical, both(budget={"size": 0.5}))
    assert len({View(canonical).sources(layer)[0] for layer in tied}) == 1 < len(tied)
    assert not tied_layers(canonical, recipe(budget={"size": 0.5}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": {"/mix/*": {"weights": 3}}}, "the recipe fixes one of its two widths"),
        ({"calibrator": "mse"}, "calibrator='mse' finds other ranges for every width"),
        ({"sensitivity": "hessian"}, "measure='hessian' looks at weights only"),
        ({"choices": ("w4a4", 8)}, "choices=.* is not one of: at least two different widths"),
        ({"choices": ("w4a4", "w4a9")}, "choices=.* is not one of: at least two different widths"),
    ],
)
def test_choices_of_both_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NybbleError, match=message):
        nybble.quantize(tiny(), few(), both(**{"budget": {"size": 0.5}} | changes))


# ---------------------------------------------------------------- a limited drop


def test_the_cheapest_within_a_drop_is_found_by_deployed_trials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "POINTS", 4)  # of the front: every trial is a compile
    x = models.images(16, (3, SMALL, SMALL), seed=7)
    wanted: Any = tiny().run(x)

    def score(session: Any) -> float:
        assert isinstance(session, nybble.Session)
        return -100 * float(np.linalg.norm(session(x) - wanted) / np.linalg.norm(wanted))

    seen: list[Any] = []
    quantized: Any = nybble.quantize(
        tiny(), few(), recipe(), max_drop=8.0, evaluate=score, on_trial=seen.append
    )
    assert list(quantized.trials) == seen
    accepted = [t for t in seen if t.accepted]
    assert all(t.accepted == (t.score >= -8.0 - 1e-3) for t in seen)
    cheapest = min(accepted, key=lambda t: t.allocation.costs["size"])
    assert quantized.allocation == cheapest.allocation
    with pytest.raises(AllocationError, match=r"max_drop=0\.001: the score must reach"):
        nybble.quantize(tiny(), few(), recipe(choices=(2, 4)), max_drop=0.001, evaluate=score)


@pytest.mark.slow
def test_the_command_limits_the_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "POINTS", 3)
    source, data, file = tmp_path / "tiny.onnx", tmp_path / "few.npy", tmp_path / "test.npz"
    example = torch.zeros(1, 3, SMALL, SMALL)
    source.write_bytes(models.export_onnx(models.tiny_cnn(SMALL), example))
    np.save(data, few())
    x = models.images(16, (3, SMALL, SMALL), seed=7)
    answers: Any = tiny().run(x)
    np.savez(file, images=x, labels=answers.argmax(-1))
    asked = RecipeOptions(weights="mixed", choices="4,8")
    job = CompileJob(source, tmp_path / "net.so", data, asked, ("native",), False)
    compile_to_file(dataclasses.replace(job, drop=Drop(100.0, file)))
    told = capsys.readouterr().out
    assert "tried size" in told
    assert "top-1" in told
    assert "accepted" in told
    np.savez(file, images=x)
    with pytest.raises(NybbleError, match="no array 'labels'"):
        compile_to_file(dataclasses.replace(job, drop=Drop(1.0, file)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_drop": 1.0}, "go together"),
        ({}, "needs a budget"),
        ({"max_drop": 1.0, "evaluate": lambda _: None}, "evaluate returned None"),
        pytest.param(
            {"max_drop": 1.0, "evaluate": lambda _: float("nan")},
            "evaluate returned nan",
            marks=pytest.mark.slow,  # as long as a whole compilation
        ),
    ],
)
def test_half_a_goal(given: dict[str, Any], message: str) -> None:
    with pytest.raises(NybbleError, match=message):
        nybble.quantize(tiny(), few(), recipe(), **given)


# ---------------------------------------------------------------- what budgets may say


def test_limits_with_units() -> None:
    assert limit_of("size", "66.6kB", (0.0, 1.0)) == pytest.approx(66_600)
    budget = parse_budget("size=0.5, latency=8ms,bops=20G")
    assert budget == {"size": 0.5, "latency": "8ms", "bops": "20G"}
    assert limit_of("size", 0.5, (10.0, 30.0)) == 20
    assert limit_of("latency", "8ms", (0.0, 1.0)) == pytest.approx(0.008)
    assert limit_of("size", "1.5MB", (0.0, 1.0)) == 1.5e6


@pytest.mark.parametrize("text", ["size", "size=8", "speed=0.5", "size=4ms", "size=-1", "size=x"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(NybbleError, match=r"Budget.*(Write|one of|neither)"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": 8}, "belong to weights='mixed'"),
        ({"choices": ()}, "needs choices"),
        ({"choices": (4,)}, "at least two different widths"),
        ({"choices": (4, 9)}, "at least two different widths"),
        ({"budget": {"size": 3}}, "limits such as"),
        ({"activations": "float"}, "activations of 1 to 8 bits"),
        ({"sensitivity": "guess"}, "hessian, perturbation"),
        ({"solver": "guess"}, "ilp, iqp"),
        ({"correct": ("adaroundd",)}, "did you mean 'adaround'"),
        ({"correct": ({"adaround": {"steps": 3}},)}, "has no option"),
    ],
)
def test_recipes_that_are_none(given: dict[str, Any], message: str) -> None:
    with pytest.raises(NybbleError, match=message):
        recipe(**given)


def test_recipes_survive_json() -> None:
    asked = recipe(budget={"size": 0.5, "latency": "8ms"}, correct=({"adaround": {"batch": 9}},))
    assert nybble.Recipe.from_json(asked.to_json()) == asked


def test_absolute_limits_are_no_shares() -> None:
    """Beyond what the network can cost, on either side."""
    with pytest.raises(AllocationError, match=r"size=1 is below what can be reached"):
        nybble.quantize(tiny(), few(), recipe(budget={"size": "1B"}))
    seconds = Trade(
        nybble.Sensitivity({"a": {4: 1.0, 8: 0.1}}),
        {"size": {"a": {4: 4.0, 8: 8.0}}, "latency": {"a": {4: 0.002, 8: 0.004}}},
        recipe(budget={"latency": "8ms"}),
    )
    assert seconds.allocated().widths == {"a": 8}
    assert seconds.allocated().limits == {"latency": 0.008}


def test_a_budget_that_nothing_keeps_says_so() -> None:
    with pytest.raises(AllocationError, match=r"size=100 is below what can be reached"):
        nybble.quantize(tiny(), few(), recipe(budget={"size": "100B"}))
