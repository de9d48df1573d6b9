"""Weight-only kernels for many rows on Hopper keep the bound of the law."""

import dataclasses

import numpy as np
import pytest

from nybble.schedules.cuda.weight_only_wgmma import KERNELS
from nybble.schedules.kernel import Epilogue, Kernel, Knobs
from nybble.schedules.select import Planner, choose
from tests.cuda import halves
from tests.cuda.halves import half, whole_numbers
from tests.cuda.layers import gpu
from tests.cuda.opcodes import check_registers, code_of
from tests.weight_only_cases import Case

slow = pytest.mark.slow


def family(case: Case) -> Kernel:
    """The kernel of a case's width."""
    return halves.kernel_of(case, KERNELS, ".wgmma")


CASES = (
    half((9, 130), 40, 64, "int4"),
    half((3, 100), 33, 20, "uint3", zeros="each"),
    half((2, 130), 20, 1000, "int8", operands="low"),
)
MORE_CASES = (
    half((33, 130), 140, 64, "int4"),
    *(half((5, 300), 40, 128, f"int{bits}") for bits in (2, 3, 5, 6, 7, 8)),
    *(half((70, 200), 33, group, "uint4", zeros="each") for group in (7, 32, 64, 96, 256, 1000)),
    *(half((5, 300), 150, 48, "int8", book=book, operands="high") for book in ("nf4", "fp4")),
    half((65, 1), 1, 64, "int2"),
    half((2, 33, 257), 129, 100, "uint8", zeros="each"),
    half((67, 128), 40, 64, "int4", symbolic=True),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_keeps_the_bound(case: Case) -> None:
    halves.check(family(case), case, "sm_90", {"tile": 3 if case.group < case.x[-1] else 5})


@slow
@pytest.mark.parametrize("case", MORE_CASES, ids=lambda case: str(case.name))
def test_keeps_the_bound_everywhere(case: Case) -> None:
    halves.check(family(case), case, "sm_90")


@slow
@pytest.mark.parametrize("group", [64, 512])
@pytest.mark.parametrize("tile", range(6))
@pytest.mark.parametrize("stages", [2, 5])
def test_every_choice_gives_the_same_bits(tile: int, stages: int, group: int) -> None:
    case = half((140, 448), 500, group, "int4")
    if group < 448 and tile > 3:
        pytest.skip("with groups there are four tiles")
    arrays, decisions = whole_numbers(case), {"tile": tile, "stages": stages}
    got = halves.run((family(case), case.problem()), case, "sm_90", arrays, decisions)
    np.testing.assert_array_equal(got, case.bounded(arrays)[0])


@pytest.mark.parametrize("stages", [2, pytest.param(3, marks=slow)])
def test_few_stages_and_many_steps_do_not_wait_for_each_other(stages: int) -> None:
    case = half((2, 320), 18, 1000)
    halves.check(family(case), case, "sm_90", {"tile": 5, "stages": stages})


@pytest.mark.parametrize("shape", [(3, 18), pytest.param((35, 150), marks=slow)])
def test_clamp_and_second_branch(shape: tuple[int, int]) -> None:
    case = half((shape[0], 70), shape[1], 32)
    arrays = whole_numbers(case)
    arrays["other"] = np.random.default_rng(2).integers(-30, 30, case.y).astype(np.float32)
    given = case.problem()
    epilogue = Epilogue("float", -20.0, 6.0, other=given.output)
    problem = dataclasses.replace(given, epilogue=epilogue)
    got = halves.run((family(case), problem), case, "sm_90", arrays, {"tile": 3, "stages": 2})
    want = np.clip(case.bounded(arrays)[0] + arrays["other"], -20, 6)
    np.testing.assert_array_equal(got, want)
    assert {-20.0, 6.0} < set(got.flat)


def test_what_is_beyond_half_precision_stays_in_its_row() -> None:
    case = half((3, 40), 16, 64)
    arrays = whole_numbers(case)
    arrays["w"][:] = 1
    arrays["x"][0, 5], arrays["x"][1, 5] = 7e4, np.nan
    got = halves.run((family(case), case.problem()), case, "sm_90", arrays, {"tile": 5})
    assert np.isposinf(got[0]).all()
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[2]).all()


@pytest.mark.parametrize(
    ("rows", "arch", "kernel"),
    [
        (256, "sm_90", "cuda.w4.wgmma"),
        (64, "sm_90", "cuda.w4"),
        (256, "sm_80", "cuda.w4"),
    ],
)
def test_many_rows_on_hopper_get_them(rows: int, arch: str, kernel: str) -> None:
    case = half((rows, 64), 4352, 32, "int4")
    constants = {name: values for name, values in case.data().items() if name != "x"}
    taken = choose(case.problem(), constants, gpu(arch), Planner())
    assert taken.candidate.kernel.name == kernel


def inspect(width: int | str, group: int) -> None:
    """Products by warpgroups, bulk copies, no conversions of integers, no local memory."""
    case = half((512, 4096), 4096, group, "int8", book=str(width))
    if isinstance(width, int):
        case = half((512, 4096), 4096, group, f"int{width}")
    plan = family(case).plan(case.problem(), gpu("sm_90"), Knobs())
    code = code_of(family(case).build(case.problem(), gpu("sm_90"), Knobs()), "sm_90")
    check_registers(code, plan.threads, 1)
    for pattern in ("HGMMA", "UBLKCP", r"LDGSTS.*\.128", r"LDS\.(128|64)"):
        assert code.has(pattern), (pattern, code.counts)
    assert code.has("USETMAXREG") == (plan.groups == 2), code.counts


@slow
@pytest.mark.parametrize("group", [32, 128, 4096])
@pytest.mark.parametrize("width", [2, 3, 4, 8, "nf4"])
def test_machine_code_everywhere(width: int | str, group: int) -> None:
    inspect(width, group)
