"""Weights of 4 bits on two levels equal the law bit for bit on Hopper."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from tvm import relax

from nybble.errors import ScheduleError
from nybble.ir import graph, ops
from nybble.schedules import match
from nybble.schedules.cuda import wgmma
from nybble.schedules.cuda.wgmma_levels import ATTR, length_of
from nybble.schedules.kernel import Knobs, Problem
from tests.cases import Arrays, Case
from tests.cuda.layers import check, gpu
from tests.cuda.opcodes import check_registers, code_of

slow = pytest.mark.slow
(KERNEL,) = (kernel for kernel in wgmma.KERNELS if kernel.name == "cuda.int4.levels.wgmma")


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
            ends = {"high": [15], "low": [0], "alternating": [0, 15]}[self.operands]
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
    assert KERNEL.refuses(case.problem(), gpu("sm_90")) is None
    assert check(KERNEL, case, "sm_90", Knobs({"tile": 4})).conflicts == 0


@slow
@pytest.mark.parametrize("case", MORE_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("tile", range(5))
def test_equals_the_law_everywhere(case: Levels, tile: int) -> None:
    knobs = Knobs()
    KERNEL.plan(case.problem(), gpu("sm_90"), knobs)
    if tile not in knobs.space["tile"]:
        pytest.skip("the channels are no multiple of a block's")
    check(KERNEL, case, "sm_90", Knobs({"tile": tile}))


def test_others_are_refused() -> None:
    case = CASES[0]
    assert KERNEL.refuses(case.problem(), gpu("sm_80")) == "needs Hopper's wgmma"
    plain = dataclasses.replace(case.problem(), attrs=())
    assert KERNEL.refuses(plain, gpu("sm_90")) == "the weights have no two levels"
    other: dict[str, Any] = {**case.data(), "w": Case.data(case)["w"]}
    with pytest.raises(ScheduleError, match="no two levels in parts of 32"):
        KERNEL.pack(case.problem(), other)


@pytest.mark.parametrize(("arch", "length"), [("sm_90", 64), ("sm_80", None)])
def test_they_are_found_in_the_weights(arch: str, length: int | None) -> None:
    case = SIGNED
    w = case.data()["w"]
    assert (length_of(w), length_of(w[:, :96]), length_of(w[:, :100])) == (64, 32, 0)
    x = relax.Var("x", relax.TensorType(case.x, "int8"))
    emitter = graph.Emitter([x])
    constants = [graph.constant(w), graph.constant(np.zeros(33, np.int32))]
    y = emitter.emit(ops.call("linear", [x, *constants]), "layer")
    (group,) = match.groups(emitter.finish([y], ["layer"], "integer"), gpu(arch))
    assert group.problem is not None
    assert dict(group.problem.attrs).get(ATTR) == length


@slow
@pytest.mark.parametrize("length", [32, 128])
def test_machine_code(length: int) -> None:
    case = Levels("large", "linear", (256, 4096), (4096, 4096), length=length)
    plan = KERNEL.plan(case.problem(), gpu("sm_90"), Knobs())
    code = code_of(KERNEL.build(case.problem(), gpu("sm_90"), Knobs()), "sm_90")
    check_registers(code, plan.threads, 1)
    for pattern in ("IGMMA", "UBLKCP", r"LDGSTS.*\.128", r"LDS\.128", "IMAD", "LOP3"):
        assert code.has(pattern), (pattern, code.counts)
    assert code.has("USETMAXREG") == (plan.groups == 2), code.counts
