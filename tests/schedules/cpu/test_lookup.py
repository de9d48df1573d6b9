"""Look-up in tables equals the law at every width, for every index."""

from typing import Any

import numpy as np
import pytest

from nybble.ir import graph, numerics, ops
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.schedules.cpu import narrow
from tests.schedules.modules import check_exact, module

pytestmark = pytest.mark.sweep

LEVELS = {"avx2": "x86-64-v3", "avx512": "x86-64-v4", "vbmi": "x86-64-v4-amx"}
DTYPES = [f"{sign}int{bits}" for bits in range(1, 9) for sign in ("", "u")]


def machine(isa: str) -> CpuTarget:
    target = resolve(LEVELS[isa])
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    return target


def case(source: str, output: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """A module with one table of random entries, and every index, again and again."""
    rng = np.random.default_rng(len(source) + len(output))
    low, high = numerics.limits(source)
    lo, hi = numerics.limits(output)
    entries = rng.integers(lo, hi, high - low + 1, numerics.storage(output), endpoint=True)
    if output == "int1":
        entries = entries | 1
    values = graph.constant(entries, output)

    def body(e: graph.Emitter, x: Any) -> Any:
        return e.emit(ops.call("table", [narrow.entered(e, x, source, 1.0), values]), "y")

    step = 2 if source == "int1" else 1
    held = narrow.given(source)
    zero = high // 2 + 1 if held == "float32" and low == 0 else 0  # `narrow.entered` adds it
    every = np.arange(low, high + 1, step) - zero
    return module(body, (shape, held)), np.resize(every, (3, *shape)).astype(held)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("source", DTYPES)
def test_every_index(isa: str, source: str) -> None:
    mod, x = case(source, "int8", (9, 67))
    compiled = check_exact(mod, machine(isa), None, x)
    assert compiled.kernels[-1] == ("table", f"cpu.lookup.{isa}")


@pytest.mark.parametrize("output", ["uint8", "int4", "uint1", "int1", "int3"])
@pytest.mark.parametrize("shape", [(64,), (5, 7, 3), (1200, 130)])
def test_every_width_and_shape(output: str, shape: tuple[int, ...]) -> None:
    mod, x = case("uint8", output, shape)
    compiled = check_exact(mod, machine("avx2"), None, x)
    assert compiled.kernels == [("table", "cpu.lookup.avx2")]


def test_short_tensors_are_left_to_the_generic_kernel() -> None:
    mod, x = case("int8", "int8", (7,))
    assert check_exact(mod, machine("avx2"), None, x).kernels == [("table", "cpu.generic")]


def test_the_planner_may_force_the_generic_kernel() -> None:
    mod, x = case("int8", "uint4", (3, 100))
    compiled = check_exact(mod, machine("avx2"), "cpu.generic", x)
    assert compiled.kernels == [("table", "cpu.generic")]
