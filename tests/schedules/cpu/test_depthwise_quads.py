"""Depthwise kernels on quads of taps equal the law bit for bit, at every width."""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.schedules.cpu import depthwise_quads, quads
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import CONV, DEPTHWISE, QUADS, Case
from tests.schedules.cpu import running

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


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_slots_hold_the_weights(data: Any, kh: int, kw: int, bounded: bool) -> None:
    values = st.integers(-128, 127) | st.sampled_from([-128, 127]) | st.integers(-40, 40)
    flat = data.draw(st.lists(values, min_size=3 * kh * kw, max_size=3 * kh * kw))
    weights = np.array(flat, np.int8).reshape(3, kh, kw)
    slots, fits = quads.slots(weights, bounded)
    total = np.zeros((3, kh + 1, kw), np.int64)
    for quad, starts in enumerate(quads.row_pairs(kh)):
        for pair, first in enumerate(starts):
            for row in (0, 1):
                total[:, first + row] += slots[:, quad, :, 2 * pair + row]
    np.testing.assert_array_equal((total[:, :kh] == weights).all((1, 2)), fits)
    assert not total[:, kh].any()
    assert fits.all() or (bounded and np.abs(weights.astype(int)).max() > 40)
    pairs = slots.astype(np.int64).reshape(*slots.shape[:-1], 2, 2)
    if bounded:
        assert (np.maximum(pairs, 0).sum(-1) * 255 < 1 << 15).all()
        assert (np.minimum(pairs, 0).sum(-1) * 255 >= -(1 << 15)).all()
