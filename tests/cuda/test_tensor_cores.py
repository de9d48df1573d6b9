"""Integer layers on tensor cores equal the law bit for bit, whatever the knobs, without a GPU."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest

from nybble.errors import ScheduleError
from nybble.ir import numerics
from nybble.schedules.cuda import matrix, mma, wgmma
from nybble.schedules.cuda.fragments import Fragments, lane_of
from nybble.schedules.cuda.mma_plan import plan_of
from nybble.schedules.kernel import Kernel, Knobs, Problem
from tests.cases import CONV, LINEAR, Case
from tests.cuda.layers import check, gpu
from tests.cuda.opcodes import check_registers, code_of
from tests.low_cases import LOW, LOW_LINEAR, TABLED

slow = pytest.mark.slow
KERNELS = (*wgmma.KERNELS, *mma.KERNELS)
CASES = {case.name: case for case in (*CONV, *LINEAR, *LOW, *LOW_LINEAR, *TABLED)}
ARCHS = ("sm_75", "sm_80", "sm_90")
GROUPS = "groups: each would be a product of its own"


def family(name: str, case: Case) -> Kernel:
    """A family's kernel for a case."""
    return next(k for k in KERNELS if (k.name, k.op) == (name, case.op))


# ---------------------------------------------------------------- the law

ROWS = {
    "cuda.int8.mma": (
        "rows", "3x3 add", "odd everything", "1x1 tails", "pad value", "3x3 huge ratios",
        "one output", "3x3 dilated rows", "stem 3x3x3", "big batch", "K=1 low", "K=33 alternating",
        "high", "low signed", "1x1 stride 2 signed", "ten classes",
        "1x1 few channels, table int4 uint2",
    ),
    "cuda.int4.mma": (
        "low 3x3 add", "low odd everything", "low tokens", "low high", "low 3x3 signs",
        "low 3x3 bits", "low K=1 int1 uint8 alternating", "low K=257 int2 int8 low",
        "low rows, table int1 int3", "low big batch",
    ),
    "cuda.int4.s4mma": (
        "low 3x3 add", "low odd everything", "low tokens", "low 3x3 dilated", "low 3x3 signs",
        "low K=33 int2 int2 low", "low pad value", "low 3x3 accumulators",
    ),
    "cuda.int8.wgmma": (
        "rows", "3x3 add", "pad value", "low 3x3 accumulators", "3x3 stride 2", "3x3 batch",
        "3x3 big ratios", "full window", "1x1 padded",
    ),
    "cuda.int4.wgmma": (
        "low 3x3 add", "low tokens", "low 3x3 bits", "low high", "low 3x3 dilated", "low 1x1 batch",
        "low rows, table int1 int3", "low alternating",
    ),
}  # fmt: skip


QUICK = 5  # rows of a family that are run every time


def arch_of(name: str, row: int) -> str:
    """Every architecture in turn, of those that a family is for."""
    if name.endswith("wgmma"):
        return "sm_90"
    return ARCHS[row % (2 if name == "cuda.int4.s4mma" else 3)]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param(name, row, id=f"{name} {case}", marks=() if row < QUICK else slow)
        for name, rows in ROWS.items()
        for row, case in enumerate(rows)
    ],
)
def test_equals_the_law(name: str, row: int) -> None:
    case = CASES[ROWS[name][row]]
    kernel, arch = family(name, case), arch_of(name, row)
    assert kernel.refuses(case.problem(), gpu(arch)) is None
    check(kernel, case, arch)


@slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_equals_the_law_everywhere(case: Case, arch: str) -> None:
    for kernel in KERNELS:
        if kernel.op == case.op and kernel.refuses(case.problem(), gpu(arch)) is None:
            check(kernel, case, arch)


def conventions(case: Case, rounding: str) -> tuple[Problem, Case]:
    """The problem with another rounding, and a case whose law has it."""

    class Rounded(Case):
        def finish(self, acc: Any, arrays: Any) -> Any:
            lo, hi = self.bounds
            kept: dict[str, Any] = {"dtype": self.rescaled, "lo": lo, "hi": hi}
            after, before = self.zero_points
            kept |= {"zero_point": after, "rounding": rounding}
            if self.epilogue == "requantize":
                return numerics.requantize(acc, arrays["multiplier"], arrays["shift"], **kept)
            ma, sa, mb, sb = (
                arrays[f"{what}_{branch}"] for branch in "ab" for what in ("multiplier", "shift")
            )
            return numerics.add(acc, ma, sa, arrays["b"], mb, sb, zero_point_b=before, **kept)

    given = case.problem()
    epilogue = dataclasses.replace(given.epilogue, rounding=rounding, singles=False)
    fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return dataclasses.replace(given, epilogue=epilogue), Rounded(**fields)


@pytest.mark.parametrize("rounding", ["half_even", "tflite"])
@pytest.mark.parametrize("name", ["big batch", pytest.param("3x3 big ratios", marks=slow)])
def test_other_roundings(name: str, rounding: str) -> None:
    problem, case = conventions(CASES[name], rounding)
    check(family("cuda.int8.mma", case), case, "sm_80", problem=problem)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
