"""Depthwise kernels equal the law bit for bit, whatever the knobs."""

import random
from dataclasses import replace

import pytest

from nybble.schedules.cpu import depthwise
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.select import Planner, choose
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import CONV, DEPTHWISE, MULTIPLIED
from tests.schedules.cpu import running
from tests.schedules.cpu.test_conv import TARGETS, rows

pytestmark = pytest.mark.sweep

CASES = {case.name: case for case in DEPTHWISE + MULTIPLIED}


def family(isa: str) -> tuple[Kernel, CpuTarget]:
    """The int8 kernel of an instruction set, and its target; skips where this CPU lacks it."""
    target = resolve(TARGETS[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    return next(k for k in depthwise.KERNELS if k.name == f"cpu.int8.depthwise.{isa}"), target


@pytest.mark.parametrize(("isa", "name"), list(rows(CASES)))
def test_equals_the_law(isa: str, name: str) -> None:
    kernel, target = family(isa)
    assert kernel.supports(CASES[name].problem(), target) is None
    running.check(kernel, CASES[name], target)


@pytest.mark.parametrize(("isa", "name"), list(rows(("dw 3x3 add", "dw 4x2", "dw batch"))))
def test_every_choice_gives_the_same_bits(isa: str, name: str) -> None:
    kernel, target = family(isa)
    draw = random.Random(name)
    for _ in range(2):
        knobs = Knobs()
        kernel.build(CASES[name].problem(), target, knobs)
        knobs.decisions = {knob: draw.choice(choices) for knob, choices in knobs.space.items()}
        running.check(kernel, CASES[name], target, knobs)


def test_refuses_what_is_not_depthwise() -> None:
    kernel, target = family("avx2")
    grouped = next(case for case in CONV if case.name == "grouped")
    assert "not depthwise" in str(kernel.supports(grouped.problem(), target))


def test_refuses_multipliers_that_share_no_vectors() -> None:
    kernel, target = family("avx2")
    three = replace(CASES["dw x8"], w=(9, 3, 3, 1))
    assert "3 outputs of an input channel share" in str(kernel.supports(three.problem(), target))


def test_multiplied_channels_take_the_fast_kernel_everywhere() -> None:
    case = CASES["dw x2"]
    problem, arrays = case.problem(), case.data()
    constants = {name: a for name, a in arrays.items() if name not in ("x", "b")}
    for name, kernel in (("x86-64-v3", "avx2"), ("x86-64-v4-vnni", "vnni"), ("aarch64", "neon")):
        found = choose(problem, constants, resolve(name), Planner()).candidate
        assert found.kernel.name == f"cpu.int8.depthwise.{kernel}"
