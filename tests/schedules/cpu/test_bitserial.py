"""Bit-serial kernels equal the law bit for bit: every pair of planes and shape."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nybble.schedules.cpu import bitserial
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import LOW, LOW_LINEAR, Case
from tests.schedules.cpu import running

TARGETS = {"avx2": "x86-64-v3", "avx512": "x86-64-v4-amx"}
WIDTHS = [
    *(("int1", f"{sign}int{bits}") for bits in range(1, 5) for sign in ("", "u")),
    *(("uint1", f"{sign}int{bits}") for bits in (1, 2) for sign in ("", "u")),
    *(("int2", f"{sign}int{bits}") for bits in (1, 2) for sign in ("", "u")),
]


def family(isa: str, case: Case) -> tuple[Kernel, CpuTarget]:
    """The kernel of an instruction set, and its target; skips where this CPU lacks it."""
    target = resolve(TARGETS[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    name = f"cpu.bitserial.{isa}"
    return next(k for k in bitserial.KERNELS if (k.name, k.op) == (name, case.op)), target


def possible(cases: tuple[Case, ...]) -> dict[str, Case]:
    """The rows that the kernels take."""
    target = resolve("x86-64-v3")
    kernels = {k.op: k for k in bitserial.KERNELS if k.name == "cpu.bitserial.avx2"}
    return {c.name: c for c in cases if kernels[c.op].supports(c.problem(), target) is None}


CASES = possible((*LOW, *LOW_LINEAR))


def rows() -> Iterator[Any]:
    """Every case on one instruction set now, alternating; on the other when there is time."""
    for i, name in enumerate(CASES):
        for j, isa in enumerate(TARGETS):
            yield pytest.param(isa, name, marks=() if i % 2 == j else pytest.mark.slow)


@pytest.mark.parametrize(("isa", "name"), list(rows()))
def test_equals_the_law(isa: str, name: str) -> None:
    kernel, target = family(isa, CASES[name])
    running.check(kernel, CASES[name], target)


def test_the_rows_cover_the_kernels() -> None:
    assert {case.op for case in CASES.values()} == {"conv2d", "linear"}
    assert len(CASES) >= 20


@pytest.mark.parametrize(("weights", "activations"), WIDTHS)
@pytest.mark.parametrize("operands", ["random", pytest.param("low", marks=pytest.mark.slow)])
def test_every_pair_of_planes(weights: str, activations: str, operands: str) -> None:
    case = Case(
        "pair", "linear", (3, 1203), (21, 1203), dtypes=(activations, "int32"), weights=weights,
        epilogue="none", operands=operands,
    )  # fmt: skip
    kernel, target = family("avx2", case)
    running.check(kernel, case, target)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(threads: int) -> None:
    case = CASES["low 3x3 W1A2"]
    kernel, target = family("avx2", case)
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    running.check(kernel, case, target, Knobs({"parallel": True, "splits": 2}))


@st.composite
def small_layers(draw: st.DrawFn) -> Case:
    """Convolutions of odd shapes, in every pair of planes; signs are not padded."""
    groups = draw(st.sampled_from([1, 1, 2]))
    inside = draw(st.integers(32, 70))
    weights, activations = draw(st.sampled_from(WIDTHS))
    image = draw(st.tuples(st.integers(1, 2), st.integers(4, 8), st.integers(4, 8)))
    outputs, *size = draw(st.tuples(st.integers(1, 20), st.integers(1, 3), st.integers(1, 3)))
    return Case(
        "small", "conv2d", (*image, groups * inside), (groups * outputs, *size, inside),
        strides=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        padding=draw(st.tuples(*[st.integers(0, 2)] * 4)),
        pad_value=1 if activations == "int1" else 0,
        groups=groups,
        dtypes=(activations, "int32"),
        weights=weights,
        epilogue="none",
        operands=draw(st.sampled_from(["random", "high", "low", "alternating"])),
    )  # fmt: skip


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(small_layers())
def test_small_layers(case: Case) -> None:
    kernel, target = family("avx2", case)
    assert kernel.supports(case.problem(), target) is None
    running.check(kernel, case, target)


def test_refuses_in_words() -> None:
    case = CASES["low 3x3 W1A1"]
    kernel, target = family("avx2", case)

    def reason(target: CpuTarget = target, **changed: Any) -> str:
        return str(kernel.supports(dataclasses.replace(case, **changed).problem(), target))

    assert "avx2" in reason(resolve("x86-64"))
    assert "pairs of bit planes" in reason(weights="int2", dtypes=("uint4", "int8"))
    assert "no sign" in reason(dtypes=("int1", "int8"))
    assert "fill no word" in reason(x=(1, 9, 11, 16), w=(64, 3, 3, 16))
    assert reason() == "None"
