"""Grids of every width: golden examples, and what holds for any weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.ir import numerics
from nybble.passes.grids import (
    BIAS_LIMIT,
    grid,
    least_squares,
    quantize_weights,
    weight_levels,
)

ROW = np.array([[0.9, -0.44, 0.1, -0.02, 0.0, 0.6]], np.float32)
NO_BIAS = np.zeros(1, np.float32)
WIDTHS = (1, 2, "ternary", 3, 4, 5, 6, 7, 8)

GOLDEN = {
    8: ([127, -62, 14, -3, 0, 85], 0.9 / 127),
    5: ([15, -7, 2, 0, 0, 10], 0.9 / 15),
    4: ([7, -3, 1, 0, 0, 5], 0.9 / 7),
    3: ([3, -1, 0, 0, 0, 2], 0.3),
    2: ([1, -1, 0, 0, 0, 1], 1.94 / 3),  # Σ wq / Σ q²
    "ternary": ([1, -1, 0, 0, 0, 1], 1.94 / 3),
    1: ([1, -1, 1, -1, 1, 1], 2.06 / 6),  # the mean magnitude; 0 counts as +1
}


@pytest.mark.parametrize("width", GOLDEN)
def test_golden_weights(width):
    integers, scale = quantize_weights(ROW, NO_BIAS, 1.0, width)
    want, step = GOLDEN[width]
    assert integers[0].tolist() == want
    assert integers.dtype == np.int8
    assert scale[0] == pytest.approx(step, rel=1e-6)


def test_two_bits_use_all_four_values():
    row = np.array([[-1.0, -0.9, 0.5, 0.45, 0.05]], np.float32)
    integers, scale = quantize_weights(row, NO_BIAS, 1.0, 2)
    assert integers[0].tolist() == [-2, -2, 1, 1, 0]
    assert scale[0] == pytest.approx((2.0 + 1.8 + 0.5 + 0.45) / 10, rel=1e-6)
    integers, scale = quantize_weights(row, NO_BIAS, 1.0, "ternary")
    assert integers[0].tolist() == [-1, -1, 1, 1, 0]
    assert scale[0] == pytest.approx(2.85 / 4, rel=1e-6)


def test_ternary_leaves_small_weights_out():
    row = np.array([[1.0, -1.0, 0.1, -0.1, 0.12, 0.0]], np.float32)
    integers, scale = quantize_weights(row, NO_BIAS, 1.0, "ternary")
    assert integers[0].tolist() == [1, -1, 0, 0, 0, 0]
    assert scale[0] == 1


def test_levels():
    assert {w: (x := weight_levels(w), (x.dtype, x.lo, x.hi))[1] for w in WIDTHS} == {
        1: ("int1", -1, 1), 2: ("int2", -2, 1), "ternary": ("int2", -1, 1), 3: ("int3", -3, 3),
        4: ("int4", -7, 7), 5: ("int5", -15, 15), 6: ("int6", -31, 31), 7: ("int7", -63, 63),
        8: ("int8", -127, 127),
    }  # fmt: skip


ROWS = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12)


@given(ROWS, st.sampled_from([2, "ternary"]), st.floats(2**-6, 2**4))
def test_no_scale_has_a_smaller_squared_error(row, width, other):
    levels, w = weight_levels(width), np.array(row, np.float64)

    def error(scale):
        return float(np.sum((w - scale * np.clip(np.rint(w / scale), levels.lo, levels.hi)) ** 2))

    best = least_squares(w, levels)
    if best == 0:
        assert not w.any()
    else:
        assert error(best) <= error(other) * (1 + 1e-9) + 1e-12


@given(ROWS, st.floats(-100, 100, width=32), st.sampled_from(WIDTHS))
def test_weights_stay_within_their_levels_and_the_bias_within_32_bits(row, bias, width):
    levels = weight_levels(width)
    weights = np.array([row], np.float32)
    integers, scale = quantize_weights(weights, np.array([bias], np.float32), 0.01, width)
    assert np.isfinite(scale).all()
    assert scale[0] > 0
    assert integers.min() >= levels.lo
    assert integers.max() <= levels.hi
    assert abs(bias) / (float(scale[0]) * 0.01) <= BIAS_LIMIT * 1.001
    assert width != 1 or set(integers.ravel().tolist()) <= {-1, 1}
    packed = numerics.pack(integers, levels.dtype)
    np.testing.assert_array_equal(numerics.unpack(packed, len(row), levels.dtype), integers)


@pytest.mark.parametrize("width", WIDTHS)
def test_channels_of_zeros_and_denormals_keep_their_bias(width):
    weights = np.zeros((3, 576), np.float32)
    weights[1] = 1e-42
    bias = np.array([0.5, -2.0, 0.0], np.float32)
    scale_in, top = 0.02, 255
    integers, scale = quantize_weights(weights, bias, scale_in, width)
    assert np.isfinite(scale).all()
    steps = np.rint(bias / (scale.astype(np.float64) * scale_in))
    worst = np.abs(integers.astype(np.int64)).sum(axis=1) * top
    value = (np.abs(steps) - worst) * scale * scale_in
    np.testing.assert_allclose(value, np.abs(bias), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize(
    ("bits", "unsigned", "signed"),
    [(8, 255, 127), (7, 127, 63), (4, 15, 7), (3, 7, 3), (2, 3, 1), (1, 1, 1)],
)
def test_activation_grids(bits, unsigned, signed):
    positive, both = grid(0, 6.0, True, bits), grid(-3.0, 6.0, False, bits)
    assert (positive.dtype, both.dtype) == (f"uint{bits}", f"int{bits}")
    assert positive.scale == pytest.approx(6 / unsigned, rel=1e-6)
    assert both.scale == pytest.approx(6 / signed, rel=1e-6)
    assert grid(0, 0, True, bits).scale == pytest.approx(1 / unsigned, rel=1e-6)
