"""`nybble.study` and ``nybble report`` on small networks, from the files to the page."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nybble
from nybble.errors import AllocationError, CalibrationError, NybbleError
from nybble.evaluation import Deployment, Tried
from nybble.passes import pipeline
from nybble.passes.plan import plan
from nybble.study_run import opened
from tests import models
from tests.report.test_pages import Balance
from tests.runtime.tiny import tiny_manifest
from tests.test_cli import call
from tests.walking import SMALL, few, tiny

pytestmark = pytest.mark.whole

MIXED = nybble.Recipe(weights="mixed", choices=(2, 8), budget={"size": 0.4})


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def _law(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law stands in for the libraries, whose bits are the same: nothing is compiled."""

    def tried(_: Any, network: Any, data: Any, advance: Any) -> Tried:
        advance(len(data), len(data))
        return Tried(tiny_manifest(), 1000, 1e-3, [network.run(data.inputs)])

    monkeypatch.setattr(Deployment, "tried", tried)


def labels_of(images: Any) -> Any:
    """What the float network says, but for the last image."""
    found = np.asarray(tiny().run(images)).argmax(1)
    found[-1] = (found[-1] + 1) % 10
    return found


@cache
def mixed() -> nybble.Study:
    images = models.images(6, (3, SMALL, SMALL), seed=8)
    given = nybble.Evaluation(images, labels_of(images))
    return nybble.study(tiny(), few(), MIXED, given, nybble.StudyOptions(title="tiny", samples=4))


def test_study_holds_what_was_chosen_and_what_came_of_it() -> None:
    found = mixed()
    layers = list(found.losses)
    assert list(found.allocation.widths) == layers == list(found.fidelity)
    assert found.allocation.costs["size"] <= found.allocation.limits["size"]
    assert found.widths == [8, 2]
    assert layers[0] not in found.open_layers  # the first and the last keep 8 bits
    assert set(found.fronts) == {"size", "bops"}
    assert [(o.name, o.kind) for o in found.outcomes] == [
        ("float", "float"), ("8 bits", "uniform"),
        ("2 bits", "uniform"), ("chosen", "chosen"),
    ]  # fmt: skip
    assert (found.samples, found.evaluated) == (4, 6)
    assert dict(found.facts)["recipe"].startswith("weights=mixed")


def test_outcomes_are_measured_on_deployed_libraries() -> None:
    plain, eight, two, chosen = mixed().outcomes
    assert plain.accuracy == pytest.approx(5 / 6)  # one label was made wrong
    assert plain.error is None
    assert plain.weights == 4 * sum(mixed().costs["size"][n][8] for n in mixed().losses)
    assert eight.weights == plain.weights / 4
    assert chosen.weights == mixed().allocation.costs["size"]
    assert eight.snr > 25 > two.snr
    for row in mixed().outcomes:
        assert row.size is not None
        assert row.size > (row.weights or 0)
        assert 0 < (row.seconds or 0) < 1


def test_layers_outputs_are_near_those_of_float() -> None:
    for layer, (snr, cosine) in mixed().fidelity.items():
        assert -5 < snr < 60, layer
        assert cosine == pytest.approx(1 / np.sqrt(1 + 10 ** (-snr / 10)), abs=0.25)


def test_page_of_a_real_study() -> None:
    page = mixed().to_html()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert page.count("<svg") == 5
    assert "nan" not in page.split("</style>")[1]


@pytest.mark.usefixtures("_law")
def test_uniform_recipe_is_shown_among_others() -> None:
    recipe = nybble.Recipe(weights=3, layers={"*mix*": {"weights": 5}, "*": {"activations": 6}})
    found = nybble.study(tiny(), few(), recipe, options=nybble.StudyOptions(samples=2))
    expected = plan(pipeline.canonicalize(tiny().module), recipe).weights
    assert found.allocation.widths == expected
    assert found.allocation.limits == {}
    assert 3 in found.widths
    assert {2, 4, 8} <= set(found.widths)
    assert found.outcomes[-1].accuracy is None
    errors = {o.name: o.error or 0.0 for o in found.outcomes}
    assert errors["8 bits"] < errors["chosen"] < errors["3 bits"]  # one layer has 5
    assert found.to_html()


def test_opened_recipe_keeps_activations_and_what_first_last_fixes() -> None:
    canonical = pipeline.canonicalize(tiny().module)
    layers = list(plan(canonical, nybble.Recipe()).weights)
    recipe = nybble.Recipe(4, layers={layers[0]: {"weights": 6, "activations": 5}})
    found = opened(canonical, recipe)
    assert found.choices == (2, 4, 6, 8)
    widths = plan(canonical, replace(found, weights=2, choices=(), budget=()))
    assert widths.weights[layers[0]] == 6
    assert widths.weights[layers[1]] == 2
    assert widths.weights[layers[-1]] == 8
    assert 5 in widths.bits.values()
    assert opened(canonical, MIXED) is MIXED


