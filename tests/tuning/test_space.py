"""The space of a task: plans ask the knobs that builds ask, draws are legal, all bits are equal."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from nybble.errors import ScheduleError
from nybble.schedules.kernel import Kernel, Knobs, Problem
from nybble.schedules.table import KERNELS
from nybble.schedules.target import CpuTarget, host_features, resolve
from nybble.tuning.space import Drawn, Variant, variants_of
from nybble.tuning.tasks import Point
from tests import cases, low_cases, weight_only_cases
from tests.cases import Case
from tests.schedules.cpu import running
from tests.tuning.layers import task_of
from tests.tuning.synthetic import FEW

LEVELS = ("x86-64-v3", "x86-64-v4-vnni", "x86-64-v4-amx", "aarch64-i8mm", "riscv64-v")
EVERY: tuple[Any, ...] = (
    *cases.CONV, *cases.DEPTHWISE, *cases.QUADS, *cases.LINEAR, *low_cases.LOW,
    *low_cases.LOW_LINEAR, *weight_only_cases.CASES,
)  # fmt: skip
QUICK = (
    "cpu.int8.avx2", "cpu.int8.winograd.avx2", "cpu.int8.depthwise.avx2",
    "cpu.int8.depthwise.quads.avx2",
)  # fmt: skip
CONV = Case("conv", "conv2d", (1, 12, 12, 32), (32, 3, 3, 32), padding=(1, 1, 1, 1))


def planned() -> Iterator[Any]:
    """A case for every kernel with knobs, of each op; most of them are slow tests."""
    for kernel in KERNELS:
        marks = () if kernel.op == "conv2d" and kernel.name in QUICK else pytest.mark.slow
        yield pytest.param(kernel, id=f"{kernel.name} {kernel.op}", marks=marks)


def fitting(kernel: Kernel) -> tuple[Case, CpuTarget] | None:
    """The first case that a kernel compiles, and a machine for which it does."""
    for target in map(resolve, LEVELS):
        if kernel.arch not in (None, target.arch):
            continue
        for case in EVERY:
            problem = problem_of(case)
            if kernel.op == problem.op and kernel.refuses(problem, target) is None:
                return case, target
    return None


@cache
def problem_of(case: Any) -> Problem:
    """A case's problem, which takes its data to tell."""
    found: Problem = case.problem()
    return found


@pytest.mark.parametrize("kernel", list(planned()))
def test_a_plan_asks_what_a_build_asks(kernel: Kernel) -> None:
    found = fitting(kernel)
    if found is None:
        pytest.skip("no case of the tests is for it")
    case, target = found
    rng, problem = random.Random(0), problem_of(case)
    drawn = Drawn(random=rng)
    kernel.plan(problem, target, drawn)
    built = Knobs(dict(drawn.taken))
    kernel.build(problem, target, built)
    assert built.space == drawn.space
    assert set(drawn.taken) == set(drawn.space)


def variant(case: Case = CONV, name: str = "cpu.int8.avx2") -> Variant:
    kernel = next(k for k in KERNELS if (k.name, k.op) == (name, case.op))
    return Variant(kernel, case.problem(), resolve("x86-64-v3"), {"parallel": False})


def test_draws_are_legal_and_complete() -> None:
    one, rng = variant(), random.Random(1)
    every = set(one.every())
    drawn = [one.draw(rng) for _ in range(60)]
    assert set(drawn) <= every
    assert len(set(drawn)) > 30
    assert one.default() in every
    assert {dict(point.decisions)["parallel"] for point in every} == {False}
    names = {"parallel", "rows", "splits", "tile"}
    assert {frozenset(dict(point.decisions)) for point in drawn} == {frozenset(names)}


def test_children_are_legal_and_near_their_parents() -> None:
    one, rng = variant(), random.Random(2)
    every, parents = set(one.every()), [one.draw(rng) for _ in range(12)]
    for parent in parents:
        mutant = one.mutate(parent, rng)
        assert mutant in every
        assert mutant != parent
        mate = rng.choice(parents)
        child = one.cross(parent, mate, rng)
        assert child in every
        assert one.cross(parent, parent, rng) == parent


def test_a_kernel_without_knobs_has_one_point() -> None:
    one = variant(CONV, "cpu.generic")
    assert list(one.every()) == [one.default()] == [Point("cpu.generic", "int8")]
    assert one.mutate(one.default(), random.Random(0)) == one.default()


def test_decisions_that_are_not_legal_any_more_are_drawn_anew() -> None:
    one = variant()
    kept = one.draw(random.Random(3), {"tile": "1x4x2", "rows": 999})
    assert dict(kept.decisions)["tile"] == "1x4x2"
    assert kept in set(one.every())


def test_one_thread_is_not_told_to_be_several(tmp_path: Path) -> None:
    target = resolve("x86-64-v3")
    for threads in (1, 2):
        found = variants_of(task_of(FEW, tmp_path, threads, target))
        assert found[0].kernel.name.startswith("cpu.int8.avx2")
        assert "cpu.generic" not in [one.kernel.name for one in found]
        parallel = {dict(p.decisions)["parallel"] for p in found[0].every()}
        assert parallel == ({False} if threads == 1 else {False, True})


def test_narrow_weights_may_be_stored_in_bytes(tmp_path: Path) -> None:
    narrow = Case("narrow", "linear", (8, 64), (32, 64), weights="int4")
    found = variants_of(task_of(narrow, tmp_path, 1, resolve("x86-64-v3")))
    assert {one.weights for one in found} == {"int4", "int8"}
    assert len({(one.kernel.name, one.weights) for one in found}) == len(found)


def test_points_survive_json() -> None:
    point = variant().draw(random.Random(4))
    assert Point.from_dict(point.as_dict()) == point


# ---------------------------------------------------------------- every choice, the same bits


def runnable() -> list[tuple[Kernel, Case, CpuTarget]]:
    """Kernels with knobs that this machine runs, each with the cases that it compiles."""
    found = []
    for level in LEVELS[:2]:
        target = resolve(level)
        if not target.features <= host_features():
            continue
        for kernel in KERNELS:
            for case in (
                *cases.CONV[:9],
                *cases.DEPTHWISE[:3],
                *cases.LINEAR[:4],
                *low_cases.LOW[:4],
            ):
                if kernel.op == case.op and kernel.refuses(problem_of(case), target) is None:
                    found.append((kernel, case, target))
    return found


@pytest.mark.slow
@given(st.data())
@settings(
    max_examples=150,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_every_legal_choice_gives_the_same_bits(data: st.DataObject) -> None:
    every = runnable()
    if not every:
        pytest.skip("this CPU has no AVX2")
    kernel, case, target = data.draw(st.sampled_from(every))
    seed = data.draw(st.integers(0, 1 << 16))
    point = Variant(kernel, case.problem(), target).draw(random.Random(seed))
    try:
        kernel.constants(case.problem(), case.data())
    except ScheduleError:  # its values are beyond the kernel
        reject()
    running.check(kernel, case, target, point.knobs())


def test_small_images_may_be_transformed(tmp_path: Path) -> None:
    """A kernel that is slow as far as is known is in the space, though never taken by default."""
    small = replace(CONV, x=(1, 6, 6, 32))
    task = task_of(small, tmp_path, 1, resolve("x86-64-v3"))
    names = [one.kernel.name for one in variants_of(task)]
    assert "cpu.int8.winograd.avx2" in names
    assert "winograd" not in task.reference.kernel
