"""Integer Winograd convolution equals the law, for every width, size and choice of its knobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import ScheduleError
from nybble.ir import numerics
from nybble.schedules.cpu import winograd, winograd_range
from nybble.schedules.kernel import Kernel, Knobs, Problem, TensorSpec
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import Case
from tests.schedules.cpu import running

pytestmark = pytest.mark.sweep

ISAS = {
    "avx2": "x86-64-v3",
    "avx512": "x86-64-v4",
    "avx2.pairs": "x86-64-v3",
    "avx512.pairs": "x86-64-v4",
    "vnni": "x86-64-v4-vnni",
}


@pytest.fixture(autouse=True)
def anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is right for every layer is tested for small ones too, though it pays for none."""
    monkeypatch.setattr(winograd, "FEWEST_TILES", {})
    monkeypatch.setattr(winograd, "FEWEST_BITS", 1)
    monkeypatch.setattr(winograd, "FEWEST_OTHERWISE", 1)


def family(isa: str) -> tuple[Kernel, CpuTarget]:
    target = resolve(ISAS[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    found = (*winograd.KERNELS, *winograd.LOW)
    return next(k for k in found if k.name == f"cpu.int8.winograd.{isa}"), target


def layer(c: int, o: int, height: int, width: int, pad: int = 1) -> Case:
    name = f"{height}x{width}x{c} -> {o}"
    return Case(name, "conv2d", (1, height, width, c), (o, 3, 3, c), padding=(pad,) * 4)


CASES = (
    layer(32, 16, 4, 4),
    layer(64, 64, 7, 7),
    replace(layer(33, 17, 9, 5), dtypes=("int8", "int8"), weights="int8"),
    replace(layer(47, 41, 6, 11), epilogue="add"),
    replace(layer(35, 19, 8, 6, pad=0), epilogue="none", dtypes=("uint8", "int32")),
    replace(layer(40, 24, 5, 7), pad_value=9, gain=40.0),
    replace(layer(32, 32, 3, 2), symbolic=True, x=(3, 3, 2, 32)),
    replace(layer(37, 16, 10, 2), padding=(2, 0, 1, 2)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_law(case: Case) -> None:
    isa = "avx512" if case.w[0] % 2 == 0 and case.w[0] >= 24 else "avx2"
    running.check(*_with(family(isa), case))


@pytest.mark.parametrize("weights", ["int1", "int2", "int3", "int4", "int5", "int7"])
def test_narrow_weights_and_activations(weights: str) -> None:
    channels = 36 if weights == "int1" else 37  # an odd number needs a zero, which int1 lacks
    case = replace(layer(channels, 24, 6, 5), weights=weights, dtypes=("uint4", "uint4"))
    running.check(*_with(family("avx2"), replace(case, padding=(0, 0, 0, 0))))


@pytest.mark.parametrize("operands", ["high", "low", "alternating"])
@pytest.mark.parametrize("x", ["uint8", "int8"])
def test_extremes(operands: str, x: str) -> None:
    case = replace(layer(255, 17, 5, 6), operands=operands, dtypes=(x, "int8"))
    running.check(*_with(family("avx2"), case))


@pytest.mark.slow
@pytest.mark.parametrize("operands", ["high", "low"])
def test_the_most_channels(operands: str) -> None:
    case = replace(layer(winograd.MOST_CHANNELS, 16, 4, 4), operands=operands)
    running.check(*_with(family("avx2"), case))


def low(case: Case, widths: str, **kw: Any) -> Case:
    """The same layer on low widths: "weights activations output"."""
    weights, x, y = widths.split()
    return replace(case, weights=weights, dtypes=(x, y), **kw)


BYTES = (
    low(layer(64, 32, 4, 4), "int4 uint4 uint4"),
    low(layer(64, 64, 7, 7), "int4 int4 int4"),
    low(layer(67, 41, 9, 5), "int4 uint4 uint4", epilogue="add", other="uint4"),
    low(layer(64, 48, 6, 11), "int3 uint3 int8", epilogue="add"),
    low(layer(71, 19, 8, 6, pad=0), "int2 int2 int32", epilogue="none"),
    low(layer(64, 24, 5, 7), "int4 int3 uint8", pad_value=-2, gain=40.0),
    low(layer(64, 32, 3, 2), "int2 uint1 uint2", symbolic=True, x=(3, 3, 2, 64)),
    low(layer(80, 16, 10, 2), "int1 int1 int1", pad_value=1, padding=(2, 0, 1, 2)),
    low(layer(64, 24, 6, 6), "int5 uint5 uint5", operands="normal"),
    low(layer(64, 16, 6, 6), "int4 uint6 uint6", operands="normal"),
    low(layer(300, 40, 4, 6), "int4 uint4 uint4", operands="high"),
    low(layer(299, 40, 4, 6), "int4 int4 int32", operands="alternating", epilogue="none"),
    low(layer(1024, 24, 4, 4), "int2 uint4 uint4", operands="low"),
    low(layer(130, 24, 4, 4), "int3 int4 int8", operands="alternating"),
)


def rows() -> Iterator[Any]:
    """Every case once, on every instruction set when there is time."""
    for i, case in enumerate(BYTES):
        for j, isa in enumerate(("avx2.pairs", "avx512.pairs", "avx2.pairs", "vnni")):
            name = f"{isa} {case.name} {case.weights}"
            if j != 2 or i % 4 == 2:
                yield pytest.param(isa, case, id=name, marks=() if i % 4 == j else pytest.mark.slow)


@pytest.mark.parametrize(("isa", "case"), list(rows()))
def test_bytes_equal_the_law(isa: str, case: Case) -> None:
    running.check(*_with(family(isa), case))


class Widened(Case):
    """A case whose weights are stored in whole bytes."""

    def problem(self) -> Problem:
        problem = super().problem()
        assert problem.weights is not None
        return replace(problem, weights=replace(problem.weights, dtype="int8"))


def test_low_weights_in_whole_bytes() -> None:
    case = Widened(**vars(low(layer(67, 41, 9, 5), "int4 int4 int4", epilogue="add")))
    assert case.problem().weights == TensorSpec(case.w, "int8")
    running.check(*_with(family("avx2.pairs"), case))


@pytest.mark.parametrize("isa", [pytest.param("avx2", marks=pytest.mark.slow), "avx2.pairs"])
def test_every_choice_gives_the_same_bits(isa: str) -> None:
    case = low(layer(32, 40, 9, 6), "int4 uint4 uint4")
    kernel, target = family(isa)
    knobs = Knobs()
    kernel.build(case.problem(), target, knobs)
    assert set(knobs.space) == {"parallel", "rows", "splits", "tile"}
    for name, choices in knobs.space.items():
        for choice in {*choices[:2], choices[-1]}:
            running.check(kernel, case, target, Knobs({name: choice}))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (replace(layer(32, 16, 8, 8), strides=(2, 2)), "stride 1"),
        (replace(layer(32, 16, 8, 8), dilation=(2, 2)), "no dilation"),
        (replace(layer(32, 16, 8, 8), groups=2, w=(16, 3, 3, 16)), "no groups"),
        (replace(layer(32, 16, 8, 8), w=(16, 1, 1, 32)), "only 3x3"),
        (layer(8, 16, 8, 8), "takes 16 to 1024 channels"),
        (layer(32, 16, 3, 3, pad=0), "too small an image"),
    ],
)
def test_what_it_is_not_made_for(case: Case, reason: str) -> None:
    kernel, target = family("avx2")
    assert reason in str(kernel.supports(case.problem(), target))


def test_what_does_not_pay_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    kernel, target = family("avx2")
    assert kernel.avoids(layer(32, 32, 14, 14).problem(), target) is None
    assert "too small an image" in str(kernel.avoids(layer(32, 32, 6, 6).problem(), target))
    assert kernel.supports(layer(32, 32, 6, 6).problem(), target) is None  # a record may say so
    narrow = replace(layer(32, 32, 16, 16), weights="int4").problem()
    assert "int4 is faster multiplied directly" in str(kernel.avoids(narrow, target))


def test_bytes_refuse_what_does_not_pay_or_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    kernel, target = family("avx2.pairs")

    def refusal(case: Case) -> str:
        return str(kernel.avoids(case.problem(), target))

    four = low(layer(64, 32, 7, 7), "int4 uint4 uint4", operands="normal")
    assert refusal(four) == "None"
    assert "too small an image" in refusal(low(four, "int2 uint4 uint4"))
    assert refusal(low(layer(64, 32, 14, 14), "int2 uint4 uint4")) == "None"
    assert "too small an image" in refusal(low(layer(64, 32, 56, 56), "int1 uint4 uint4"))
    for wide in (low(four, "int4 uint7 uint4"), low(four, "int8 uint4 uint4", operands="high")):
        assert "too large" in refusal(wide)
    amx = replace(target, features=target.features | {"amx_int8"})
    assert "tdpbusd" in str(kernel.supports(four.problem(), amx))


def test_a_window_that_is_too_long_is_not_packed() -> None:
    kernel, _ = family("avx2.pairs")
    case = low(layer(256, 16, 6, 6), "int4 uint4 uint4", operands="high")
    problem, constants = case.problem(), case.data()
    assert problem.tile_flush == 4
    with pytest.raises(ScheduleError, match="beyond 16 bits"):
        kernel.pack(replace(problem, tile_flush=5), constants)


def reach(x: str) -> tuple[Any, Any]:
    """The least and the largest shifted activation at every spot, of all tiles of extremes."""
    low_, high = numerics.limits(x)
    lines = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    bits = (np.arange(1 << 16)[:, None] >> np.arange(16)) & 1
    tiles = lines @ (bits.reshape(-1, 4, 4) * (high - low_)) @ lines.T
    shifts = np.full(16, winograd_range.shift_of(x))
    shifts[winograd_range.SUM] = 0
    v = tiles.reshape(-1, 16) + shifts
    return v.min(0)[:, None], v.max(0)[:, None]


@given(
    st.integers(0, 2**32), st.integers(2, 5), st.sampled_from(["uint1", "uint4", "int4", "int6"])
)
@settings(max_examples=30)
def test_windows_and_pairs_are_safe(seed: int, bits: int, x: str) -> None:
    rng = np.random.default_rng(seed)
    case = low(layer(int(rng.integers(32, 400)), 9, 6, 6), f"int{bits} {x} {x}")
    w = rng.integers(0, rng.integers(2, (1 << bits - 1) + 1), (9, 3, 3, case.w[3]), np.int8)
    w[:, ::2] *= rng.choice([-1, 1])
    problem = replace(case.problem(), tile_flush=0)
    span = winograd_range.flush_of(problem, w)
    least, most = reach(x)
    assert least.min() >= 0
    assert most.max() <= 255
    if not span:
        return
    u = winograd_range.transformed(w).astype(np.int64)
    assert np.abs(u).max() <= 127
    for ends in (np.maximum(most * u, least * u), np.minimum(most * u, least * u)):
        filled = np.pad(ends, [(0, 0), (0, 0), (0, -ends.shape[2] % 4)])
        pairs = filled.reshape(9, 16, -1, 2, 2).sum(4)
        windows = np.add.reduceat(pairs, np.arange(0, pairs.shape[2], span), axis=2)
        for sums in (pairs, windows):
            assert sums.min() >= -32768
            assert sums.max() <= 32767


def _with(pair: tuple[Kernel, CpuTarget], case: Case) -> tuple[Kernel, Case, CpuTarget]:
    kernel, target = pair
    assert kernel.supports(case.problem(), target) is None
    return kernel, case, target
