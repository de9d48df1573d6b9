"""Ternary weights at 5 bits for three equal the law bit for bit, in the bytes they promise."""

import dataclasses
from itertools import product
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nybble.errors import ScheduleError
from nybble.schedules.cpu import trits
from nybble.schedules.cpu.trits_stage import BASE, GROUPS, WEIGHTS
from nybble.schedules.cpu.trits_tile import SPANS
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import Case
from tests.schedules.cpu import running

pytestmark = pytest.mark.sweep

KS = (1, 23, 24, 25, 31, 33, 255, 257, 2177, 4099, 65537)


def case_of(k: int, o: int, **kw: Any) -> Case:
    usual = {"dtypes": ("int8", "int32"), "epilogue": "none", "weights": "int2", "ternary": True}
    return Case("ternary", "linear", (1, k), (o, k), **{**usual, **kw})


def family() -> tuple[Kernel, CpuTarget]:
    target = resolve("x86-64-v3")
    if not target.features <= host_features():
        pytest.skip("this CPU lacks AVX2")
    return trits.NEAR, target


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize(
    ("operands", "x"), [("high", "uint8"), ("low", "int8"), ("alternating", "int8")]
)
def test_every_length(k: int, operands: str, x: str) -> None:
    kernel, target = family()
    running.check(kernel, case_of(k, 35, operands=operands, dtypes=(x, "int32")), target)


@pytest.mark.parametrize(
    ("o", "tile"), [(128, "1x1x4"), (161, "1x1x4"), (64, "1x1x2"), (5, "1x1x1")]
)
@pytest.mark.parametrize("epilogue", ["requantize", "add"])
def test_every_tile_and_epilogue(o: int, tile: str, epilogue: str) -> None:
    kernel, target = family()
    case = case_of(200, o, dtypes=("uint8", "uint8"), epilogue=epilogue)
    running.check(kernel, case, target, Knobs({"tile": tile}))


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(
    st.integers(1, 300), st.integers(1, 150), st.sampled_from(("int8", "uint8", "int4", "uint1"))
)
def test_small_layers(k: int, o: int, x: str) -> None:
    kernel, target = family()
    running.check(kernel, case_of(k, o, dtypes=(x, "int32")), target)


def test_threads_do_not_matter() -> None:
    kernel, target = family()
    configure = tvm.get_global_func("runtime.config_threadpool")
    for threads in (1, 2):
        configure(1, threads)
        running.check(kernel, case_of(500, 300), target, Knobs({"parallel": True, "splits": 2}))


def test_no_byte_and_no_word_can_overflow() -> None:
    sums = np.array(list(product((-128, 0, 127), repeat=3))) @ np.array(WEIGHTS).T
    ends = np.arange(sums.min(), sums.max() + 1)
    high = (ends * round(2**15 / BASE) + 2**14) >> 15  # vpmulhrsw
    assert GROUPS * int(np.abs(ends - BASE * high).max()) <= 127
    assert GROUPS * int(np.abs(high).max()) <= 127
    assert SPANS * GROUPS * int(np.abs(ends).max()) <= 2**15 - 1


def test_five_bits_hold_three_weights() -> None:
    kernel, _ = family()
    case = case_of(24 * 40, 320)
    arrays = case.data()
    stored, _ = kernel.pack(case.problem(), arrays)
    assert stored.nbytes * 8 * 3 == arrays["w"].size * 5


def test_refuses_in_words() -> None:
    kernel, target = family()
    case = case_of(96, 64)

    def reason(target: CpuTarget = target, **changed: Any) -> str:
        return str(kernel.supports(dataclasses.replace(case, **changed).problem(), target))

    assert "avx2" in reason(resolve("x86-64"))
    assert "ternary" in reason(weights="int4", ternary=False)
    assert "more rows" in reason(x=(2, 96))
    assert "more rows" in reason(symbolic=True)
    assert reason() == "None"
    assert reason(x=(1, 4096), w=(2048, 4096)) == "2097152 bytes of 2-bit codes lie far away"
    assert "lie near" in str(trits.FAR.supports(case.problem(), target))
    with pytest.raises(ScheduleError, match="not ternary"):
        kernel.pack(case.problem(), {**case.data(), "w": np.full((64, 96), -2, np.int8)})
