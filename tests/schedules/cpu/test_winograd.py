"""Integer Winograd convolution equals the law, for every width, size and choice of its knobs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nybble.schedules.cpu import winograd
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import Case
from tests.schedules.cpu import running

ISAS = {"avx2": "x86-64-v3", "avx512": "x86-64-v4"}


@pytest.fixture(autouse=True)
def anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is right for every layer is tested for small ones too, though it pays for none."""
    monkeypatch.setattr(winograd, "FEWEST_TILES", 1)
    monkeypatch.setattr(winograd, "FEWEST_BITS", 1)


def family(isa: str) -> tuple[Kernel, CpuTarget]:
    target = resolve(ISAS[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    return next(k for k in winograd.KERNELS if k.name.endswith(isa)), target


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


def test_every_choice_gives_the_same_bits() -> None:
    case = layer(32, 40, 9, 6)
    kernel, target = family("avx2")
    knobs = Knobs()
    kernel.build(case.problem(), target, knobs)
    assert set(knobs.space) == {"parallel", "rows", "splits", "tile"}
    for name, choices in knobs.space.items():
        for choice in choices:
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
    assert kernel.supports(layer(32, 32, 16, 16).problem(), target) is None
    assert "too small an image" in str(kernel.supports(layer(32, 32, 14, 14).problem(), target))
    narrow = replace(layer(32, 32, 16, 16), weights="int4").problem()
    assert "int4 is faster multiplied directly" in str(kernel.supports(narrow, target))


def _with(pair: tuple[Kernel, CpuTarget], case: Case) -> tuple[Kernel, Case, CpuTarget]:
    kernel, target = pair
    assert kernel.supports(case.problem(), target) is None
    return kernel, case, target
