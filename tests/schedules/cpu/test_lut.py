"""Look-up kernels equal the law bit for bit: every pair of widths and shape, whatever the knobs."""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nybble.ir import numerics
from nybble.schedules.cpu import lut
from nybble.schedules.cpu.lut_scheme import scheme_of
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import Case
from tests.low_cases import LOW, LOW_LINEAR
from tests.schedules.cpu import running

pytestmark = pytest.mark.sweep

TARGETS = {"avx2": "x86-64-v3", "avx512": "x86-64-v4"}
CASES = {case.name: case for case in (*LOW, *LOW_LINEAR)}
WEIGHTS = ("int1", "uint1", "int2", "uint2", "int3", "int4")
ACTIVATIONS = tuple(f"{sign}int{bits}" for bits in range(1, 9) for sign in ("u", ""))
KNOB_CASES = ("low 3x3 add", "low odd everything", "low big batch", "low one row")


def family(isa: str, case: Case, name: str = "lut") -> tuple[Kernel, CpuTarget]:
    """The kernel of an instruction set, and its target; skips where this CPU lacks it."""
    target = resolve(TARGETS[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    both = lut.KERNELS + lut.PRODUCTS
    return next(k for k in both if (k.name, k.op) == (f"cpu.{name}.{isa}", case.op)), target


def rows(names: Any) -> Iterator[Any]:
    """Every case on one instruction set now, alternating; on the other when there is time."""
    for i, name in enumerate(names):
        for j, isa in enumerate(TARGETS):
            yield pytest.param(isa, name, marks=() if i % 2 == j else pytest.mark.slow)


@pytest.mark.parametrize(("isa", "name"), list(rows(CASES)))
def test_equals_the_law(isa: str, name: str) -> None:
    case = CASES[name]
    kernel, target = family(isa, case)
    running.check(kernel, case, target)


def width_pairs() -> Iterator[Any]:
    for i, weights in enumerate(WEIGHTS):
        for j, activations in enumerate(ACTIVATIONS):
            now = (i * 5 + j) % 8 == 0
            yield pytest.param(weights, activations, marks=() if now else pytest.mark.slow)


@pytest.mark.parametrize(("weights", "activations"), list(width_pairs()))
@pytest.mark.parametrize("operands", ["random", pytest.param("low", marks=pytest.mark.slow)])
def test_every_pair_of_widths(weights: str, activations: str, operands: str) -> None:
    case = Case(
        "pair", "linear", (3, 203), (37, 203), dtypes=(activations, "int32"), weights=weights,
        epilogue="none", operands=operands,
    )  # fmt: skip
    kernel, target = family("avx2", case)
    running.check(kernel, case, target)


@pytest.mark.parametrize(
    ("isa", "name"), list(rows(name for name, case in CASES.items() if case.weights == "int2"))
)
def test_products_equal_the_law(isa: str, name: str) -> None:
    case = CASES[name]
    kernel, target = family(isa, case, "products")
    running.check(kernel, case, target)


@pytest.mark.parametrize("activations", ["uint8", "int8", "int5", "uint3", "int2", "uint1"])
@pytest.mark.parametrize("weights", ["int2", "uint2"])
def test_products_of_every_width(weights: str, activations: str) -> None:
    case = Case(
        "pair", "linear", (3, 203), (37, 203), dtypes=(activations, "int32"), weights=weights,
        epilogue="none", operands="low" if weights == "int2" else "high",
    )  # fmt: skip
    kernel, target = family("avx2", case, "products")
    running.check(kernel, case, target)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_no_byte_and_no_word_can_overflow(weights: str, activations: str) -> None:
    ends = numerics.limits(activations)
    for products in (False, True) if weights in ("int2", "uint2") else (False,):
        scheme = scheme_of(weights, activations, products)
        corners = np.array(np.meshgrid(*[[*ends, 0]] * scheme.group)).reshape(scheme.group, -1).T
        largest = max(int(scheme.table(corner.tolist()).max()) for corner in corners)
        assert scheme.flush >= 2
        assert scheme.flush * largest <= 255
        # Corners hold the extremes of the sums; of the low table, 2^split - 1 is the bound.
        assert scheme.flush * ((1 << scheme.split) - 1) <= 255


@pytest.mark.parametrize("name", KNOB_CASES)
def test_every_choice_gives_the_same_bits(name: str) -> None:
    case = CASES[name]
    kernel, target = family("avx2", case)
    draw = random.Random(name)
    for _ in range(2):
        knobs = Knobs()
        kernel.build(case.problem(), target, knobs)
        for knob in list(knobs.space):
            if knob in knobs.space:  # a choice may change what later ones can be
                knobs.decisions[knob] = draw.choice(knobs.space[knob])
                later = {k: v for k, v in knobs.decisions.items() if k in list(knobs.space)}
                knobs = Knobs(later)
                kernel.build(case.problem(), target, knobs)
        running.check(kernel, case, target, knobs)


@pytest.mark.parametrize("name", ["low 3x3 add", "low many rows"])
def test_threads_do_not_matter(name: str) -> None:
    case = CASES[name]
    kernel, target = family("avx2", case)
    configure = tvm.get_global_func("runtime.config_threadpool")
    for threads in (1, 2):
        configure(1, threads)
        running.check(kernel, case, target, Knobs({"parallel": True}))


def test_the_batch_is_chosen_at_run_time() -> None:
    case = CASES["low big batch"]
    kernel, target = family("avx2", case)
    function = running.compiled(kernel, case, target)
    for batch in (1, 2, 5, 12, 64):
        other = dataclasses.replace(case, x=(batch, case.x[1]))
        arrays = other.data(batch)
        np.testing.assert_array_equal(
            running.run(kernel, other, function, arrays), other.law(arrays)
        )


@st.composite
def small_layers(draw: st.DrawFn) -> Case:
    """Convolutions of odd shapes and widths."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c = draw(st.integers(1, 13)) if groups == 1 else 4 * draw(st.integers(1, 2)) * groups
    size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    image = [draw(st.integers(4, 9)) for _ in range(2)]
    return Case(
        "small", "conv2d", (draw(st.integers(1, 2)), *image, c),
        (groups * draw(st.integers(1, 40)), *size, c // groups),
        strides=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=draw(st.tuples(*[st.integers(0, 2)] * 4)),
        groups=groups,
        dtypes=(draw(st.sampled_from(ACTIVATIONS)), draw(st.sampled_from(["int32", "uint4"]))),
        weights=draw(st.sampled_from(WEIGHTS)),
        epilogue="requantize",
        operands=draw(st.sampled_from(["random", "high", "low", "alternating"])),
    )  # fmt: skip


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(small_layers())
def test_small_layers(case: Case) -> None:
    if case.dtypes[1] == "int32":
        case = dataclasses.replace(case, epilogue="none")
    kernel, target = family("avx2", case)
    running.check(kernel, case, target)


def test_refuses_in_words() -> None:
    case = CASES["low 3x3"]
    kernel, target = family("avx2", case)

    def reason(target: CpuTarget = target, **changed: Any) -> str:
        return str(kernel.supports(dataclasses.replace(case, **changed).problem(), target))

    assert "avx2" in reason(resolve("x86-64"))
    assert "avx2" in reason(resolve("aarch64"))
    assert "planes" in reason(weights="int8")
    one_bit = dataclasses.replace(case, weights="int1").problem()
    assert "two bits" in str(lut.PRODUCTS[0].supports(one_bit, resolve("x86-64-v4")))
    assert "straddle" in reason(w=(32, 3, 3, 2), groups=16)
    assert reason() == "None"