@pytest.mark.parametrize("whole", [True, pytest.param(False, marks=slow)])
def test_packed_activations(arch: str, whole: bool) -> None:
    """Of 4 bits, two a byte: read, added and written."""
    case = Case("packed", "conv2d", (2, 6, 5, 24), (20, 3, 3, 24), padding=(1, 0, 1, 2),
                pad_value=-3, weights="int4", dtypes=("int4", "uint4"), epilogue="add",
                other="int4")  # fmt: skip
    given = case.problem()
    assert given.epilogue.other is not None
    other = dataclasses.replace(given.epilogue.other, form="packed")
    problem = dataclasses.replace(
        given,
        inputs=(dataclasses.replace(given.inputs[0], form="packed"),),
        output=dataclasses.replace(given.output, form="packed" if whole else "values"),
        epilogue=dataclasses.replace(given.epilogue, other=other),
    )
    kernel = family("cuda.int4.s4mma", case)
    assert kernel.refuses(problem, gpu(arch)) is None
    check(kernel, case, arch, problem=problem)


# ---------------------------------------------------------------- choices

CHOICES = {
    "cuda.int8.mma": "3x3 add", "cuda.int4.mma": "low 3x3 add", "cuda.int4.s4mma": "low 3x3 add",
    "cuda.int8.wgmma": "1x1 signed", "cuda.int4.wgmma": "low 1x1",
}  # fmt: skip


def sample(kernel: Kernel, case: Case, arch: str, draw: random.Random) -> Knobs:
    """A random point of the space that can be built."""
    for _ in range(100):
        knobs = Knobs()
        kernel.plan(case.problem(), gpu(arch), knobs)
        knobs = Knobs({name: draw.choice(choices) for name, choices in knobs.space.items()})
        try:
            kernel.plan(case.problem(), gpu(arch), knobs)
        except ScheduleError:
            continue
        return knobs
    raise AssertionError("no point of the space can be built")


@pytest.mark.parametrize(
    ("name", "seed"),
    [(name, seed) if seed == 1 else pytest.param(name, seed, marks=slow)
     for name in CHOICES for seed in range(8)],
)  # fmt: skip
def test_every_choice_gives_the_same_bits(name: str, seed: int) -> None:
    case = CASES[CHOICES[name]]
    kernel, arch = family(name, case), arch_of(name, 1)
    report = check(kernel, case, arch, sample(kernel, case, arch, random.Random(seed)))
    assert report.conflicts == 0, report.conflict_sites


def test_a_stage_is_read_without_bank_conflicts() -> None:
    """The default plan of large tiles: every access of shared memory is as short as can be."""
    case = Case("large", "linear", (128, 192), (128, 192))
    knobs = Knobs({"tile": 2, "slabs": 1, "stages": 3})
    report = check(family("cuda.int8.mma", case), case, "sm_80", knobs)
    tiles, slabs = 1, 3
    assert report.conflicts == 0
    assert report.count("mma.sync") == tiles * slabs * 4 * 64
    assert report.count("ldmatrix") == tiles * slabs * 4 * 8


# ---------------------------------------------------------------- refusals, packing


def reason(name: str, case: Case, arch: str) -> str | None:
    return family(name, case).refuses(case.problem(), gpu(arch))


def test_refusals_say_why() -> None:
    low = CASES["low 3x3"]
    emulated = reason("cuda.int4.s4mma", low, "sm_90")
    assert emulated is not None
    assert "no 4-bit integers: they are emulated" in emulated
    assert reason("cuda.int8.mma", CASES["grouped"], "sm_80") == f"4 {GROUPS}"
    wide = "packs weights of up to 4 bits, not int8"
    assert reason("cuda.int4.mma", CASES["rows"], "sm_80") == wide
    assert reason("cuda.int4.s4mma", CASES["low 3x3 W2A8"], "sm_80") == (
        "multiplies activations of up to 4 bits, not uint8"
    )
    assert reason("cuda.int8.wgmma", CASES["rows"], "sm_80") == "needs Hopper's wgmma"


def test_sums_that_16_times_would_overflow_are_refused() -> None:
    found = matrix.Matrix((1,), 1, 70000)
    with pytest.raises(ScheduleError, match="8-bit weights need none"):
        Fragments(found, 4, 4).check(np.full((1, 70000), -8), "uint8")
    Fragments(found, 4, 8).check(np.full((1, 70000), -128), "uint8")


