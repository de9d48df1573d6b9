"""The law against independent definitions: Python's unbounded integers and fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nybble.ir import numerics

INT32 = st.integers(-(2**31), 2**31 - 1)
MULTIPLIER = st.integers(0, 2**31 - 1)
SHIFT = st.integers(1, numerics.MAX_SHIFT)


def scaled(x, m, c, rounding):
    return int(numerics.scaled(np.int64(x), np.int64(m), np.int64(c), rounding))


@given(INT32, MULTIPLIER, SHIFT)
def test_half_up_is_floor_of_quotient_plus_a_half(x, m, c):
    assert scaled(x, m, c, "half_up") == (Fraction(x * m, 2**c) + Fraction(1, 2)).__floor__()


@given(INT32, MULTIPLIER, SHIFT)
def test_half_even_is_pythons_round(x, m, c):
    assert scaled(x, m, c, "half_even") == round(Fraction(x * m, 2**c))


def away_from_zero(q: Fraction) -> int:
    half = Fraction(1, 2)
    return (q + half).__floor__() if q >= 0 else -((-q + half).__floor__())


@given(INT32, st.integers(2**30, 2**31 - 1), st.integers(25, 60))
def test_tflite_is_two_roundings(x, m, c):
    left, right = max(31 - c, 0), max(c - 31, 0)
    saturated = min(max(x << left, -(2**31)), 2**31 - 1)
    nudge = 2**30 if saturated * m >= 0 else 1 - 2**30
    doubled = saturated * m + nudge
    high = abs(doubled) // 2**31 * (1 if doubled >= 0 else -1)
    assert scaled(x, m, c, "tflite") == away_from_zero(Fraction(high, 2**right))


@pytest.mark.parametrize(("x", "up", "even", "tflite"), [(-3, -1, -2, -2), (-1, 0, 0, -1),
                                                        (1, 1, 0, 1), (3, 2, 2, 2)])  # fmt: skip
def test_conventions_differ_on_ties(x, up, even, tflite):
    """x/2 for odd x: the three conventions, spelled out."""
    m, c = 2**30, 31
    assert scaled(x, m, c, "half_up") == up
    assert scaled(x, m, c, "half_even") == even
    assert scaled(x, m, c + 0, "tflite") in (tflite, up)  # the doubling multiply rounds half up


@given(st.floats(1e-12, 2.0**29, exclude_max=True))
def test_dyadic_is_within_half_a_unit_of_31_bits(ratio):
    multiplier, shift = (int(v) for v in numerics.dyadic(np.float64(ratio)))
    assert 1 <= shift <= numerics.MAX_SHIFT
    assert 0 <= multiplier < 2**31
    unit = max(Fraction(ratio) / 2**30, Fraction(2) / 2**numerics.MAX_SHIFT)
    assert abs(Fraction(multiplier, 2**shift) - Fraction(ratio)) <= unit


def test_dyadic_renormalises_a_multiplier_that_rounds_up_to_2_31():
    below_one = np.nextafter(np.float64(1), 0)
    multiplier, shift = numerics.dyadic(below_one)
    assert (multiplier, shift) == (2**30, 30)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, 2.0**29])
def test_dyadic_refuses_what_it_cannot_write(bad):
    with pytest.raises(ValueError, match="ratios"):
        numerics.dyadic(np.float64(bad))


@given(st.integers(1, 8), st.booleans(), st.integers(0, 40), st.data())
def test_unpack_inverts_pack(bits, signed, count, data):
    dtype = f"{'' if signed else 'u'}int{bits}"
    lo, hi = numerics.limits(dtype)
    elements = st.sampled_from([-1, 1]) if dtype == "int1" else st.integers(lo, hi)
    values = data.draw(hnp.arrays(numerics.storage(dtype), (3, count), elements=elements))
    packed = numerics.pack(values, dtype)
    assert packed.shape == (3, -(-count * bits // 8))
    np.testing.assert_array_equal(numerics.unpack(packed, count, dtype), values)


def test_pack_puts_the_first_value_in_the_lowest_bits():
    assert numerics.pack(np.array([1, -2], np.int8), "int4").tolist() == [0b1110_0001]


@given(hnp.arrays(np.float32, 17, elements=st.floats(-1e6, 1e6, width=32)),
       st.floats(2**-20, 2**10, width=32))  # fmt: skip
def test_quantize_is_within_half_a_step_inside_the_range(x, scale):
    scale = np.float32(scale)
    zero = np.int32(0)
    inside = np.clip(x, -127 * scale, 127 * scale)
    back = numerics.dequantize(numerics.quantize(inside, scale, zero, "int8"), scale, zero)
    assert np.all(np.abs(back - inside) <= scale * np.float32(0.5001))


def test_quantize_on_ties_nan_and_infinities():
    x = np.array([0.5, 1.5, -0.5, np.nan, np.inf, -np.inf, 1e30], np.float32)
    got = numerics.quantize(x, np.float32(1), np.int32(3), "int8")
    assert got.tolist() == [3, 5, 3, 3, 127, -128, 127]


def direct_conv(x, w, bias, strides, padding, dilation, groups, pad_value):
    """Seven loops over unbounded integers: the definition."""
    top, left, bottom, right = padding
    spec = ((0, 0), (top, bottom), (left, right), (0, 0))
    x = np.pad(x.astype(object), spec, constant_values=pad_value)
    out, kh, kw, per = w.shape
    height = (x.shape[1] - (kh - 1) * dilation[0] - 1) // strides[0] + 1
    width = (x.shape[2] - (kw - 1) * dilation[1] - 1) // strides[1] + 1
    y = np.empty((x.shape[0], height, width, out), object)
    for n, r, c, o in np.ndindex(*y.shape):
        first = o // (out // groups) * per
        y[n, r, c, o] = int(bias[o]) + sum(
            int(x[n, r * strides[0] + i * dilation[0], c * strides[1] + j * dilation[1], first + k])
            * int(w[o, i, j, k])
            for i, j, k in np.ndindex(kh, kw, per)
        )
    return y


@pytest.mark.parametrize(
    ("channels", "out", "groups", "strides", "padding", "dilation"),
    [
        (4, 6, 1, (1, 1), (1, 1, 1, 1), (1, 1)),
        (6, 6, 6, (2, 1), (0, 1, 2, 0), (1, 1)),
        (6, 4, 2, (1, 2), (2, 2, 2, 2), (2, 2)),
        (3, 6, 3, (1, 1), (0, 0, 0, 0), (1, 2)),
    ],
)
def test_conv2d_equals_its_definition(channels, out, groups, strides, padding, dilation):
    rng = np.random.default_rng(0)
    x = rng.choice(np.array([0, 1, 128, 255], np.uint8), (2, 7, 6, channels))
    w = rng.choice(np.array([-128, -127, 0, 127], np.int8), (out, 3, 2, channels // groups))
    bias = rng.integers(-(2**20), 2**20, out, dtype=np.int32)
    attrs = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
    got = numerics.conv2d(x, w, bias, **attrs, pad_value=7)
    assert got.dtype == np.int32
    want = direct_conv(x, w, bias, strides, padding, dilation, groups, 7)
    assert (got.astype(object) == want).all()


@pytest.mark.parametrize("k", [1, 31, 257, 65537])
def test_linear_is_exact_at_the_extremes(k):
    x, w = np.full((1, k), 255, np.uint8), np.full((1, k), 127, np.int8)
    want = 255 * 127 * k
    assert want < 2**31
    assert int(numerics.linear(x, w, np.zeros(1, np.int32))[0, 0]) == want


def test_add_saturates_once_after_both_branches():
    one = (np.int32(2**30), np.int32(30))
    a, b = np.int32([300, -300, 300]), np.int8([-100, 100, 100])
    got = numerics.add(a, *one, b, *one, dtype="int8", lo=-128, hi=127)
    assert got.tolist() == [127, -128, 127]
    exact = numerics.add(
        np.int32([200]), *one, np.int8([-100]), *one, dtype="int8", lo=-128, hi=127
    )
    assert exact.tolist() == [100]


def test_pooling():
    x = np.arange(16, dtype=np.int8).reshape(1, 4, 4, 1) - 8
    pooled = numerics.max_pool2d(
        x, pool_size=(3, 3), strides=(2, 2), padding=(1, 1, 1, 1), dilation=(1, 1)
    )
    assert pooled[0, :, :, 0].tolist() == [[-3, -1], [5, 7]]
    total = numerics.sum_pool2d(x, pool_size=(4, 4), strides=(1, 1), padding=(0, 0, 0, 0))
    assert total.ravel().tolist() == [-8]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("sign", ["", "u"])
def test_planes_hold_one_bit_of_every_element(sign: str, bits: int) -> None:
    dtype = f"{sign}int{bits}"
    lo, hi = numerics.limits(dtype)
    values = np.random.default_rng(bits).integers(lo, hi + 1, (2, 3, 13))
    values = values.astype(numerics.storage(dtype))
    if dtype == "int1":
        values[values == 0] = 1
    planes = numerics.to_planes(values, dtype)
    assert planes.shape == (2, 3, 2 * bits)
    np.testing.assert_array_equal(numerics.from_planes(planes, 13, dtype), values)
    lowest = values < 0 if dtype == "int1" else values & 1
    np.testing.assert_array_equal(planes[..., :2], numerics.pack(lowest, "uint1"))


@pytest.mark.parametrize(
    ("dtype", "want"),
    [
        ("int1", (-1, 1)),
        ("int2", (-2, 1)),
        ("int4", (-8, 7)),
        ("uint1", (0, 1)),
        ("uint8", (0, 255)),
    ],
)
def test_limits(dtype, want):
    assert numerics.limits(dtype) == want


def test_one_signed_bit_is_the_sign():
    values = np.array([1, -1, -1, 1, 1, 1, 1, 1, -1], np.int8)
    assert numerics.pack(values, "int1").tolist() == [0b0000_0110, 0b1]
    steps = np.array([-5, -1, 0, 1, 7], np.int64)
    assert numerics.settle(steps, -1, 1, "int1").tolist() == [-1, -1, 1, 1, 1]
    assert numerics.settle(steps, 0, 1, "uint1").tolist() == [0, 0, 0, 1, 1]
    x = np.array([-0.6, -0.5, 0.0, 0.4, np.nan, -np.inf], np.float32)
    signs = numerics.quantize(x, np.float32(1), np.int32(0), "int1")
    assert signs.tolist() == [-1, 1, 1, 1, 1, -1]


@given(st.integers(1, 8), st.booleans(), st.data())
def test_results_stay_within_their_width(bits, signed, data):
    dtype = f"{'' if signed else 'u'}int{bits}"
    lo, hi = numerics.limits(dtype)
    x = data.draw(hnp.arrays(np.int32, 9))
    scale = np.int32(data.draw(MULTIPLIER)), np.int32(data.draw(SHIFT))
    first = numerics.requantize(x, *scale, dtype=dtype, lo=lo, hi=hi)
    both = numerics.add(x, *scale, first, *scale, dtype=dtype, lo=lo, hi=hi)
    border = numerics.quantize(x.astype(np.float32), np.float32(3), np.int32(0), dtype)
    for values in (first, both, border):
        assert values.dtype == numerics.storage(dtype)
        assert values.min() >= lo
        assert values.max() <= hi
        assert dtype != "int1" or values.all()
        packed = numerics.pack(values, dtype)
        np.testing.assert_array_equal(numerics.unpack(packed, values.size, dtype), values)
