"""Matrix products on activations in an order of their own equal the law bit for bit."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import ScheduleError
from nybble.schedules.cpu import arrange, arranged
from nybble.schedules.cpu.headroom import limits_of
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import host_features, resolve
from tests.cases import Arrays, Case
from tests.schedules.cpu import running

pytestmark = pytest.mark.sweep

TARGET = resolve("x86-64-v3")
KERNELS = {kernel.op: kernel for kernel in arranged.KERNELS if kernel.name.endswith("arranged")}
TWOS = {kernel.op: kernel for kernel in arranged.KERNELS if kernel.name.endswith("twos")}
SIGNED = ("int8", "int8")


def conv(name: str, x: tuple[int, ...], channels: int, **kw: object) -> Case:
    w = (channels, 1, 1, x[-1])
    return Case(name, "conv2d", x, w, **kw)  # type: ignore[arg-type]


def operands(case: Case, twos: bool = False) -> Arrays:
    """Weights as those of networks whose largest value is three deviations away, or four."""
    normal = np.random.default_rng(1).normal(0, 32 if twos else 42, case.w)
    return {**case.data(), "w": np.clip(np.rint(normal), -128, 127).astype(np.int8)}


CASES = {
    case.name: case
    for case in (
        conv("plain", (1, 9, 9, 96), 32),
        conv("signed add", (1, 7, 7, 160), 64, dtypes=SIGNED, epilogue="add"),
        conv("three vectors", (1, 6, 5, 144), 24, dtypes=("uint8", "int8"), epilogue="add"),
        conv("one vector", (1, 5, 5, 72), 8, dtypes=SIGNED),
        conv("odd", (2, 3, 5, 113), 40, dtypes=("int8", "uint8")),
        conv("accumulators", (1, 4, 4, 64), 16, dtypes=("uint8", "int32"), epilogue="none"),
        conv("batch", (3, 5, 5, 88), 48, symbolic=True),
        conv("large", (1, 28, 28, 128), 256),
        Case("rows", "linear", (37, 260), (48, 260)),
        Case("long", "linear", (5, 4099), (16, 4099), dtypes=SIGNED),
    )
}


def check(
    case: Case, kind: str, knobs: Knobs | None = None, kernels: dict[str, Kernel] = KERNELS
) -> None:
    """Compiles and runs a case, its activations all at one end of their range, or as they are."""
    if not TARGET.features <= host_features():
        pytest.skip("this CPU has no AVX2")
    kernel, arrays = kernels[case.op], operands(case, kernels is TWOS)
    low, high = (np.iinfo(case.dtypes[0]).min, np.iinfo(case.dtypes[0]).max)
    if kind == "alternating":
        arrays["x"] = np.resize(np.array([high, low], case.dtypes[0]), case.x)
    elif kind != "random":
        arrays["x"] = np.full(case.x, high if kind == "high" else low, case.dtypes[0])
    assert kernel.supports(case.problem(), TARGET) is None
    function = running.compiled(kernel, case, TARGET, knobs)
    got = running.run(kernel, case, function, arrays)
    np.testing.assert_array_equal(got, case.law(arrays))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if i % 2 else ()) for i, n in enumerate(CASES)],
)
def test_equals_the_law(name: str) -> None:
    check(CASES[name], "random")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("signed add", "low"),
        ("odd", "high"),
        pytest.param("odd", "alternating", marks=pytest.mark.slow),
        pytest.param("signed add", "high", marks=pytest.mark.slow),
    ],
)
def test_extremes_equal_the_law(name: str, kind: str) -> None:
    check(CASES[name], kind)


@pytest.mark.parametrize(
    ("shape", "dtypes", "kind"),
    [
        (((2, 3, 5, 600), 40), ("uint8", "int8"), "high"),
        (((1, 3, 3, 527), 16), SIGNED, "low"),
        pytest.param(((1, 5, 5, 1028), 48), ("uint8", "uint8"), "random", marks=pytest.mark.slow),
        pytest.param(((1, 5, 5, 773), 24), SIGNED, "alternating", marks=pytest.mark.slow),
    ],
)
def test_windows_of_two_steps_equal_the_law(
    shape: tuple[tuple[int, ...], int], dtypes: tuple[str, str], kind: str
) -> None:
    check(conv("twos", *shape, dtypes=dtypes, epilogue="add"), kind, kernels=TWOS)


def test_windows_of_two_steps_need_a_long_reduction_of_small_weights() -> None:
    short, long = CASES["plain"], conv("uniform", (1, 5, 5, 640), 32)
    assert "too few" in str(TWOS["conv2d"].supports(short.problem(), TARGET))
    assert TWOS["conv2d"].supports(long.problem(), TARGET) is None
    with pytest.raises(ScheduleError, match="still exceed"):
        TWOS["conv2d"].pack(long.problem(), long.data())


@pytest.mark.parametrize(
    "name", ["three vectors", *(pytest.param(n, marks=pytest.mark.slow) for n in ("large", "rows"))]
)
def test_every_choice_gives_the_same_bits(name: str) -> None:
    case, draw = CASES[name], random.Random(name)
    knobs = Knobs()
    KERNELS[case.op].build(case.problem(), TARGET, knobs)
    knobs.decisions = {knob: draw.choice(choices) for knob, choices in knobs.space.items()}
    check(case, "random", knobs)


def test_refuses_what_needs_no_order_and_what_none_helps() -> None:
    case = CASES["plain"]
    kernel, arrays = KERNELS["conv2d"], operands(case)
    with pytest.raises(ScheduleError, match="no pair exceeds"):
        kernel.pack(case.problem(), {**arrays, "w": arrays["w"] // 3})
    with pytest.raises(ScheduleError, match="16 bits"):
        kernel.pack(case.problem(), {**arrays, "w": np.full_like(arrays["w"], 127)})
    assert "no matrix product" in str(
        kernel.supports(replace(case, w=(32, 3, 3, 96)).problem(), TARGET)
    )
    narrow = replace(case, weights="int4").problem()
    assert "need no order" in str(kernel.supports(narrow, TARGET))
    assert "vpmaddubsw" in str(kernel.supports(case.problem(), resolve("x86-64-v4")))


@settings(max_examples=20)
@given(
    st.integers(2, 70), st.sampled_from([1, 2, 3]), st.integers(1, 3), st.sampled_from([1, 2]),
    st.integers(0, 99),
)  # fmt: skip
def test_orders_permute_blocks_and_help(
    k: int, vectors: int, units: int, flush: int, seed: int
) -> None:
    rng, limits, unit = np.random.default_rng(seed), limits_of("uint8"), 8 * vectors
    weights = (rng.integers(-128, 128, (units * unit, k)) // flush).astype(np.int8)
    found = arrange.orders(weights, unit, 8, limits, flush)
    blocks = np.arange(k) // arrange.BLOCK
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(k), (units, 1)))
    np.testing.assert_array_equal(blocks[found], np.tile(blocks, (units, 1)))

    def exceeding(order: np.ndarray) -> int:
        moved = np.take_along_axis(weights, np.repeat(order, unit, axis=0), axis=1).astype(int)
        windows = k // (4 * flush)
        whole = moved[:, : windows * 4 * flush]
        lanes = whole.reshape(len(moved), windows, flush, 2, 2)  # a step has two lanes of two
        over = np.maximum(lanes, 0).sum((2, 4)) > limits.positive
        over |= np.maximum(-lanes, 0).sum((2, 4)) > limits.negative
        over = over.reshape(len(moved), 2 * windows)
        return int(over.reshape(len(moved) // 8, 8, 2 * windows).any(axis=1).sum())

    assert exceeding(found) <= exceeding(np.tile(np.arange(k), (units, 1)))


def test_shuffling_by_the_indices_is_the_order() -> None:
    rng, k = np.random.default_rng(1), 43
    found = arrange.orders(
        rng.integers(-128, 128, (8, k)).astype(np.int8), 8, 8, limits_of("int8"), 1
    )
    table, x = arrange.indices(found)[0], rng.integers(0, 256, k).astype(np.uint8)
    got = []
    for start in range(0, k, arrange.BLOCK):
        block = x[min(start, k - arrange.BLOCK) :][: arrange.BLOCK]
        picked = table[start : start + arrange.BLOCK]
        got.append(np.where(picked < arrange.ZERO, block[picked % arrange.BLOCK], 0))
    np.testing.assert_array_equal(np.concatenate(got)[:k], x[found[0]])
