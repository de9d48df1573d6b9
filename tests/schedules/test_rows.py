"""Kernels of softmax, norms and products of two tensors equal the law bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nybble.ir import graph, numerics, ops
from nybble.schedules.cpu import matmul, norms, softmax
from nybble.schedules.kernel import Knobs
from nybble.schedules.match import groups
from nybble.schedules.target import resolve
from tests.schedules.modules import check_exact, module
from tests.walking import runs_here

pytestmark = pytest.mark.sweep
C = graph.constant
V3 = "x86-64-v3"


def soft(dtype: str, length: int, ratio: float, out: str = "uint8") -> Any:
    constants = [C(c) for c in numerics.dyadic(np.asarray(ratio))]

    def body(emitter: Any, x: Any) -> Any:
        return emitter.emit(ops.call("softmax", [x, *constants], dtype=out), "y")

    return module(body, ((3, length), dtype))


@pytest.mark.parametrize("length", [16, 37])
@pytest.mark.parametrize(
    ("dtype", "ratio", "out"),
    [("int8", 1500.0, "uint8"), ("int32", 1e-3, "uint8"), ("int32", 2.0**28, "uint4")],
)
def test_softmax(dtype: str, ratio: float, out: str, length: int) -> None:
    """Differences of int32 fill 32 bits; ratios from far below 1 to the largest."""
    made = check_exact(soft(dtype, length, ratio, out), resolve(V3))
    assert made.kernels == [("softmax", "cpu.rows.avx2")]


@pytest.mark.parametrize(("rows", "length"), [(5, 21), (1, 16)])
def test_masked_softmax(rows: int, length: int) -> None:
    """What is hidden may be larger than all the rest; a row may be hidden whole."""
    mask = np.random.default_rng(5).integers(0, 1, (rows, length), np.uint8, endpoint=True)
    mask[-1] = rows == 1
    constants = [C(mask), *map(C, numerics.dyadic(np.asarray(40.0)))]

    def body(emitter: Any, x: Any) -> Any:
        return emitter.emit(ops.call("masked_softmax", [x, *constants], dtype="uint8"), "y")

    made = check_exact(module(body, ((3, 5, length), "int32")), resolve(V3))
    assert made.kernels == [("masked_softmax", "cpu.rows.avx2")]


@pytest.mark.parametrize(("length", "kernel"), [(2048, "cpu.rows.avx2"), (16400, "cpu.generic")])
def test_a_long_row_of_equal_values(length: int, kernel: str) -> None:
    """The largest sums, beyond 32 bits: in every lane by itself, or in 64 bits."""
    zeros = np.zeros((1, 3, length), np.int8)
    made = check_exact(soft("int8", length, 1500.0), resolve(V3), None, zeros)
    assert made.kernels == [("softmax", kernel)]


def norm(name: str, dtype: str, channels: int, shift: int = 9) -> Any:
    rng = np.random.default_rng(channels)
    gamma = C(rng.integers(-(2**31) + 1, 2**31 - 1, channels, np.int32))
    beta = C(rng.integers(-(2**20), 2**20, channels, np.int32))
    attrs = {"shift": shift, "dtype": "int8", "lo": -128, "hi": 100, "zero_point": -7}
    if name == "rms_norm":
        attrs["zero_point_in"] = 30

    def body(emitter: Any, x: Any) -> Any:
        return emitter.emit(ops.call(name, [x, gamma, beta, C(np.int64(999))], **attrs), "y")

    return module(body, ((4, channels), dtype))


@pytest.mark.parametrize("channels", [16, 45])
@pytest.mark.parametrize(("name", "dtype"), [("layer_norm", "uint8"), ("rms_norm", "int8")])
def test_norms(name: str, dtype: str, channels: int) -> None:
    made = check_exact(norm(name, dtype, channels), resolve(V3))
    assert made.kernels == [(name, "cpu.rows.avx2")]


def test_a_norm_of_rows_without_variance() -> None:
    rows = np.stack([np.full((4, 16), value, np.uint8) for value in (0, 255)])
    check_exact(norm("layer_norm", "uint8", 16), resolve(V3), None, rows)


def product(
    a: tuple[str, tuple[int, ...]], b: tuple[str, tuple[int, ...]], zero: int, transposed: bool,
    rescaled: bool,
) -> Any:  # fmt: skip
    attrs = {"zero_point_a": zero, "transpose_b": transposed}

    def body(emitter: Any, x: Any, y: Any) -> Any:
        acc = emitter.emit(ops.call("matmul", [x, y], **attrs), "acc")
        if not rescaled:
            return acc
        scale = [C(c) for c in numerics.dyadic(np.asarray(2e-3))]
        bounds = {"dtype": "int8", "lo": -128, "hi": 127, "zero_point": 3}
        return emitter.emit(ops.call("requantize", [acc, *scale], **bounds), "y")

    return module(body, (a[1], a[0]), (b[1], b[0]))


PRODUCTS = {
    "scores": (("int8", (2, 20, 32)), ("int8", (2, 19, 32)), 0, True, False),
    "mixed": (("uint8", (2, 20, 19)), ("int8", (2, 19, 24)), 0, False, True),
    "zero point, odd": (("int8", (2, 5, 33)), ("int8", (2, 33, 17)), -9, False, True),
    "few rows": (("uint8", (1, 1, 7)), ("int8", (1, 18, 7)), 5, True, False),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("target", [V3, "native"])
def test_products(name: str, target: str) -> None:
    runs_here(target)
    made = check_exact(product(*PRODUCTS[name]), resolve(target))
    (kernel,) = [kernel for _, kernel in made.kernels]
    assert kernel.startswith("cpu.int8.")


def test_extreme_products() -> None:
    """Sums that only 32 bits hold: 255·(-128), 400 times."""
    a = np.full((1, 2, 16, 400), 255, np.uint8)
    b = np.full((1, 2, 16, 400), -128, np.int8)
    mod = product(("uint8", (2, 16, 400)), ("int8", (2, 16, 400)), 0, True, False)
    check_exact(mod, resolve(V3), None, a, b)


def test_every_tile_gives_the_same_bits() -> None:
    """All choices of a product's knobs build, and none changes the kernel's parameters."""
    target = resolve(V3)
    (group,) = groups(product(*PRODUCTS["mixed"]), target)
    assert group.problem is not None
    (kernel,) = [k for k in matmul.KERNELS if k.refuses(group.problem, target) is None]
    knobs = Knobs()
    kernel.plan(group.problem, target, knobs)
    assert set(knobs.space) == {"tile", "parallel"}
    for tile in knobs.space["tile"][:3]:
        kernel.build(group.problem, target, Knobs({"tile": tile, "parallel": True}))


def test_what_the_vector_kernels_refuse() -> None:
    target = resolve(V3)
    refusals = {
        kernel.refuses(group.problem, target)
        for mod, kernels in (
            (soft("int8", 5, 100.0), softmax.KERNELS),
            (norm("layer_norm", "uint8", 5), norms.KERNELS),
        )
        for group in groups(mod, target)
        for kernel in kernels
        if group.problem is not None and kernel.name == "cpu.rows.avx2"
        and kernel.op == group.problem.op
    }  # fmt: skip
    assert refusals == {"5 values fill no vector", "5 channels fill no vector"}
