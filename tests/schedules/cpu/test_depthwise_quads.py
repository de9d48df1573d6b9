"""Depthwise kernels on quads of taps equal the law bit for bit, at every width."""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.schedules.cpu import depthwise, depthwise_quads, quads
from nybble.schedules.cpu.pairs import Pairs
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import CONV, DEPTHWISE, QUADS, Case
from tests.schedules.cpu import running

pytestmark = pytest.mark.sweep

TARGETS = {
    "avx2": "x86-64-v3",
    "vnni256": "x86-64-v4-vnni",
    "vnni": "x86-64-v4-vnni",
    "avx512": "x86-64-v4",
}
CASES = {case.name: case for case in DEPTHWISE + QUADS}


def family(isa: str) -> tuple[Kernel, CpuTarget]:
    """The kernel of an instruction set, and its target; skips where this CPU lacks it."""
    target = resolve(TARGETS[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    name = f"cpu.int8.depthwise.quads.{isa}"
    return next(k for k in depthwise_quads.KERNELS if k.name == name), target


def rows() -> Iterator[Any]:
    """What each instruction set compiles; all of AVX2 and some of the others without ``slow``."""
    for isa, level in TARGETS.items():
        kernel = next(k for k in depthwise_quads.KERNELS if k.name.endswith(f".{isa}"))
        for i, (name, case) in enumerate(CASES.items()):
            if kernel.supports(case.problem(), resolve(level)) is None:
                now = (isa == "avx2" and i % 2 == 0) or i % 7 == 1
                yield pytest.param(isa, name, marks=() if now else pytest.mark.slow)


@pytest.mark.parametrize(("isa", "name"), list(rows()))
def test_equals_the_law(isa: str, name: str) -> None:
    kernel, target = family(isa)
    running.check(kernel, CASES[name], target)


@pytest.mark.parametrize("isa", ["avx2", pytest.param("vnni256", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["dw 3x3 add", "dw 4x2", "dw batch", "dw large"])
def test_every_choice_gives_the_same_bits(isa: str, name: str) -> None:
    kernel, target = family(isa)
    if kernel.supports(CASES[name].problem(), target) is not None:
        pytest.skip("strided layers are left to another kernel here")
    draw = random.Random(name)
    for _ in range(2):
        knobs = Knobs()
        kernel.build(CASES[name].problem(), target, knobs)
        knobs.decisions = {knob: draw.choice(choices) for knob, choices in knobs.space.items()}
        running.check(kernel, CASES[name], target, knobs)


def test_refuses_in_words() -> None:
    kernel, target = family("avx2")

    def reason(case: Case, **changed: Any) -> str:
        return str(kernel.supports(dataclasses.replace(case.problem(), **changed), target))

    grouped = next(case for case in CONV if case.name == "grouped")
    assert "not depthwise" in reason(grouped)
    assert "fill no block" in reason(CASES["dw few channels"])
    wide = dataclasses.replace(CASES["dw 3x3"].problem().inputs[0], dtype="int16")
    assert "at most 8 bits" in reason(CASES["dw 3x3"], inputs=(wide,))
    assert "needs avx2" in str(kernel.supports(CASES["dw 3x3"].problem(), resolve("x86-64")))


@settings(max_examples=60)
@given(st.data(), st.integers(1, 9), st.integers(1, 3))
def test_slots_hold_the_weights(data: Any, kh: int, kw: int) -> None:
    weights = drawn(data, kh, kw)
    slots = quads.slots(weights)
    total = np.zeros((3, kh + 1, kw), np.int64)
    for quad, starts in enumerate(quads.row_pairs(kh)):
        for pair, first in enumerate(starts):
            for row in (0, 1):
                total[:, first + row] += slots[:, quad, :, 2 * pair + row]
    np.testing.assert_array_equal(total[:, :kh], weights)
    assert not total[:, kh].any()


@settings(max_examples=60)
@given(st.data(), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_pairs_of_16_bits_hold_the_weights(
    data: Any, kh: int, kw: int, stride: int, dilation: int
) -> None:
    weights = drawn(data, kh, kw)
    geometry = dataclasses.replace(
        depthwise.geometry_of(CASES["dw 3x3"].problem()),
        tap_rows=kh, tap_cols=kw, stride=(stride, 1), dilation=(dilation, 1),
    )  # fmt: skip
    pairs = Pairs(geometry, 4, 16, 0, wide=True)
    slots = quads.pair_slots(weights, pairs)
    for row in range(4):
        start = row * stride
        begin, parity = divmod(start, pairs.every) if pairs.every == 2 else (start, 0)
        total: dict[int, Any] = {}
        for pair in range(pairs.count):
            place = begin + pairs.taps(parity, pair)[0]
            assert place < pairs.rows
            for slot in (0, 1):
                at = place * pairs.every + slot * pairs.apart - start
                found = slots[:, parity, pair, :, slot].astype(np.int64)
                total[at] = total.get(at, 0) + found
        for at, found in total.items():
            tap, rest = divmod(at, dilation)
            inside = rest == 0 and 0 <= tap < kh
            np.testing.assert_array_equal(found, weights[:, tap] if inside else 0)
        assert {tap * dilation for tap in range(kh)} <= set(total)


def drawn(data: Any, kh: int, kw: int) -> Any:
    """Weights of three channels."""
    values = st.integers(-128, 127) | st.sampled_from([-128, 127]) | st.integers(-40, 40)
    flat = data.draw(st.lists(values, min_size=3 * kh * kw, max_size=3 * kh * kw))
    return np.array(flat, np.int8).reshape(3, kh, kw)
