"""Linear kernels for few rows equal the law bit for bit: every width, length and epilogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.ir import numerics
from nybble.schedules.cpu import gemv
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.cases import LINEAR, Case
from tests.schedules.cpu import running

pytestmark = pytest.mark.sweep

TARGETS = {"avx2": "x86-64-v3", "vnni": "x86-64-v4-vnni", "avx512": "x86-64-v4"}
FEW = [c for c in LINEAR if len(c.x) == 2 and (c.symbolic or c.x[0] <= gemv.FEW)]


def few(name: str, rows: int, k: int, o: int, **kw: Any) -> Case:
    """A linear layer."""
    return Case(name, "linear", (rows, k), (o, k), **kw)


OWN = (
    *(few(f"{w} x {x}", 1, 300, 45, weights=w, dtypes=(x, "int8"))
      for w in ("int2", "int3", "int4", "int5", "int6", "int7", "int8") for x in ("uint8", "int8")),
    *(few(f"{x} activations", 3, 260, 40, weights="int4", dtypes=(x, "uint4"))
      for x in ("uint4", "int4", "uint2", "int1", "uint1")),
    few("ternary", 2, 700, 33, weights="int2", ternary=True),
    *(few(f"{rows} rows", rows, 130, 70, weights="int4", epilogue="add") for rows in range(2, 9)),
    *(few(f"{w} K={k} {operands}", 1, k, 9, weights=w, operands=operands, dtypes=dtypes,
          epilogue="none")
      for w in ("int2", "int4", "int7") for k in (1, 31, 33, 255, 257, 2177, 4099, 65537)
      for operands, dtypes in (("high", ("uint8", "int32")), ("low", ("int8", "int32")))),
)  # fmt: skip
CASES = {case.name: case for case in (*FEW, *OWN) if case.weights not in ("int1", "uint1")}


def family(isa: str, case: Case) -> tuple[Kernel, CpuTarget]:
    """The kernel for a case, and its target; skips where this CPU lacks it."""
    target = resolve(TARGETS[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    name = f"cpu.int{numerics.width(case.weights)[1]}.gemv.{isa}"
    return next(k for k in (*gemv.KERNELS, *gemv.EIGHT_BITS) if k.name == name), target


def rows() -> Iterator[Any]:
    """Every third case on one instruction set now, alternating; all of them in the slow tests."""
    for i, name in enumerate(CASES):
        for isa in TARGETS:
            now = i % 3 == 0 and isa == ("avx2", "vnni", "avx2", "avx512")[i // 3 % 4]
            yield pytest.param(isa, name, marks=() if now else pytest.mark.slow)


@pytest.mark.parametrize(("isa", "name"), list(rows()))
def test_equals_the_law(isa: str, name: str) -> None:
    kernel, target = family(isa, CASES[name])
    assert kernel.supports(CASES[name].problem(), target) is None
    running.check(kernel, CASES[name], target)


@pytest.mark.parametrize(
    ("isa", "knobs"),
    [("avx2", {"parallel": True}), ("avx512", {"high": 3, "wide": 1}), ("vnni", {"wide": 4})],
)
def test_knobs_and_threads_do_not_matter(isa: str, knobs: dict[str, Any]) -> None:
    case = few("seven", 7, 1100, 270, weights="int4", epilogue="add")
    kernel, target = family(isa, case)
    running.check(kernel, case, target, Knobs(knobs))


def test_the_batch_is_chosen_at_run_time() -> None:
    case = few("batch", 5, 96, 100, weights="int4", symbolic=True)
    kernel, target = family("avx2", case)
    function = running.compiled(kernel, case, target)
    for batch in (1, 2, 4, 5, 127, 128, 131):
        other = dataclasses.replace(case, x=(batch, 96))
        arrays = other.data()
        got = running.run(kernel, other, function, arrays)
        np.testing.assert_array_equal(got, other.law(arrays))


@settings(max_examples=6)
@given(
    m=st.integers(1, 8), k=st.integers(1, 600), o=st.integers(1, 70), bits=st.integers(2, 8),
    x=st.sampled_from(["uint8", "int8", "uint4"]), operands=st.sampled_from(["random", "high"]),
)  # fmt: skip
def test_any_shape(m: int, k: int, o: int, bits: int, x: str, operands: str) -> None:
    case = few("any", m, k, o, weights=f"int{bits}", dtypes=(x, "int8"), operands=operands)
    kernel, target = family("avx2", case)
    running.check(kernel, case, target)


def test_refuses_in_words() -> None:
    case = few("few", 8, 64, 32, weights="int4")
    kernel, target = family("avx2", case)
    many = dataclasses.replace(case, x=(9, 64)).problem()
    assert "9 rows" in str(kernel.supports(many, target))
    assert "avx2" in str(kernel.supports(case.problem(), resolve("x86-64")))
    wide = dataclasses.replace(case, weights="int8").problem()
    assert "4-bit weights" in str(kernel.supports(wide, target))
    long = few("long", 1, 70000, 8, weights="int4").problem()
    assert "32 bits" in str(kernel.supports(long, target))
    tokens = dataclasses.replace(case, x=(2, 4, 64), symbolic=True).problem()
    assert "each image" in str(kernel.supports(tokens, target))
