"""``cpu.generic`` on every width of inputs, weights and outputs equals the law bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nybble.ir import numerics
from nybble.schedules.cpu import bits, fallback
from nybble.schedules.target import resolve
from tests.cases import CONV, DEPTHWISE, LINEAR, Case
from tests.schedules.cpu import running

pytestmark = pytest.mark.sweep

V3 = resolve("x86-64-v3")
CASES = {case.name: case for case in (*CONV, *DEPTHWISE, *LINEAR)}
SHAPES = ("odd everything", "grouped odd", "dw 4x2", "1x1 tails", "batch of tokens", "one output")
WIDTHS = range(1, 9)


def narrowed(case: Case, w: int, a: int, **changes: Any) -> Case:
    """The case with weights of w bits; inputs, outputs and the second branch of a bits."""
    dtypes: Any = tuple(f"{d.removesuffix('8')}{a}" if d.endswith("8") else d for d in case.dtypes)
    other = f"{case.other.removesuffix('8')}{a}"
    return replace(case, weights=f"int{w}", dtypes=dtypes, other=other, **changes)


def check(case: Case) -> None:
    kernel = fallback.CONV2D if case.op == "conv2d" else fallback.LINEAR
    running.check(kernel, case, V3)


@pytest.mark.parametrize("weights", WIDTHS)
@pytest.mark.parametrize("turn", [0, 3])
def test_widths(weights: int, turn: int) -> None:
    name = SHAPES[(weights + turn) % len(SHAPES)]
    check(narrowed(CASES[name], weights, (weights + turn) % 8 + 1))


@pytest.mark.slow
@pytest.mark.parametrize("weights", WIDTHS)
@pytest.mark.parametrize("name", CASES)
def test_all_shapes(name: str, weights: int) -> None:
    check(narrowed(CASES[name], weights, 9 - weights))


@pytest.mark.parametrize("operands", ["high", "low", "alternating"])
@pytest.mark.parametrize(
    ("k", "weights", "activations"),
    [(1, 1, 1), (31, 2, 3), (33, 4, 4), (257, 7, 8), (2177, 3, 8), (4099, 1, 8)],
)
def test_extreme_operands(k: int, weights: int, activations: int, operands: str) -> None:
    case = Case("", "linear", (3, k), (5, k), dtypes=("int8", "int32"), epilogue="none")
    check(narrowed(case, weights, activations, operands=operands))


@pytest.mark.parametrize("dtype", [f"int{b}" for b in range(1, 8)])
def test_weights_lie_packed(dtype: str) -> None:
    case = replace(CASES["3x3"], weights=dtype)
    constants = {k: v for k, v in case.data().items() if k != "x"}
    packed = fallback.pack(case.problem(), constants)[0]
    width = numerics.width(dtype)[1]
    assert packed.dtype == np.uint8
    assert packed.nbytes == packed.shape[0] + np.prod(case.w) * width // 8  # a byte a block more
    assert bits.is_narrow(dtype)
    assert not bits.is_narrow("int8")
