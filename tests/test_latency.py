"""Kernels are timed, taking turns; times are remembered, and a kernel that disagrees is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nybble import latency, limits
from nybble.errors import NybbleError, ScheduleError
from nybble.schedules import select
from nybble.schedules.cpu import fallback
from nybble.schedules.kernel import Constants, Problem, TensorSpec
from nybble.schedules.target import host_features, resolve

NATIVE = resolve("native")
PROBLEM = Problem(
    "linear",
    (TensorSpec(("n", 96), "uint8"),),
    TensorSpec(("n", 48), "int32"),
    weights=TensorSpec((48, 96), "int4"),
)
RNG = np.random.default_rng(0)
CONSTANTS: Constants = {
    "w": RNG.integers(-7, 8, (48, 96), np.int8),
    "bias": RNG.integers(-99, 99, 48, np.int32),
}


def fake(*seconds: float) -> select.Ruler:
    """A ruler that knows the times of a layer's candidates in table order."""
    return lambda candidates, _target: [*seconds, *[9.0] * (len(candidates) - len(seconds))]


def plan(ruler: select.Ruler, **changes: Any) -> select.Planner:
    slow = replace(fallback.LINEAR, name="cpu.slow")
    narrow = replace(slow, name="cpu.narrow", supports=lambda p, _: only(p, "int4"))
    wide = replace(slow, name="cpu.wide", supports=lambda p, _: only(p, "int8"))
    return select.Planner(ruler=ruler, kernels=(narrow, wide, slow), **changes)


def only(problem: Problem, dtype: str) -> str | None:
    found = problem.weights.dtype if problem.weights else "nothing"
    return None if found == dtype else f"takes {dtype}, not {found}"


def choose(planner: select.Planner) -> select.Choice:
    return select.choose(PROBLEM, CONSTANTS, NATIVE, planner)


@pytest.mark.parametrize(("seconds", "winner"), [((1.0, 2.0), "narrow"), ((2.0, 1.0), "wide")])
def test_the_fastest_wins_and_eight_bits_may(seconds: tuple[float, ...], winner: str) -> None:
    choice = choose(plan(fake(*seconds)))
    assert choice.candidate.kernel.name == f"cpu.{winner}"
    names = [(timed.kernel, timed.weights, timed.seconds) for timed in choice.timed]
    assert names == [("cpu.narrow", "int4", seconds[0]), ("cpu.wide", "int8", seconds[1])]


def test_size_keeps_every_weight_in_its_own_width() -> None:
    choice = choose(plan(fake(2.0, 1.0), prefer="size"))
    assert choice.candidate.kernel.name == "cpu.narrow"


def test_of_equal_times_the_smaller_wins() -> None:
    assert choose(plan(fake(1.02, 1.0))).candidate.kernel.name == "cpu.narrow"


def test_an_unknown_preference_is_refused() -> None:
    with pytest.raises(NybbleError, match="prefer='beauty' is neither"):
        select.Planner(prefer="beauty")


def test_eight_bits_stand_in_where_only_the_last_resort_is_left() -> None:
    wide = [k for k in plan(fake(1.0)).table(NATIVE) if k.name != "cpu.narrow"]
    choice = choose(select.Planner(kernels=wide))
    assert choice.candidate.kernel.name == "cpu.wide"
    assert choice.candidate.problem.weights == TensorSpec((48, 96), "int8")
    assert choice.refusals == ("cpu.wide: takes int8, not int4",)
    assert choose(select.Planner(kernels=wide, prefer="size")).candidate.kernel.name == "cpu.slow"


def test_times_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "deep" / "latencies.jsonl"
    first = select.choose(PROBLEM, CONSTANTS, NATIVE, select.Planner(ruler=latency.Ruler(cache)))
    assert len(first.timed) > 1
    assert all(0 < timed.seconds < 1 for timed in first.timed)
    seconds = {t.kernel: t.seconds for t in first.timed if t.weights != "float32"}
    assert seconds[first.candidate.kernel.name] <= select.TIE * min(seconds.values())
    with cache.open("a") as file:
        file.write('{"key": "torn')
    assert [json.loads(line)["kernel"] for line in cache.read_text().splitlines()[:-1]] == [
        timed.kernel for timed in first.timed
    ]
    monkeypatch.setattr(latency, "_prepared", None)  # nothing is built a second time
    again = select.choose(PROBLEM, CONSTANTS, NATIVE, select.Planner(ruler=latency.Ruler(cache)))
    assert again.timed == first.timed


def test_a_kernel_that_disagrees_is_a_defect() -> None:
    def wrong(problem: Problem, constants: Constants) -> Any:
        return fallback.pack(problem, {**constants, "bias": constants["bias"] + 1})

    liar = replace(fallback.LINEAR, name="cpu.liar", pack=wrong)
    honest = replace(fallback.LINEAR, name="cpu.honest")
    kernels = (honest, liar, fallback.LINEAR)
    planner = select.Planner(ruler=latency.Ruler(None), kernels=kernels)
    with pytest.raises(
        ScheduleError, match=r"cpu\.liar and cpu\.honest disagree on linear .* x int4"
    ):
        choose(planner)


def test_a_foreign_target_cannot_be_measured() -> None:
    candidate = select.Candidate(fallback.LINEAR, PROBLEM, fallback.pack(PROBLEM, CONSTANTS))
    with pytest.raises(NybbleError, match="Cannot measure for aarch64 on this machine: it is"):
        latency.Ruler(None)([candidate], resolve("aarch64"))


LIMITS = {
    "x86-64-v3": ("maddubs_maddwd_ymm", "maddubs_paddw_ymm", "fma_ymm"),
    "x86-64-v4": ("maddubs_maddwd_zmm", "maddubs_paddw_zmm", "fma_zmm"),
    "x86-64-v4-vnni": ("vpdpbusd_zmm", "vpdpbusd_zmm", "fma_zmm"),
    "x86-64-v4-amx": ("tdpbusd", "tdpbusd", "fma_zmm"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_those_of_the_target(name: str) -> None:
    target = resolve(name)
    loops = limits.loops(target.features)
    assert tuple(loops[kind] for kind in ("int8", "int4", "float32")) == LIMITS[name]
    if target.features <= host_features():
        assert all(1e9 < rate < 1e13 for rate in limits.multiply_rates(target.features).values())


def test_limits_of_other_machines_are_unknown() -> None:
    assert limits.multiply_rates(resolve("aarch64").features) == {}
    assert [limits.kind_of(d) for d in ("int8", "int3", "float32")] == ["int8", "int4", "float32"]
