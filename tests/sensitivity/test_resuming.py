"""Finished work is kept: nothing is measured twice, and a killed run goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import nybble
from nybble import Measure
from nybble.errors import NybbleError
from nybble.passes.sensitivity.journal import Journal
from nybble.sensitivity_table import Effort
from tests.sensitivity.nets import SAMPLES, images, model, names


class Counted:
    """A loss that counts its evaluations."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: list[Tensor], batch: Any) -> Tensor:
        self.calls += 1
        return (outputs[0] - batch.wanted[0]).square().mean()


class KilledError(Exception):
    """Stands for the end of the process."""


def killed_after(units: int) -> Callable[[int, int | None], None]:
    """Progress that ends the run when so many steps of evaluation are done."""
    seen: list[int] = []

    def progress(_: int, __: int | None) -> None:
        seen.append(1)
        if len(seen) == SAMPLES + units:  # calibration comes first
            raise KilledError

    return progress


def run(folder: Path, name: str, progress: Any = None) -> tuple[nybble.Sensitivity, int]:
    loss = Counted()
    measure = Measure(
        name, loss=loss, loss_name="squares", cache=folder, fewest=8, most=16, tolerance=0.0
    )
    return nybble.sensitivity(model(), images(), measure, (2, 4), progress=progress), loss.calls


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("perturbation", 1 + 4 * 2),
        ("pairwise", 1 + 4 * 2 + 6 * 4),
        ("hessian", 4 * 16 / 4),  # four vectors share a pass
    ],
)
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, name: str, evaluations: int) -> None:
    whole, calls = run(tmp_path / "whole", name)
    assert calls == evaluations
    for kill in (1, 3):
        folder = tmp_path / str(kill)
        with pytest.raises(KilledError):
            run(folder, name, killed_after(kill))
        (file,) = folder.glob("*.jsonl")
        done = [line for line in file.read_text().splitlines() if "ranges" not in line]
        assert len(done) == kill
        with file.open("a") as torn:
            torn.write('{"unit": "one head", "fou')  # cut off in the middle of a line

        rest, calls = run(folder, name)
        assert 0 < calls < evaluations
        assert (rest.losses, rest.pairs) == (whole.losses, whole.pairs)
        assert 0 < rest.effort.reused < 1

        again, calls = run(folder, name)
        assert calls == 0
        assert again.effort.reused == 1
        assert again.losses == whole.losses


@pytest.mark.parametrize("name", ["hessian_proxy", "influence"])
def test_measures_of_one_pass_are_kept_too(tmp_path: Path, name: str) -> None:
    measure = Measure(name, cache=tmp_path)
    first, again = (nybble.sensitivity(model(), images(), measure) for _ in range(2))
    assert first.losses == again.losses
    assert (first.effort.reused, again.effort.reused) == (0, 1)


def test_whatever_numbers_depend_on_has_a_file_of_its_own(tmp_path: Path) -> None:
    def files(name: str = "influence", x: Any = None, recipe: Any = None, **options: Any) -> int:
        measure = Measure(name, cache=tmp_path, **options)
        nybble.sensitivity(model(), images() if x is None else x, measure, (2, 4), recipe)
        return len(list(tmp_path.glob("*.jsonl")))

    assert files() == 1
    assert files() == 1
    assert files(x=list(images())) == 1  # the same samples one by one
    assert files(recipe=nybble.Recipe(weights=2, correct=("bias_correction",))) == 1
    assert files(x=images() * 2) == 2
    assert files(recipe=nybble.Recipe(activations=4)) == 3
    assert files(layers=("*head*", "*fc*", "*")[2:]) == 3
    assert files(layers=(names()["stem"],)) == 4
    assert files("hessian_proxy") == 5


def test_a_loss_without_a_name_is_not_kept(tmp_path: Path) -> None:
    measure = Measure("perturbation", loss=Counted(), cache=tmp_path)
    nybble.sensitivity(model(), images(), measure, (4,))
    assert list(tmp_path.iterdir()) == []


def test_results_lie_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NYBBLE_CACHE", str(tmp_path))
    nybble.sensitivity(model(), images(), "influence")
    assert len(list((tmp_path / "sensitivity").glob("*.jsonl"))) == 1
    nybble.sensitivity(model(), images(), Measure("influence", remember=False, batch=7))
    assert len(list((tmp_path / "sensitivity").glob("*.jsonl"))) == 1


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(NybbleError, match="remember=False"):
        Journal(blocked / "units.jsonl").add("one", 1.0)


def test_floats_come_back_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(100).tolist()
    Journal(tmp_path / "units.jsonl").add("one", values)
    assert Journal(tmp_path / "units.jsonl")["one"] == values


# ---------------------------------------------------------------- what is said of the work


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("perturbation", 2 + 4 * 2, 0),
        ("pairwise", 2 + 4 * 2 + 6 * 4, 0),
        ("hessian", 1 + 4, 16),
        ("hessian_proxy", 2, 0),
        ("influence", 1, 0),
    ],
)
def test_the_effort_is_told_beforehand_and_kept(name: str, forward: int, backward: int) -> None:
    told: list[Effort] = []
    steps: list[tuple[int, int | None]] = []
    measure = Measure(
        name, remember=False, batch=2, fewest=8, most=16, tolerance=0.0, announce=told.append
    )
    found = nybble.sensitivity(
        model(), images(), measure, (2, 4), progress=lambda *step: steps.append(step)
    )
    assert len(told) == 2
    assert told[0] == Effort(SAMPLES, forward, backward)
    assert told[1].seconds is not None
    assert told[1].seconds > 0
    assert (found.effort.forward, found.effort.backward) == (forward, backward)
    assert found.effort.seconds is not None
    assert found.effort.seconds > 0
    done, of = steps[-1]
    assert done == of
    assert all(one[0] <= two[0] for one, two in itertools.pairwise(steps))
