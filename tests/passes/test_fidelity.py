"""Fidelity: the sums are the formulas, torch and NumPy agree, errors are where they were put."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import nybble
from nybble.passes import pipeline
from nybble.passes.calibrate import calibrate
from nybble.passes.fidelity import Sums, fidelity
from nybble.passes.settle import Rounded, Settled, rows_of, settle
from nybble.passes.view import View
from tests.walking import few, tiny


@cache
def settled_at(weights: int) -> Settled:
    canonical = pipeline.canonicalize(tiny().module)
    recipe = nybble.Recipe(weights=weights)
    return settle(canonical, calibrate(canonical, batches(), recipe), recipe)


def batches() -> list[dict[str, Any]]:
    name = View(tiny().module).inputs[0]
    return [{name: few()[:5]}, {name: few()[5:]}]


def test_sums_are_the_formulas() -> None:
    rng = np.random.default_rng(0)
    y, z = rng.standard_normal((2, 50, 7)).astype(np.float32)
    sums = Sums()
    sums.add(y[:20], z[:20])
    sums.add(y[20:], z[20:])
    y, z = y.astype(float), z.astype(float)
    snr = 10 * np.log10((y**2).sum() / ((y - z) ** 2).sum())
    assert sums.snr == pytest.approx(snr)
    cosine = (y * z).sum() / np.linalg.norm(y) / np.linalg.norm(z)
    assert sums.cosine == pytest.approx(cosine)


def test_sums_of_nothing_and_of_equals() -> None:
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    expected = [
        (one, one, math.inf, 1.0),
        (zero, zero, math.inf, 1.0),
        (one, zero, 0.0, 0.0),
        (zero, one, -math.inf, 0.0),
        (one, -one, -10 * math.log10(4), -1.0),
    ]
    for wanted, got, snr, cosine in expected:
        sums = Sums()
        sums.add(wanted, got)
        assert [sums.snr, sums.cosine] == pytest.approx([snr, cosine])


def test_torch_and_numpy_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = settled_at(4)
    counted: list[int] = []
    in_torch = fidelity(settled, batches(), counted.append)
    assert counted == [5, 8]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    in_numpy = fidelity(settled, batches())
    assert list(in_torch) == list(in_numpy) == list(settled.weights)
    for layer, sums in in_torch.items():
        assert sums.snr == pytest.approx(in_numpy[layer].snr, abs=0.05), layer
        assert sums.cosine == pytest.approx(in_numpy[layer].cosine, abs=1e-4), layer


def test_more_bits_are_more_faithful() -> None:
    coarse, fine = (fidelity(settled_at(w), batches()) for w in (3, 8))
    inner = list(coarse)[1:-1]
    assert all(fine[n].snr > coarse[n].snr + 6 for n in inner)
    assert all(fine[n].cosine > 0.999 for n in inner)


def test_an_error_shows_from_its_layer_on_and_not_before() -> None:
    settled = settled_at(8)
    layers = list(settled.weights)
    spoiled = layers[2]
    given = settled.weights[spoiled]
    wrong = {**settled.weights, spoiled: Rounded(-given.integers, given.scale)}
    sound, broken = (fidelity(s, batches()) for s in (settled, replace(settled, weights=wrong)))
    for layer in layers[:2]:
        assert broken[layer] == sound[layer]
    assert broken[spoiled].cosine < 0.9
    assert broken[spoiled].snr < sound[spoiled].snr - 20


def test_compares_with_the_aim_of_corrections() -> None:
    settled = settled_at(8)
    other = replace(settled, goal=settled.module)
    assert fidelity(other, batches()) == fidelity(settled, batches())
    assert settled.aim is settled.module
    assert rows_of(View(settled.aim).calls[next(iter(settled.weights))]).ndim == 4
