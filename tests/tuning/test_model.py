"""The cost model ranks candidates that it has not seen."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from nybble.tuning.evolve import Search
from nybble.tuning.features import features
from nybble.tuning.model import ENOUGH, CostModel, Sample
from nybble.tuning.space import variants_of
from tests.tuning.synthetic import DEEP, FEW, WIDE, Formula, tasks_in


def samples(folder: Path, noise: float, count: int = 50) -> list[Sample]:
    formula, rng, found = Formula(noise), random.Random(0), []
    for task in tasks_in(folder, WIDE, DEEP, FEW):
        search = Search(task)
        points = {rng.choice(variants_of(task)).draw(rng) for _ in range(count)}
        for outcome in formula.measure(task, sorted(points, key=repr)):
            search.tell(outcome)
        found += search.samples()
    return found


def test_what_was_held_out_is_ranked(tmp_path: Path) -> None:
    found = CostModel().correlation(samples(tmp_path, 0.03))
    assert found is not None
    assert found > 0.7


def test_noise_alone_cannot_be_ranked(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).uniform(0.5, 2, 500)
    some = samples(tmp_path, 0.0)
    noisy = [Sample(s.task, s.features, float(r)) for s, r in zip(some, drawn, strict=False)]
    found = CostModel().correlation(noisy)
    assert found is not None
    assert abs(found) < 0.35


def test_too_few_are_no_reason_to_predict(tmp_path: Path) -> None:
    model, some = CostModel(), samples(tmp_path, 0.0)
    assert model.correlation(some[:ENOUGH]) is None
    model.fit(some[: ENOUGH - 1])
    assert not model.is_fit
    model = CostModel()
    model.fit(some)
    assert model.is_fit
    same = CostModel()
    same.fit(some)
    rows = [sample.features for sample in some]
    assert np.array_equal(model.predict(rows), same.predict(rows))
    unknown = model.predict([{"kernel of another kind": 1.0}])  # all that it knows is missing
    assert np.isfinite(unknown).all()


def test_features_tell_points_apart(tmp_path: Path) -> None:
    for task in tasks_in(tmp_path, WIDE, FEW):
        for one in variants_of(task):
            points = list(one.every())
            rows = {tuple(sorted(features(one, point).items())) for point in points}
            assert len(rows) == len(points)
            assert all(np.isfinite(list(dict(row).values())).all() for row in rows)
