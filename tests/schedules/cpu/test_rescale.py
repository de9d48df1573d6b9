"""Requantization and addition in vectors equal the law bit for bit, at every width."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.ir import graph, numerics, ops
from nybble.schedules.target import CpuTarget, host_features, resolve
from tests.schedules.cpu import narrow
from tests.schedules.modules import Compiled, check_exact, inputs_of, module
from tests.schedules.test_integer import clamped

pytestmark = pytest.mark.sweep

Tensor = tuple[tuple[int, ...], str]

TARGETS = ["x86-64-v3", pytest.param("x86-64-v4", marks=pytest.mark.slow)]


def machine(name: str) -> CpuTarget:
    target = resolve(name)
    if not target.features <= host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(target.features - host_features()))}")
    return target


def ratios(channels: int, lowest: float, highest: float) -> list[Any]:
    rng = np.random.default_rng(channels)
    found = numerics.dyadic(np.exp2(rng.uniform(lowest, highest, channels)))
    return [graph.constant(values) for values in found]


def one(name: str, constants: list[Any], *inputs: Tensor, **attrs: Any) -> Any:
    """A module of one op behind inputs of any width; each stands before its share of constants."""
    share = len(constants) // len(inputs)

    def body(e: graph.Emitter, *given: Any) -> Any:
        operands = []
        for i, (x, (_, dtype)) in enumerate(zip(given, inputs, strict=True)):
            operands.append(narrow.entered(e, x, dtype))
            operands += constants[i * share : (i + 1) * share]
        return e.emit(ops.call(name, operands, **attrs), "y")

    return module(body, *((shape, narrow.given(dtype)) for shape, dtype in inputs))


def kernel_of(compiled: Compiled) -> str:
    return compiled.kernels[-1][1].rpartition(".")[0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("source", "output", "shape"),
    [
        ("uint8", "uint8", (5, 7, 64)), ("int8", "uint4", (3, 33)), ("int32", "int8", (9, 48)),
        ("uint4", "int8", (50,)), ("int1", "int3", (2, 3, 40)), ("int5", "int1", (4, 35)),
        ("int32", "uint1", (7, 32)), ("uint2", "uint6", (65,)), ("int16", "uint8", (5, 33)),
    ],
)  # fmt: skip
def test_requantize(target: str, source: str, output: str, shape: tuple[int, ...]) -> None:
    highest = 10 if source in ("int32", "int16") else 17
    attrs = clamped(output, zero_point_in=0 if source == "int32" else 1, zero_point=1)
    mod = one("requantize", ratios(shape[-1], -20, highest), (shape, source), **attrs)
    compiled = check_exact(mod, machine(target))
    assert kernel_of(compiled) == ("cpu" if source == "int16" else "cpu.rescale")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("a", "b", "output"),
    [("uint8", "int8", "uint8"), ("int4", "uint2", "int8"), ("int1", "int1", "uint2")],
)
def test_add(target: str, a: str, b: str, output: str) -> None:
    constants = [*ratios(37, -9, 2), *ratios(37, -9, 2)]
    attrs = clamped(output, zero_point_a=3, zero_point_b=-100, zero_point=1)
    mod = one("add", constants, ((6, 37), a), ((6, 37), b), **attrs)
    assert kernel_of(check_exact(mod, machine(target))) == "cpu.rescale"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("gated", ["", "a", "b"])
@pytest.mark.parametrize(
    ("a", "b", "output"),
    [("uint8", "int8", "uint8"), ("int8", "int8", "int8"), ("uint4", "int2", "int5")],
)
def test_multiply(target: str, gated: str, a: str, b: str, output: str) -> None:
    attrs = clamped(output, zero_point_a=3, zero_point_b=-1, zero_point=2)
    shapes = {name: (1, 1, 37) if name == gated else (5, 3, 37) for name in "ab"}
    inputs = [(shapes["a"], a), (shapes["b"], b)]

    def body(e: graph.Emitter, *given: Any) -> Any:
        x, y = (narrow.entered(e, x, d) for x, (_, d) in zip(given, inputs, strict=True))
        return e.emit(ops.call("multiply", [x, y, *ratios(37, -14, 2)], **attrs), "y")

    mod = module(body, *((shape, narrow.given(dtype)) for shape, dtype in inputs))
    assert kernel_of(check_exact(mod, machine(target))) == "cpu.rescale"


@pytest.mark.parametrize("batch", [1, 2, 500])
def test_every_batch_and_thread(batch: int) -> None:
    mod = one("requantize", ratios(48, -3, 1), ((17, 13, 48), "uint8"), **clamped("uint8"))
    arrays = inputs_of(mod, batch)
    check_exact(mod, resolve("x86-64-v3"), None, *arrays)


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(1, 62)), min_size=16, max_size=20
    )
)
def test_any_accumulator_and_shift(drawn: list[tuple[int, int]]) -> None:
    values = np.array([[value for value, _ in drawn]], np.int32)
    multiplier = np.full(len(drawn), (1 << 31) - 1, np.int32)
    shift = np.array([shift for _, shift in drawn], np.int32)
    constants = [graph.constant(multiplier), graph.constant(shift)]
    mod = one("requantize", constants, ((len(drawn),), "int32"), **clamped("int8"))
    check_exact(mod, resolve("x86-64-v3"), None, values)


def test_what_reaches_too_far_or_is_broadcast_is_left_to_the_generic_kernel() -> None:
    far = [graph.constant(np.full(32, v, np.int32)) for v in (1 << 30, 5)]
    mod = one("requantize", far, ((4, 32), "uint8"), **clamped("uint8"))
    assert kernel_of(check_exact(mod)) == "cpu"
    constants = [*ratios(32, -2, 0), *ratios(32, -2, 0)]
    mod = one("add", constants, ((4, 32), "uint8"), ((1, 32), "uint8"), **clamped("uint8"))
    assert kernel_of(check_exact(mod)) == "cpu"
