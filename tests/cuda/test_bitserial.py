"""Bit-serial kernels equal the law bit for bit: every pair of planes, windows, tails, choices."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nybble.schedules.cuda import bit_planes, stream_plan
from nybble.schedules.cuda.bit_layout import bit_layout_of
from nybble.schedules.cuda.bitserial import KERNELS, work_of
from nybble.schedules.kernel import Kernel, Knobs, Problem, TensorSpec
from tests.cases import Case
from tests.cuda.layers import check, gpu
from tests.cuda.opcodes import check_registers, code_of
from tests.low_cases import LOW, LOW_LINEAR

slow = pytest.mark.slow
ARCHS = ("sm_80", "sm_75")


def family(case: Case) -> Kernel:
    """The kernel of a case's op."""
    return next(kernel for kernel in KERNELS if kernel.op == case.op)


def possible() -> list[Case]:
    """The rows that the kernels take."""
    target = gpu("sm_80")
    return [c for c in (*LOW, *LOW_LINEAR) if family(c).refuses(c.problem(), target) is None]


CASES = possible()
QUICK = {  # one for each of what differs
    "low 3x3 signs unpadded", "low 3x3 add", "low 3x3 stride 2", "low pad value", "low 1x1",
    "low batch", "low odd everything", "low K=33 int2 uint4 random", "low K=255 int1 int1 low",
    "low K=1 int1 int8 high",
}  # fmt: skip


def rows() -> list[Any]:
    """Every case, on Ampere and Turing in turn; what is quick, and on the other one when slow."""
    found = []
    for i, case in enumerate(CASES):
        for j, arch in enumerate(ARCHS):
            quick = case.name in QUICK and i % 2 == j
            found.append(
                pytest.param(case, arch, marks=() if quick else slow, id=f"{case.name} {arch}")
            )
    return found


@pytest.mark.parametrize(("case", "arch"), rows())
def test_equals_the_law(case: Case, arch: str) -> None:
    check(family(case), case, arch)


def test_the_quick_rows_exist() -> None:
    assert {case.name for case in CASES} >= QUICK
    assert {case.op for case in CASES} == {"conv2d", "linear"}


PAIRS = [
    (f"{ws}int{w}", f"{xs}int{x}")
    for w in range(1, 9)
    for x in range(1, 8 // w + 1)
    for ws in ("", "u")
    for xs in ("", "u")
]


def pair(weights: str, activations: str, operands: str = "random") -> Case:
    """A linear layer with tails everywhere."""
    return Case(
        "pair", "linear", (3, 281), (21, 281), dtypes=(activations, "int32"), weights=weights,
        epilogue="none", operands=operands,
    )  # fmt: skip


@pytest.mark.parametrize(("weights", "activations"), [("int1", "uint3"), ("uint2", "int4")])
def test_pairs_of_planes(weights: str, activations: str) -> None:
    case = pair(weights, activations)
    for arch in ARCHS:
        check(family(case), case, arch)


@slow
@pytest.mark.parametrize("operands", ["random", "low", "high"])
@pytest.mark.parametrize(("weights", "activations"), PAIRS)
def test_every_pair_of_planes(weights: str, activations: str, operands: str) -> None:
    case = pair(weights, activations, operands)
    for arch in ARCHS:
        check(family(case), case, arch)


# ---------------------------------------------------------------- choices

WIDE = Case(
    "wide", "linear", (19, 1100), (70, 1100), dtypes=("uint2", "int32"), weights="int2",
    epilogue="none",
)  # fmt: skip
NARROW = replace(WIDE, weights="int1", dtypes=("uint1", "int32"))  # its sums leave more registers


@pytest.mark.parametrize(("case", "decisions"), [
    (WIDE, {"operands": 2, "across": 1, "along": 2, "stages": 4, "splits": 2}),
    pytest.param(
        WIDE, {"operands": 1, "across": 2, "along": 4, "stages": 2, "splits": 1}, marks=slow
    ),
    pytest.param(
        NARROW, {"operands": 4, "across": 4, "along": 1, "stages": 4, "splits": 4}, marks=slow
    ),
])  # fmt: skip
def test_every_choice_gives_the_same_bits(case: Case, decisions: dict[str, int]) -> None:
    check(family(case), case, "sm_80", Knobs(dict(decisions)))


def test_activations_in_several_chunks() -> None:
    decisions = {"operands": 1, "along": 1, "splits": 1}
    plan = family(WIDE).plan(WIDE.problem(), gpu("sm_75"), Knobs(dict(decisions)))
    assert plan.chunks > 1
    check(family(WIDE), WIDE, "sm_75", Knobs(dict(decisions)))


@pytest.mark.parametrize("own", [True, False])
def test_planes_made_apart_or_while_loading(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bit_planes, "FEW", 1 if own else 1 << 30)
    case = next(case for case in CASES if case.name == "low 3x3 stride 2")
    report = check(family(case), case, "sm_80")
    assert bool(report.instructions["st.global.b32"]) is own  # outputs are bytes


# ---------------------------------------------------------------- refusals


def test_many_pairs_are_refused() -> None:
    case = pair("int4", "uint3")
    reason = family(case).refuses(case.problem(), gpu("sm_80"))
    assert reason == "12 pairs of bit planes, more than 8: 8 bits are as fast"


def test_few_channels_are_avoided_not_refused() -> None:
    case = next(case for case in CASES if case.name == "low pad value")
    target = gpu("sm_80")
    assert family(case).refuses(case.problem(), target) is None
    reason = family(case).avoids(case.problem(), target)
    assert reason is not None
    assert "fill less than half" in reason


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize(("weights", "activations"), [("int1", "uint4"), ("int2", "uint2")])
def test_counts_are_sums_of_planes(weights: str, activations: str) -> None:
    case = pair(weights, activations)
    layout, w = bit_layout_of(case.problem()), case.data()["w"]
    want = w.sum(axis=1, dtype=np.int64)
    if weights == "int1":
        want = want - w.shape[1]  # Σ w = K - 2·(number of minus signs)
    np.testing.assert_array_equal(layout.counts(w), want)


# ---------------------------------------------------------------- machine code


def inspect(weights: str, activations: str, arch: str) -> None:
    """Products of 1 bit in hardware, loads of 16 bytes, no local memory."""
    problem = Problem(
        "linear", (TensorSpec((64, 4096), activations),), TensorSpec((64, 4096), "int32"),
        weights=TensorSpec((4096, 4096), weights),
    )  # fmt: skip
    kernel = next(kernel for kernel in KERNELS if kernel.op == "linear")
    target = gpu(arch)
    plan = kernel.plan(problem, target, Knobs())
    code = code_of(kernel.build(problem, target, Knobs()), arch)
    check_registers(code, 32 * plan.warps, stream_plan.slots(work_of(problem), target, plan))
    wanted = [r"BMMA\.88128\.XOR\.POPC"] if arch == "sm_75" else [r"BMMA\.168256\.AND\.POPC"]
    wanted.append(r"LDG\.E\.128" if arch == "sm_75" else r"LDGSTS.*\.128")
    for pattern in wanted:
        assert code.has(pattern), (pattern, code.counts)


def test_machine_code() -> None:
    inspect("int1", "uint4", "sm_90")


@slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"])
@pytest.mark.parametrize(
    ("weights", "activations"),
    [("int1", "int1"), ("int1", "uint4"), ("int2", "uint2"), ("int2", "uint4")],
)
def test_machine_code_everywhere(weights: str, activations: str, arch: str) -> None:
    inspect(weights, activations, arch)
