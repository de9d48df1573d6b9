"""Weights of 4 bits on two levels equal the law bit for bit, by ``wgmma`` and by ``mma``."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from tvm import relax

from benchmarks.cuda_pack import takers
from benchmarks.cuda_rows import rows
from nybble.errors import ScheduleError
from nybble.ir import graph, ops
from nybble.schedules.cuda import mma, wgmma
from nybble.schedules.cuda.levels import ATTR, length_of
from nybble.schedules.kernel import Kernel, Knobs, Problem
from tests.cases import Arrays, Case
from tests.cuda.layers import check, gpu, layer_of
from tests.cuda.opcodes import check_registers, code_of
from tests.cuda.test_tensor_cores import sample, shapes

slow = pytest.mark.slow
KERNELS = {kernel.name: kernel for kernel in (*wgmma.KERNELS, *mma.KERNELS)}
WGMMA, MMA = KERNELS["cuda.int4.levels.wgmma"], KERNELS["cuda.int4.levels.mma"]
ARCHS = ("sm_75", "sm_80", "sm_90")


@dataclasses.dataclass(frozen=True)
class Levels(Case):
    """A linear layer whose weights lie on two levels.

    Attributes:
        length: of the inputs that share step and base.
    """

    length: int = 128

    def problem(self) -> Problem:
        """The case's, with what the weights prove."""
        given = super().problem()
        return dataclasses.replace(given, attrs=(*given.attrs, (ATTR, self.length)))

    def data(self, seed: int = 0) -> Arrays:
        """The case's, with such weights: of ``high`` operands from -128 to 127."""
        arrays, rng = super().data(seed), np.random.default_rng(seed)
        o, k = self.w
        shape = (o, k // self.length, self.length)
        codes = rng.integers(0, 16, shape)
        step = rng.integers(1, 17, (*shape[:2], 1))
        base = rng.integers(-128, 128 - 15 * step)
        if self.operands != "random":
            ends = {"high": [15], "low": [0], "alternating": [0, 15, 1, 14]}[self.operands]
            return {**arrays, "w": (17 * np.resize(ends, (o, k)) - 128).astype(np.int8)}
        return {**arrays, "w": (base + step * codes).reshape(o, k).astype(np.int8)}


SIGNED = Levels("signed", "linear", (3, 128), (33, 128), dtypes=("int8", "int8"), length=64)
CASES = (
    Levels("tokens", "linear", (5, 160), (40, 160), length=32),
    Levels("high", "linear", (2, 256), (20, 256), operands="high"),
)
MORE_CASES = (
    SIGNED,
    Levels("channels", "linear", (5, 160), (140, 160), length=32),
    Levels("alternating", "linear", (9, 384), (20, 384), operands="alternating"),
    Levels("low", "linear", (9, 64), (20, 64), dtypes=("int8", "int8"), operands="low", length=64),
    Levels("add", "linear", (70, 320), (300, 320), epilogue="add", length=64),
    Levels("sums", "linear", (33, 512), (130, 512), dtypes=("uint8", "int32"), epilogue="none"),
    Levels("batch", "linear", (2, 33, 96), (129, 96), symbolic=True, length=32),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_law(case: Levels) -> None:
    assert WGMMA.refuses(case.problem(), gpu("sm_90")) is None
    assert check(WGMMA, case, "sm_90", Knobs({"tile": 4})).conflicts == 0


@slow
@pytest.mark.parametrize("case", MORE_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("tile", range(5))
def test_equals_the_law_everywhere(case: Levels, tile: int) -> None:
    knobs = Knobs()
    WGMMA.plan(case.problem(), gpu("sm_90"), knobs)
    if tile not in knobs.space["tile"]:
        pytest.skip("the channels are no multiple of a block's")
    check(WGMMA, case, "sm_90", Knobs({"tile": tile}))


ENDS = Levels("ends", "linear", (9, 384), (20, 384), operands="alternating")
"""Of codes, steps and bases; a part is two slabs."""


@pytest.mark.parametrize(
    ("case", "arch", "tile", "slabs"),
    [
        (CASES[0], "sm_80", 13, 2),  # numbers behind the last part are neutral
        (ENDS, "sm_75", 22, 4),
        pytest.param(ENDS, "sm_80", 8, 1, marks=slow),  # two stages load the same numbers
    ],
)
def test_mma_equals_the_law(case: Levels, arch: str, tile: int, slabs: int) -> None:
    assert MMA.refuses(case.problem(), gpu(arch)) is None
    assert check(MMA, case, arch, Knobs({"tile": tile, "slabs": slabs})).conflicts == 0


@slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("case", [*CASES, ENDS, *MORE_CASES], ids=lambda case: case.name)
def test_mma_equals_the_law_everywhere(case: Levels, arch: str) -> None:
    """As cut by default, and by chance."""
    check(MMA, case, arch)
    for seed in range(2):
        check(MMA, case, arch, sample(MMA, case, arch, random.Random(seed)))


def test_others_are_refused() -> None:
    case = CASES[0]
    assert WGMMA.refuses(case.problem(), gpu("sm_80")) == "needs Hopper's wgmma"
    plain = dataclasses.replace(case.problem(), attrs=())
    other: dict[str, Any] = {**case.data(), "w": Case.data(case)["w"]}
    for kernel in (WGMMA, MMA):
        assert kernel.refuses(plain, gpu("sm_90")) == "the weights have no two levels"
        with pytest.raises(ScheduleError, match="no two levels in parts of 32"):
            kernel.pack(case.problem(), other)


@pytest.mark.parametrize(("arch", "kernel"), [("sm_90", WGMMA), ("sm_75", MMA)])
def test_they_are_found_in_the_weights(arch: str, kernel: Kernel) -> None:
    w = SIGNED.data()["w"]
    assert (length_of(w), length_of(w[:, :96]), length_of(w[:, :100])) == (64, 32, 0)
    x = relax.Var("x", relax.TensorType(SIGNED.x, "int8"))
    emitter = graph.Emitter([x])
    constants = [graph.constant(w), graph.constant(np.zeros(33, np.int32))]
    y = emitter.emit(ops.call("linear", [x, *constants]), "layer")
    _, problem, taken = layer_of(emitter.finish([y], ["layer"], "integer"), arch)
    assert (problem.attr(ATTR), taken) == (64, kernel)


@pytest.mark.parametrize(("length", "bits"), [(32, 4.5), (64, 4.25), (128, 4.125)])
def test_bits_of_a_weight(length: int, bits: float) -> None:
    """Beside the neutral numbers behind the last ones, of 16 bits a channel and part."""
    case = Levels("", "linear", (1, 1024), (64, 1024), length=length)
    packed, _ = MMA.pack(case.problem(), case.data())
    assert packed.nbytes * 8 == 64 * (1024 * bits + 16 * max(1, 64 // length))


def test_they_are_packed_for_a_gpu() -> None:
    row = next(rows("16 x 4096 x 4096 int4 on two levels x int8"))
    assert length_of(row.arrays["w"][:32]) == 128
    taken = list(takers(row, gpu("sm_90"), "cuda.int4.*"))
    assert taken == [WGMMA, MMA]


def large(length: int) -> Problem:
    """A large layer; its operands are not drawn."""
    case = Case("large", "linear", (256, 4096), (4096, 4096), flush=0)
    return dataclasses.replace(shapes(case), attrs=((ATTR, length),))


@slow
@pytest.mark.parametrize("length", [32, 128])
def test_machine_code(length: int) -> None:
    plan = WGMMA.plan(large(length), gpu("sm_90"), Knobs())
    code = code_of(WGMMA.build(large(length), gpu("sm_90"), Knobs()), "sm_90")
    check_registers(code, plan.threads, 1)
    for pattern in ("IGMMA", "UBLKCP", r"LDGSTS.*\.128", r"LDS\.128", "IMAD", "LOP3"):
        assert code.has(pattern), (pattern, code.counts)
    assert code.has("USETMAXREG") == (plan.groups == 2), code.counts


@slow
@pytest.mark.parametrize("length", [32, 128])
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"])
def test_machine_code_of_mma(arch: str, length: int) -> None:
    plan = MMA.plan(large(length), gpu(arch), Knobs())
    code = code_of(MMA.build(large(length), gpu(arch), Knobs()), arch)
    check_registers(code, plan.threads, 1)
    moved = r"STS\.128" if plan.held else r"LDGSTS.*\.128"
    product = "IMMA.8816" if arch == "sm_75" else "IMMA.16832"
    for pattern in (product, r"LDSM\.16\.M88\.4", moved, r"LDS.*\.128", "PRMT", "IMAD", "LOP3"):
        assert code.has(pattern), (pattern, code.counts)
