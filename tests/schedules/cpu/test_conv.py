"""Blocked convolution and linear kernels equal the law bit for bit, whatever the knobs."""

import dataclasses
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from nybble.errors import ScheduleError
from nybble.schedules.cpu import conv
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import CONV, LINEAR, Case
from tests.schedules.cpu import running

pytestmark = pytest.mark.sweep

TARGETS = {"vnni": "x86-64-v4-vnni", "avx512": "x86-64-v4", "avx2": "x86-64-v3"}
OTHERS: dict[str, Any] = {
    "avx512.pairs": "x86-64-v4",
    "avx2.pairs": "x86-64-v3",
    "avxvnni": {"kind": "llvm", "mcpu": "alderlake", "mtriple": "x86_64-linux-gnu"},
}
CASES = {case.name: case for case in CONV + LINEAR}
KNOB_CASES = ("3x3 add", "odd everything", "1x1 tails", "grouped odd", "big batch", "one row")


def family(isa: str, case: Case) -> tuple[Kernel, CpuTarget]:
    """The int8 kernel of an instruction set, and its target; skips where this CPU lacks it."""
    target = resolve((TARGETS | OTHERS)[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    name = f"cpu.int8.{isa}"
    return next(k for k in conv.KERNELS if (k.name, k.op) == (name, case.op)), target


def rows(names: Iterable[str]) -> Iterator[Any]:
    """Every case on one instruction set now, alternating; on the others when there is time."""
    for i, name in enumerate(names):
        for isa in TARGETS:
            now = isa == ("avx2", "vnni")[i % 2]
            yield pytest.param(isa, name, marks=() if now else pytest.mark.slow)


@pytest.mark.parametrize(("isa", "name"), list(rows(CASES)))
def test_equals_the_law(isa: str, name: str) -> None:
    case = CASES[name]
    kernel, target = family(isa, case)
    assert kernel.supports(case.problem(), target) is None
    running.check(kernel, case, target)


@pytest.mark.parametrize("name", ["3x3 signed", "1x1 tails", "grouped odd", "big batch"])
def test_vnni_of_256_bits(name: str) -> None:
    case = CASES[name]
    kernel, target = family("avxvnni", case)
    assert kernel.supports(case.problem(), target) is None
    running.check(kernel, case, target)


@pytest.mark.parametrize(("isa", "name"), list(rows(KNOB_CASES)))
def test_every_choice_gives_the_same_bits(isa: str, name: str) -> None:
    case = CASES[name]
    kernel, target = family(isa, case)
    draw = random.Random(name)
    for _ in range(2):
        running.check(kernel, case, target, sample(kernel, case, target, draw))


def sample(kernel: Kernel, case: Case, target: CpuTarget, draw: random.Random) -> Knobs:
    """A random point of the space; later choices depend on earlier ones, so one knob at a time."""
    knobs = Knobs()
    while True:
        knobs.space.clear()
        kernel.build(case.problem(), target, knobs)
        missing = [name for name in knobs.space if name not in knobs.decisions]
        if not missing:
            return knobs
        knobs.decisions[missing[0]] = draw.choice(knobs.space[missing[0]])


@pytest.mark.parametrize("parallel", [False, True])
def test_threads_do_not_matter(parallel: bool) -> None:
    case = CASES["3x3 add unsigned"]
    kernel, target = family("avx2", case)
    knobs = Knobs({"parallel": parallel, "splits": 2, "tile": "1x7x1"})
    running.check(kernel, case, target, knobs)


def test_the_batch_is_chosen_at_run_time() -> None:
    case = CASES["big batch"]
    kernel, target = family("avx2", case)
    function = running.compiled(kernel, case, target)
    for batch in (1, 2, 5, 12, 64):
        other = dataclasses.replace(case, x=(batch, case.x[1]))
        arrays = other.data(batch)
        np.testing.assert_array_equal(
            running.run(kernel, other, function, arrays), other.law(arrays)
        )


def test_refuses_in_words() -> None:
    case = CASES["3x3"]
    kernel, target = family("avx2", case)
    problem = case.problem()
    rounding = dataclasses.replace(problem.epilogue, rounding="tflite")
    assert "tflite" in str(kernel.supports(dataclasses.replace(problem, epilogue=rounding), target))
    assert "avx2" in str(kernel.supports(problem, resolve("x86-64")))
    assert "avx2" in str(kernel.supports(problem, resolve("aarch64")))
    depthwise = dataclasses.replace(case, w=(32, 3, 3, 1), groups=32)
    assert "fill no vector" in str(kernel.supports(depthwise.problem(), target))


def test_a_branch_beyond_32_bits_is_refused() -> None:
    case = CASES["3x3 add"]
    kernel, _ = family("avx2", case)
    arrays = case.data()
    arrays["shift_b"] = np.ones_like(arrays["shift_b"])
    with pytest.raises(ScheduleError, match="second branch"):
        running.arguments(kernel, case, arrays)
