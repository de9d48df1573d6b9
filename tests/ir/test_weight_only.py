"""The law of weight-only layers: the emulated fused multiply-add, rows, groups, the error bound."""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nybble.ir.weight_only import LEAST, fma, in_half, quantize_rows, weight_only

HARD = np.array(
    [0.0, -0.0, 1.0, -1.0, 1 + 2**-23, 1 - 2**-24, 2**-126, 2**-149, -(2.0**-149), 3.4028235e38,
     -3.4028235e38, 1e-30, 16777215.0, 2.0**-75, 1 / 3, np.inf, -np.inf, np.nan],
    np.float32,
)  # fmt: skip
floats = st.floats(width=32)


def fused() -> Any:
    """The C library's own fused multiply-add."""
    library = ctypes.util.find_library("m")
    if library is None:
        pytest.skip("no C mathematics library")
    function = ctypes.CDLL(library).fmaf
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    return function


def same(got: Any, want: Any) -> bool:
    """Equal as bits, every NaN alike."""
    got, want = np.float32(got), np.float32(want)
    return bool(np.isnan(got) and np.isnan(want)) or got.tobytes() == want.tobytes()


def test_fma_on_hard_operands() -> None:
    function = fused()
    a, b, c = (v.ravel() for v in np.meshgrid(HARD, HARD, HARD))
    got = fma(a, b, c)
    wrong = [
        t for t, value in zip(zip(a, b, c, strict=True), got, strict=True)
        if not same(value, function(*map(float, t)))
    ]  # fmt: skip
    assert wrong == []


@given(floats, floats, floats)
def test_fma_equals_the_c_library(a: float, b: float, c: float) -> None:
    assert same(fma(*(np.array([v], np.float32) for v in (a, b, c)))[0], fused()(a, b, c))


@given(st.integers(-(2**24), 2**24), st.integers(-40, 40), st.integers(1, 2**24))
def test_fma_near_ties(a: int, shift: int, b: int) -> None:
    """Addends of about half a last place of the product decide the rounding."""
    c = float(np.float32(np.ldexp(float(a) * float(b), shift)))
    given = [np.array([v], np.float32) for v in (a, b, c)]
    assert same(fma(*given)[0], fused()(a, b, c))


def test_rows_use_the_whole_range() -> None:
    x = np.array([[1.0, -2.0, 0.5, 0.0], [3e38, -3.4e38, 0, 1]], np.float32)
    q, scale = quantize_rows(x)
    np.testing.assert_array_equal(q, [[64, -127, 32, 0], [112, -127, 0, 0]])
    np.testing.assert_array_equal(scale, np.abs(x).max(1, keepdims=True) / np.float32(127))


@pytest.mark.parametrize("top", [0.0, 2.0**-149, 2.0**-126, float(LEAST) / 256])
def test_tiny_rows_are_zeros(top: float) -> None:
    q, scale = quantize_rows(np.full((1, 5), top, np.float32))
    assert not q.any()
    assert scale[0, 0] == LEAST / np.float32(127)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_without_a_scale_give_nan(value: float) -> None:
    x = np.ones((3, 40), np.float32)
    x[1, 17] = value
    y = weight_only(x, *operands(7, 40, 16, "int4"), group=16)
    assert np.isnan(y).tolist() == [[False] * 7, [True] * 7, [False] * 7]


def operands(o: int, k: int, group: int, dtype: str, seed: int = 0) -> list[NDArray[Any]]:
    """Weights, scales, zero points and bias."""
    rng = np.random.default_rng(seed)
    bits = int(dtype.removeprefix("int"))
    lo, shape = -(1 << bits - 1), (o, -(-k // group))
    return [
        rng.integers(lo, -lo, (o, k), np.int8),
        rng.random(shape, np.float32),
        rng.integers(lo, -lo, shape, np.int32),
        rng.standard_normal(o, np.float32),
    ]


@pytest.mark.parametrize(("k", "group"), [(1, 32), (31, 32), (33, 32), (256, 128), (257, 64)])
@pytest.mark.parametrize("dtype", ["int2", "int4", "int8"])
def test_error_bound(k: int, group: int, dtype: str) -> None:
    w, scale, zero, bias = operands(9, k, group, dtype)
    x = np.random.default_rng(1).standard_normal((6, k)).astype(np.float32)
    y = weight_only(x, w, scale, zero, bias, group=group)
    real = (w - np.repeat(zero, group, 1)[:, :k]) * np.repeat(scale, group, 1)[:, :k].astype("f8")
    q, row = (a.astype(np.float64) for a in quantize_rows(x))
    rounding = (0.5 + 2.0**-16) * row * np.abs(real).sum(1)
    sums = (scale.shape[1] + 2) * 2.0**-24 * (row * (np.abs(q) @ np.abs(real).T) + np.abs(bias))
    assert (np.abs(y - (x @ real.T + bias)) <= rounding + sums).all()


def test_sums_of_a_group_are_exact() -> None:
    x = np.full((1, 600), 127, np.float32)
    w = np.full((1, 600), -128, np.int8)
    one, none = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    y = weight_only(x, w, one, np.full((1, 1), 127, np.int32), none, group=600)
    assert y[0, 0] == np.float32(-600 * 127 * 255)


# ---------------------------------------------------------------- half precision


def test_in_half_precision_weights_are_exact_and_activations_rounded_once() -> None:
    x = np.array([[1 + 2**-11, -(1 + 3 * 2**-11), 2.0, 3.0]], np.float32)  # ties go to even
    w, zero = np.array([[3, -1, 7, 0]], np.int8), np.array([[1, 2]], np.int32)
    scale, bias = np.array([[1 / 3, 0.1]], np.float32), np.array([0.5], np.float32)
    value, bound = in_half(x, w, scale, zero, bias, group=2)
    thirds, tenths = (float(s) for s in scale[0])
    want = thirds * (2 * 1 - 2 * -(1 + 2**-9)) + tenths * (2 * 5 + 3 * -2) + 0.5
    sizes = thirds * (2 * 1 + 2 * (1 + 2**-9)) + tenths * (2 * 5 + 3 * 2) + 0.5
    assert value[0, 0] == pytest.approx(want, rel=1e-15)
    assert bound[0, 0] == pytest.approx(1e-3 * sizes, rel=1e-12)
    got = weight_only(x, w, scale, zero, bias, group=2, compute="float16")
    assert got.dtype == np.float32
    assert got[0, 0] == np.float32(want)


def test_beyond_half_precision_is_infinite() -> None:
    x = np.array([[65519.0], [65520.0]], np.float32)
    w, one = np.array([[1], [-2], [0]], np.int8), np.ones((3, 1), np.float32)
    zero, bias = np.zeros((3, 1), np.int32), np.zeros(3, np.float32)
    value, _ = in_half(x, w, one, zero, bias, group=1)
    np.testing.assert_array_equal(value[0], [65504, -131008, 0])
    np.testing.assert_array_equal(value[1], [np.inf, -np.inf, np.nan])
