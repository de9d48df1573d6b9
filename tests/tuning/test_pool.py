"""Measuring on this machine: the right candidates get a ratio, the others a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nybble.errors import NybbleError
from nybble.schedules.target import resolve
from nybble.tuning.measure import Limits, Outcome
from nybble.tuning.pool import LocalPool
from nybble.tuning.runner import Side, race_of
from nybble.tuning.tasks import Point
from tests.executors import calls
from tests.tuning import faults
from tests.tuning.layers import SMALL, task_of

ILLEGAL = Point("cpu.generic", "int8", (("no such knob", 1),))


def by_kernel(outcomes: Any) -> dict[str, Outcome]:
    return {outcome.point.kernel: outcome for outcome in outcomes}


def test_candidates_get_a_ratio_or_a_reason(tmp_path: Path) -> None:
    task = task_of(SMALL, tmp_path)
    pool = LocalPool(1, work=faults.measured)
    try:
        asked = [
            task.reference, Point("cpu.generic", "int8"), Point("cpu.none", "int8"),
            faults.point("wrong"), faults.point("confused"),
        ]  # fmt: skip
        found = by_kernel(pool.measure(task, asked, turns=5))
        assert len(found) == len(asked)
        same, other = found[task.reference.kernel], found["cpu.generic"]
        assert same.failure is None
        assert same.seconds is not None
        assert same.ratio is not None
        assert same.ratio == pytest.approx(1, rel=0.5)  # it raced against itself
        assert other.ratio is not None
        assert other.ratio > 1.5 * same.ratio  # no vectors
        assert found["cpu.none"].failure == "illegal"
        assert "no kernel 'cpu.none'" in found["cpu.none"].detail
        wrong = found["tests.wrong"]
        assert (wrong.failure, wrong.seconds, wrong.ratio) == ("wrong", None, None)
        assert "elements are not the law's; the first at (0, 0)" in wrong.detail
        confused = found["tests.confused"]
        assert confused.failure == "compiler"
        assert confused.detail == "ValueError: an extent is negative"
        assert pool.counts == {"illegal": 1, "wrong": 1, "compiler": 1, "started": 1}
        for name in ("torch", "tvm.s_tir.tensor_intrin"):
            assert pool.executor.submit(calls.loaded, ((name,),)).result().value == []
        spoiled = task_of(SMALL, tmp_path / "spoiled")
        np.save(spoiled.folder / "expected.npy", 1 - spoiled.operands().expected)
        with pytest.raises(NybbleError, match="with default decisions is wrong for linear"):
            list(pool.measure(spoiled, [task.reference]))
    finally:
        pool.close()


@pytest.mark.slow
def test_crashes_and_hangs_are_counted_and_the_rest_measured(tmp_path: Path) -> None:
    task = task_of(SMALL, tmp_path)
    pool = LocalPool(2, Limits(compile=20, run=20), faults.measured)
    try:
        asked = [task.reference, faults.point("hang"), task.reference, faults.point("crash")]
        asked += [task.reference] * 4
        found = list(pool.measure(task, asked, turns=3))
        assert len(found) == len(asked)
        good = [o for o in found if o.failure is None]
        assert [o.point for o in good] == [task.reference] * 6
        named = by_kernel(found)
        assert named["tests.hang"].failure == "hang"
        assert "compiling took more than 20 seconds" in named["tests.hang"].detail
        assert named["tests.crash"].failure == "crash"
        assert "SIGSEGV" in named["tests.crash"].detail
        assert pool.counts["hang"] == pool.counts["crash"] == 1
        assert pool.counts["started"] >= 4
    finally:
        pool.close()


def test_a_foreign_target_is_refused_at_once(tmp_path: Path) -> None:
    task = task_of(SMALL, tmp_path, target=resolve("aarch64"))
    pool = LocalPool(1)
    with pytest.raises(NybbleError, match="Cannot measure for aarch64 on this machine"):
        list(pool.measure(task, [task.reference]))
    assert pool.counts == {"started": 0}


def test_sides_take_turns_and_a_hopeless_one_gets_no_more() -> None:
    seen: list[tuple[str, int]] = []

    def side(name: str, seconds: float) -> Side:
        def run(count: int) -> float:
            seen.append((name, count))
            return seconds

        return run

    even = race_of((side("a", 2.0), side("b", 1.9)), (0.002, 1.0), 4)
    assert even.tolist() == [[2.0, 1.9]] * 4
    assert seen[:4] == [("b", 1), ("a", 2), ("a", 2), ("b", 1)]
    assert len(race_of((side("a", 2.0), side("b", 1.0)), (1.0, 1.0), 9)) == 3


def test_the_ratio_is_a_median_and_its_noise_the_spread() -> None:
    turns = np.array([[1.0, 2.0]] * 7 + [[9.0, 2.0], [1.0, 4.0]])
    calm = Outcome.timed(ILLEGAL, turns)
    assert (calm.seconds, calm.ratio, calm.noise) == (1.0, 0.5, 0.0)
    rng = np.random.default_rng(0)
    drawn = [
        Outcome.timed(ILLEGAL, np.stack([rng.normal(1, 0.1, 25), np.ones(25)], axis=1))
        for _ in range(400)
    ]
    spread = np.std([o.ratio or 0 for o in drawn])
    assert float(np.mean([o.noise for o in drawn])) == pytest.approx(float(spread), rel=0.2)