@pytest.mark.usefixtures("_law")
def test_same_study_twice() -> None:
    again = nybble.study(tiny(), few(), MIXED, options=nybble.StudyOptions(samples=4))
    assert again.losses == mixed().losses
    assert again.allocation == mixed().allocation
    assert again.fidelity == mixed().fidelity


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((np.zeros((4, 3, 8, 8), np.float32), None), "expected float32"),
        ((np.zeros((4, 3, SMALL, SMALL), np.float64), None), "expected float32"),
        ((np.zeros((0, 3, SMALL, SMALL), np.float32), None), r"inputs of \[0\] samples"),
        (({"other": np.zeros((4, 3, SMALL, SMALL), np.float32)}, None), "takes the inputs"),
        ((np.zeros((4, 3, SMALL, SMALL), np.float32), np.zeros(3, int)), r"integers \(4,\)"),
        ((np.zeros((4, 3, SMALL, SMALL), np.float32), np.zeros(4)), "float64"),
    ],
)
def test_data_that_does_not_fit(given: Any, match: str) -> None:
    with pytest.raises(NybbleError, match=match):
        nybble.study(tiny(), few(), MIXED, nybble.Evaluation(*given))


@pytest.mark.usefixtures("_law")
def test_recipes_that_cannot_be_studied() -> None:
    with pytest.raises(NybbleError, match="activations='float'"):
        nybble.study(tiny(), few(), nybble.Recipe(activations="float"))
    with pytest.raises(NybbleError, match="fixes them all"):
        nybble.study(tiny(), few(), replace(MIXED, layers={"*": {"weights": 4}}))
    with pytest.raises(AllocationError, match="size"):
        nybble.study(tiny(), few(), replace(MIXED, budget={"size": "1KB"}))
    with pytest.raises(CalibrationError, match="empty"):
        nybble.study(tiny(), [], MIXED)
    with pytest.raises(NybbleError, match="at least 1"):
        nybble.StudyOptions(samples=0)
    with pytest.raises(NybbleError, match="no-such-cpu"):
        nybble.study(tiny(), few(), MIXED, options=nybble.StudyOptions(target="no-such-cpu"))


# ---------------------------------------------------------------- command line


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "net.onnx").write_bytes(onnx_of_tiny())
    np.save(tmp_path / "cal.npy", few())
    np.savez(tmp_path / "eval.npz", images=few(), labels=labels_of(few()))
    return tmp_path


@cache
def onnx_of_tiny() -> bytes:
    import torch  # noqa: PLC0415

    given: Any = models.export_onnx(models.tiny_cnn(SMALL), torch.zeros(1, 3, SMALL, SMALL))
    return given if isinstance(given, bytes) else given.SerializeToString()


@pytest.mark.usefixtures("_law")
def test_report_command(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    recipe = files / "r.json"
    recipe.write_text(json.dumps({"weights": "mixed", "choices": [4, 8], "budget": {"size": 0.5}}))
    code = call(
        monkeypatch, "report", files / "net.onnx", "--calibration", files / "cal.npy",
        "--evaluate", files / "eval.npz", "--recipe", recipe, "--samples", 2,
        "-o", files / "out.html",
    )  # fmt: skip
    assert code == 0
    shown = capsys.readouterr().out
    assert "chosen" in shown
    assert "87.50 %" in shown  # float: all but the label that was made wrong
    page = (files / "out.html").read_text()
    assert "<h1>net</h1>" in page
    assert "Top-1" in page
    assert sorted(p.name for p in files.iterdir()) == [
        "cal.npy", "eval.npz", "net.onnx", "out.html", "r.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ([], "Give --calibration FILE"),
        (["--calibration", "cal.npy", "-o", "no/such/folder.html"], "there is no directory"),
        (["--calibration", "cal.npy", "--evaluate", "labels.npz"], "holds labels only"),
        (["--calibration", "cal.npy", "--evaluate", "cal.npy", "--weights", "mixed"], "choices"),
        (["--calibration", "cal.npy", "--target", "pdp-11"], "pdp-11"),
        (["--calibration", "net.onnx"], "no .npy or .npz"),
        (["--calibration", "cal.npy", "--weights", "mixed", "--choices", "4,8", "--budget",
          "size=1KB"], "size"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("_law")
def test_report_command_fails_in_words_and_writes_nothing(
    files: Path, options: list[str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    np.savez(files / "labels.npz", labels=np.zeros(4, int))
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "300")
    target = [] if "-o" in options else ["-o", "out.html"]
    assert call(monkeypatch, "report", "net.onnx", *options, *target) == 1
    assert match in capsys.readouterr().err
    assert not list(files.glob("*.html"))
    assert not list(files.glob(".*"))