def test_small_layers_get_many_blocks_and_large_ones_large_tiles() -> None:
    def plan(rows: int, channels: int, depth: int) -> Any:
        found = matrix.Matrix((rows,), channels, depth)
        return plan_of(Fragments(found, lane_of(found), 8), gpu("sm_80"), Knobs(), 0)

    large, small = plan(8192, 8192, 4096), plan(49, 512, 4608)
    assert large.rows * large.channels >= 128 * 128
    assert (large.slices, large.warp_rows * large.warp_channels) == (1, 64 * 64)
    assert small.slices >= 4
    assert -(-49 // small.rows) * (512 // small.channels) >= 64


# ---------------------------------------------------------------- machine code


def layer(weights: str, x: str, small: bool) -> Case:
    """A large product, or a convolution that is small enough for slices."""
    dtypes = (x, "uint8")
    if not small:
        return Case("large", "linear", (4096, 4096), (4096, 4096), weights=weights, dtypes=dtypes)
    return Case("small", "conv2d", (1, 14, 14, 256), (256, 3, 3, 256), padding=(1, 1, 1, 1),
                weights=weights, dtypes=dtypes, epilogue="add")  # fmt: skip


WIDTHS = {
    "cuda.int8.mma": ("int8", "uint8"), "cuda.int4.mma": ("int4", "int8"),
    "cuda.int4.s4mma": ("int4", "uint4"), "cuda.int8.wgmma": ("int8", "uint8"),
    "cuda.int4.wgmma": ("int4", "uint8"),
}  # fmt: skip
IMMA = {("sm_75", 8): "8816", ("sm_75", 4): "8832", ("sm_80", 8): "16832", ("sm_80", 4): "16864"}


def problem_of(name: str, small: bool) -> tuple[Kernel, Problem]:
    """A kernel and a layer; its operands are not drawn, for they would take gigabytes."""
    case = dataclasses.replace(layer(*WIDTHS[name], small), flush=0)
    return family(name, case), dataclasses.replace(shapes(case), flush=0)


def shapes(case: Case) -> Problem:
    """The problem of a case with tiny constants: `Case.problem` would prove things of its data."""
    spec = dataclasses.replace(case, x=(1, 8), w=(case.w[0], 8), op="linear", padding=(0, 0, 0, 0))
    found = spec.problem()
    attrs = tuple(sorted(
        {"dilation": (1, 1), "groups": 1, "pad_value": 0, "padding": case.padding,
         "strides": (1, 1)}.items()
    )) if case.op == "conv2d" else ()  # fmt: skip
    assert found.weights is not None
    epilogue = found.epilogue
    if epilogue.other is not None:
        other = dataclasses.replace(epilogue.other, shape=case.y)
        epilogue = dataclasses.replace(epilogue, other=other)
    return dataclasses.replace(
        found, op=case.op, attrs=attrs, epilogue=epilogue,
        inputs=(dataclasses.replace(found.inputs[0], shape=case.x),),
        output=dataclasses.replace(found.output, shape=case.y),
        weights=dataclasses.replace(found.weights, shape=case.w),
    )  # fmt: skip


def inspect(name: str, small: bool, arch: str) -> None:
    """The wanted instructions, as many as the tile needs, no local memory, room for the blocks."""
    kernel, problem = problem_of(name, small)
    target = gpu(arch)
    plan = kernel.plan(problem, target, Knobs())
    code = code_of(kernel.build(problem, target, Knobs()), arch)
    check_registers(code, plan.threads, 1)
    if name.endswith("wgmma"):
        wanted = ["IGMMA.64", "UBLKCP", "LDGSTS.E.BYPASS.LTC128B.128", "SYNCS.PHASECHK"]
        wanted += ["USETMAXREG"] if plan.groups == 2 else []
        wanted += ["LDS.128", "LOP3"] if name == "cuda.int4.wgmma" else ["STG.E.128"]
        found = sum(n for one, n in code.counts.items() if one.startswith("IGMMA"))
        assert found % (4 * plan.units) == 0, (found, plan.units)
    else:
        generation = "sm_75" if arch == "sm_75" else "sm_80"
        bits = 4 if name == "cuda.int4.s4mma" else 8
        product = f"IMMA.{IMMA[generation, bits]}"
        wanted = [product, "LDSM.16.M88.4", "LDS"]
        wanted += ["STS.128"] if plan.held else ["LDGSTS.E.BYPASS"]
        wanted += ["LOP3"] if name == "cuda.int4.mma" else []
        wanted += [] if small else ["STG.E.128"]
        down, across = plan.units
        step = down * across * 2 * (4 if arch == "sm_75" else 1) * plan.slabs // plan.slices
        found = sum(n for one, n in code.counts.items() if one.startswith(product))
        assert found % step == 0, (found, step)
    for pattern in wanted:
        assert code.has(pattern.replace(".", r"\.")), (pattern, code.counts)


def test_machine_code() -> None:
    inspect("cuda.int8.mma", True, "sm_80")


@slow
@pytest.mark.parametrize("small", [False, True], ids=["large", "small"])
@pytest.mark.parametrize(
    ("name", "arch"),
    [
        *(
            (name, arch)
            for name in list(WIDTHS)[:3]
            for arch in ("sm_75", "sm_80", "sm_86", "sm_89")
        ),
        *((name, "sm_90") for name in WIDTHS if name != "cuda.int4.s4mma"),
    ],
)
def test_machine_code_everywhere(name: str, small: bool, arch: str) -> None:
    inspect(name, small, arch)
