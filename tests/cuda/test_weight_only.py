"""Weight-only kernels keep the bound of the law, for every width, group, shape and choice."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph, ops, specs
from nybble.passes import pipeline
from nybble.schedules.cuda import stream_plan
from nybble.schedules.cuda.weight_only import KERNELS, work_of
from nybble.schedules.kernel import Epilogue, Kernel, Knobs, Problem
from nybble.schedules.lower import lower
from tests.cuda import halves
from tests.cuda.halves import half, whole_numbers
from tests.cuda.layers import gpu
from tests.cuda.opcodes import check_registers, code_of
from tests.weight_only_cases import Arrays, Case

slow = pytest.mark.slow
ARCHS = ("sm_75", "sm_80", "sm_90")


def family(case: Case) -> Kernel:
    """The kernel of a case's width."""
    return halves.kernel_of(case, KERNELS)


def run(
    case: Case, arch: str, arrays: Arrays, decisions: Any = (), problem: Problem | None = None
) -> NDArray[np.float32]:
    """What the kernel stores, as the interpreter has it."""
    return halves.run((family(case), problem or case.problem()), case, arch, arrays, decisions)


def check(case: Case, arch: str) -> None:
    """Within the bound."""
    halves.check(family(case), case, arch)


CASES = (
    *(half((1, 200), 33, 64, f"int{bits}") for bits in (2, 3, 4, 6)),
    *(half((3, 131), 41, 32, f"uint{bits}", zeros="each") for bits in (3, 8)),
    *(half((2, 300), 20, group, "int4", zeros="each") for group in (7, 48, 256, 1000)),
    *(half((m, 130), 34, 64, "int4") for m in (2, 17)),
    half((1, 63), 17, 128, "int3", operands="low"),
    half((1, 513), 17, 128, "int3", operands="high"),
    half((2, 3, 96), 48, 32, "int2"),
    half((3, 200), 33, 64, "int8", book="nf4"),
    half((2, 300), 20, 48, "int8", book="fp4"),
    half((9, 130), 34, 1000, "int8", book="nf4", operands="low"),
    half((1, 192), 70, 64, "uint4", symbolic=True),
    half((19, 128), 40, 1000, "uint4", zeros="each", symbolic=True),
)  # fmt: skip
MORE_CASES = (
    *(half((1, 200), 33, 64, f"int{bits}") for bits in (5, 7, 8)),
    *(half((3, 131), 41, 32, f"uint{bits}", zeros="each") for bits in (2, 4, 6)),
    *(half((2, 300), 20, group, "int4", zeros="each") for group in (20, 64, 96, 128, 192)),
    *(half((m, 130), 34, 64, "int4") for m in (8, 9, 33)),
    half((1, 1), 17, 128, "int3", operands="high"),
    half((1, 65), 17, 128, "int3", operands="alternating"),
)


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_keeps_the_bound(index: int) -> None:
    check(CASES[index], ARCHS[index % len(ARCHS)])


@slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("case", [*CASES, *MORE_CASES], ids=lambda case: str(case.name))
def test_keeps_the_bound_everywhere(case: Case, arch: str) -> None:
    check(case, arch)


@slow
@pytest.mark.parametrize("m", [1, 5, 16, 40, 64, 65, 130])
@pytest.mark.parametrize("weights", ["int2", "int3", "int4", "uint8"])
def test_many_rows(m: int, weights: str) -> None:
    check(
        half((m, 520), 100, 128, weights, zeros="each" if weights == "uint8" else "common"), "sm_80"
    )


# ---------------------------------------------------------------- choices

WHOLE = half((11, 448), 72, 64, "int4")
CHOICES = (
    {"operands": 1, "across": 2, "along": 4, "stages": 2, "splits": 1},
    {"operands": 8, "across": 1, "along": 2, "stages": 4, "splits": 2},
)
MORE = (
    {"operands": 2, "across": 4, "along": 1, "stages": 4, "splits": 4},
    {"operands": 4, "across": 2, "along": 2, "stages": 2, "splits": 2},
)


@pytest.mark.parametrize("decisions", [*CHOICES, *(pytest.param(d, marks=slow) for d in MORE)])
def test_every_choice_gives_the_same_bits(decisions: dict[str, int]) -> None:
    arrays = whole_numbers(WHOLE)
    got = run(WHOLE, "sm_80", arrays, decisions.items())
    np.testing.assert_array_equal(got, WHOLE.bounded(arrays)[0])


def test_activations_in_several_chunks() -> None:
    arrays, decisions = whole_numbers(WHOLE), {"along": 2, "splits": 1, "operands": 2}
    plan = KERNELS[2].plan(WHOLE.problem(), gpu("sm_80"), Knobs(dict(decisions)))
    assert plan.chunks > 1
    got = run(WHOLE, "sm_80", arrays, decisions.items())
    np.testing.assert_array_equal(got, WHOLE.bounded(arrays)[0])


