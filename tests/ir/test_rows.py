"""Softmax and norms in integers stay within the errors that docs/integer_ops.md derives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nybble.ir import numerics, rows

RNG = np.random.default_rng(7)


def octave_scale(step: float) -> tuple[Any, Any]:
    return numerics.dyadic(np.asarray(step * np.log2(np.e) * 2**rows.OCTAVE_BITS))


def shares(q: Any, step: float) -> Any:
    """The softmax of what integers stand for, in steps of 2^-8."""
    power = np.exp((q - q.max(axis=-1, keepdims=True).astype(np.float64)) * step)
    return np.minimum(power / power.sum(axis=-1, keepdims=True) * 256, 255)


@pytest.mark.parametrize("length", [1, 2, 7, 128, 2048, 65536])
@pytest.mark.parametrize("spread", [0.1, 3, 40])
def test_softmax_is_right_to_half_a_step(length: int, spread: float) -> None:
    step = spread / 2**14
    q = np.rint(RNG.standard_normal((max(20 - length, 3), length)) * 2**14).astype(np.int32)
    exact: Any = rows.softmax(q, *octave_scale(step), dtype="uint8")
    np.testing.assert_allclose(exact, shares(q, step), atol=0.5 + 256 * 2.0**-12)


def test_softmax_of_the_largest_and_smallest_integers() -> None:
    ends = np.array([[2**31 - 1, -(2**31), 2**31 - 1, -(2**31)], [-(2**31)] * 4], np.int32)
    found = rows.softmax(ends, *octave_scale(1e-4), dtype="uint8")
    np.testing.assert_array_equal(found, [[128, 0, 128, 0], [64] * 4])
    one = rows.softmax(np.array([[5], [-9]], np.int8), *octave_scale(1.0), dtype="uint4")
    np.testing.assert_array_equal(one, [[15], [15]])


def test_the_power_of_two_by_every_fraction() -> None:
    fraction = np.arange(1 << rows.OCTAVE_BITS)
    wanted = 2.0 ** (rows.POWER_BITS - fraction / 2.0**rows.OCTAVE_BITS)
    assert np.abs(rows.power(fraction) / wanted - 1).max() < 1.8e-4
    assert rows.power(np.array([0, 20 << 15, 21 << 15, 22 << 15])).tolist() == [1 << 20, 1, 1, 0]


def test_the_reciprocal_root() -> None:
    edges = [n + d for n in (4**i for i in range(1, 31)) for d in (-1, 0, 1)]
    square = np.array([*range(20000), *edges, 2**53 - 1, 2**53 + 1, 2**62 - 1], np.int64)
    y, shift = rows.reciprocal_root(square)
    wanted = 2.0**16 / np.sqrt(np.maximum(square, 1).astype(np.float64))
    assert np.abs(y / 2.0**shift / wanted - 1).max() < 2.0**-28
    assert (y.min(), y.max()) >= (2**30, 0)
    assert y.max() < 2**31


def affine(gamma: Any, beta: Any, step: float, shift: int = 10) -> tuple[Any, Any, int]:
    multiplier = np.rint(gamma / step * 2.0 ** (shift + 16)).astype(np.int32)
    offset = np.rint(beta / step * 2.0**shift) + 2 ** (shift - 1)
    return multiplier, offset.astype(np.int32), shift


@pytest.mark.parametrize("channels", [1, 5, 64, 768])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_are_right_to_half_a_step(name: str, channels: int) -> None:
    x = RNG.integers(0, 255, (50, channels), np.uint8, endpoint=True)
    x[0], x[1] = 9, 0
    x[1, 0] = 255
    gamma, beta = RNG.uniform(-1.5, 1.5, channels), RNG.standard_normal(channels)
    step_in, step, epsilon = 0.03, 0.05, 1e-5
    multiplier, offset, shift = affine(gamma, beta, step)
    wide = np.int64(round(epsilon * (channels / step_in) ** 2))
    zero: dict[str, Any] = {"zero_point_in": 100} if name == "rms_norm" else {}
    found = getattr(rows, name)(
        x, multiplier, offset, wide, shift=shift, dtype="int16", lo=-32768, hi=32767, **zero
    )
    real = (x - 100.0) * step_in
    centred = real - real.mean(axis=-1, keepdims=True) if name == "layer_norm" else real
    spread = np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + epsilon)
    np.testing.assert_allclose(found, (centred / spread * gamma + beta) / step, atol=0.505)


def test_products_take_both_zero_points_off() -> None:
    a = RNG.integers(0, 255, (2, 3, 4, 5), np.uint8, endpoint=True)
    b = RNG.integers(-128, 127, (2, 3, 6, 5), np.int8, endpoint=True)
    found = rows.matmul(a, b, zero_point_a=200, zero_point_b=-3, transpose_b=True)
    wanted = np.einsum("xyij,xykj->xyik", a.astype(np.int64) - 200, b.astype(np.int64) + 3)
    np.testing.assert_array_equal(found, wanted)
    turned = rows.matmul(a, np.swapaxes(b, -1, -2), zero_point_a=200, zero_point_b=-3)
    np.testing.assert_array_equal(found, turned)