def test_clamp_and_second_branch() -> None:
    case = half((3, 70), 18, 32)
    arrays = whole_numbers(case)
    arrays["other"] = np.random.default_rng(2).integers(-30, 30, case.y).astype(np.float32)
    given = case.problem()
    epilogue = Epilogue("float", -20.0, 6.0, other=given.output)
    got = run(case, "sm_80", arrays, problem=dataclasses.replace(given, epilogue=epilogue))
    want = np.clip(case.bounded(arrays)[0] + arrays["other"], -20, 6)
    np.testing.assert_array_equal(got, want)
    assert {-20.0, 6.0} < set(got.flat)


def test_what_is_beyond_half_precision_is_infinite_and_a_nan_stays() -> None:
    case = half((3, 64), 16, 64)
    arrays = whole_numbers(case)
    arrays["w"][:] = 1
    arrays["x"][0, 5], arrays["x"][1, 5] = 7e4, np.nan
    got = run(case, "sm_80", arrays)
    assert np.isposinf(got[0]).all()
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[2]).all()


def test_scales_of_a_channel_may_lie_far_apart() -> None:
    case = half((2, 96), 16, 32)
    arrays = case.data()
    arrays["scale"] *= np.array([1.0, 2.0**-26, 2.0**-12], np.float32)
    arrays["x"][:, :32] = 0  # what remains is as exact as if it were alone
    value, bound = case.bounded(arrays)
    assert (np.abs(run(case, "sm_80", arrays) - value) <= bound).all()


# ---------------------------------------------------------------- refusals


def test_only_half_precision_is_computed() -> None:
    case = Case((1, 64), 16, 64)
    assert family(case).refuses(case.problem(), gpu("sm_80")) == "computes in half precision only"


def test_the_width_is_in_the_name() -> None:
    case = half((1, 64), 16, 64, "int3")
    refusals = [kernel.refuses(case.problem(), gpu("sm_80")) for kernel in KERNELS]
    assert refusals.count(None) == 1
    assert refusals[0] == "weights are int3"


def test_a_network_gets_the_kernels_of_its_width() -> None:
    x = relax.Var("x", relax.TensorType((1, 96), "float32"))
    emitter, case = graph.Emitter([x]), half((1, 96), 18, 32)
    kept = {specs.KEPT_FLOAT: ["relu: weights alone are quantized"]}
    names = ("w", "scale", "zero_point", "bias")
    constants = [graph.constant(case.data()[n], case.weights if n == "w" else None) for n in names]
    y = emitter.emit(ops.call("weight_only", [x, *constants], group=32), "layer")
    clamped = emitter.emit(relax.op.nn.relu(y), "relu")
    module = pipeline.for_gpu(emitter.finish([clamped], ["relu"], "integer", kept))
    (layer,) = lower(module, gpu("sm_90")).layers
    assert (layer.op, layer.kernel, layer.stored) == ("weight_only+relu", "cuda.w4", "int4")


# ---------------------------------------------------------------- machine code

ROWS = {1: "m1", 16: "m16", 64: "m64"}
LARGE = [(width, m) for width in (2, 3, 4, 8, "nf4") for m in ROWS]


def inspect(width: int | str, m: int, arch: str) -> None:
    """The wanted instructions, no conversions of integers, no local memory."""
    case = half((m, 4096), 4096, 128, "int8", book=str(width))
    if isinstance(width, int):
        case = half((m, 4096), 4096, 128, f"int{width}")
    kernel, target = family(case), gpu(arch)
    plan = kernel.plan(case.problem(), target, Knobs())
    code = code_of(kernel.build(case.problem(), target, Knobs()), arch)
    slots = stream_plan.slots(work_of(case.problem()), target, plan)
    check_registers(code, 32 * plan.warps, slots)
    shape = "1688" if arch == "sm_75" else "16816"
    scaled = "HFMA2" if width in (2, 3, 4) else "HADD2"  # bytes lie where they need no scaling
    if width == "nf4":
        assert code.has("PRMT"), code.counts
    wanted = [rf"HMMA\.{shape}\.F32", scaled, r"LOP3", r"LDS.*\.128"]
    wanted.append(r"LDG\.E\.128" if arch == "sm_75" else r"LDGSTS\.E(\.BYPASS)?(\.128|\.64)")
    for pattern in wanted:
        assert code.has(pattern), (pattern, code.counts)
    assert not code.has("I2F"), code.counts
    narrow = width == 3 and m > 16  # 6 words of a lane: loads of 8 bytes
    assert narrow or arch == "sm_75" or code.has(r"LDGSTS.*\.128"), code.counts


def test_machine_code() -> None:
    inspect(4, 1, "sm_90")


@slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"])
@pytest.mark.parametrize(("width", "m"), LARGE)
def test_machine_code_everywhere(width: int | str, m: int, arch: str) -> None:
    inspect(width, m, arch)
