"""Weights of 4 bits on two levels: what they may be, which layers get them, what it costs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from nybble.errors import NybbleError
from nybble.ir import graph, interpreter
from nybble.ir.two_levels import CODES, PROTECTED, second_level, split
from nybble.passes import pipeline
from nybble.passes.calibrate import calibrate
from nybble.recipe import Recipe
from tests.passes.nets import Net, call_of, images


@given(
    st.lists(st.floats(-PROTECTED, PROTECTED), min_size=1, max_size=70),
    st.sampled_from([1, 8, 32]),
)
def test_every_group_has_a_step_and_a_base(row, group):
    rows = np.array([row, row[::-1]])
    found = second_level(rows, group)
    assert found.dtype == np.int8
    assert np.abs(found - rows).max() <= CODES + 0.5  # a step that is a fraction too short clips
    whole = found[:, : len(row) // group * group]
    squares = np.square(whole - rows[:, : whole.shape[1]]).reshape(2, -1, group).mean(axis=2)
    half = PROTECTED / CODES  # of the widest step; a base is rounded to an integer
    assert squares.max(initial=0) <= (half + 1) ** 2
    codes, steps, bases = split(whole, group)
    assert (codes.min(initial=0), codes.max(initial=0) <= CODES) == (0, True)
    at = np.arange(whole.shape[1]) // group
    np.testing.assert_array_equal(bases[:, at] + steps[:, at] * codes, whole)


def test_extremes_stay_within_eight_bits():
    ends = np.tile([-119.0, 119.0], 32)[None]
    assert np.abs(second_level(ends, 64).astype(int)).max() <= 127
    assert set(np.unique(second_level(ends, 64))) <= {-120, -119, 118, 119, 120, 121, -121}


def test_other_weights_are_not_on_two_levels():
    assert split(np.arange(-60, 68, dtype=np.int8).reshape(2, 64), 64) is None


def quantized(recipe):
    """A convolution and two linear layers: (float, simulated, integer)."""
    net = Net(4, 4, 4)
    conv = net.relu("r", net.conv("conv", net.x, 6, padding=1))
    flat = net.emit("flat", relax.op.reshape(conv, (net.x.ty.shape[0], 96)))
    hidden = net.relu("hidden", net.linear("first", flat, 24))
    canonical = pipeline.canonicalize(net.done(net.linear("last", hidden, 5)))
    ranges = calibrate(canonical, [{"x": images(4, 4, 4)}], recipe)
    module = pipeline.quantize(canonical, ranges, recipe)
    return canonical, module, pipeline.to_integer(module, recipe)


def test_linear_layers_of_four_bits_get_them():
    recipe = Recipe(4, 8, first_last=None, group=32, layers={"last": {"weights": 8}})
    canonical, simulated, integer = quantized(recipe)
    first, last = (call_of(integer, name) for name in ("first", "last"))
    assert graph.op_name(first) == "nybble.linear"
    assert graph.dtype_of(first.args[1]) == graph.dtype_of(last.args[1]) == "int8"
    assert graph.dtype_of(call_of(integer, "conv").args[1]) == "int4"  # has a scale per channel
    w = graph.numpy_of(first.args[1])
    assert split(w, 32) is not None
    assert split(w, 96) is None
    x = images(4, 4, 4)
    real, rough, exact = (interpreter.run(m, [x])[0] for m in (canonical, simulated, integer))
    assert np.abs(rough - real).max() < 0.1 * np.abs(real).max()
    assert np.abs(exact - rough).max() < 0.02 * np.abs(real).max()


def test_they_are_closer_than_a_scale_per_channel():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((8, 512)) * np.exp(rng.normal(0, 1, (8, 16)).repeat(32, axis=1))
    scale = np.abs(weights).max(axis=1, keepdims=True)
    once = np.rint(weights / scale * 7) * scale / 7
    twice = second_level(weights / scale * PROTECTED, 32) * (scale / PROTECTED)
    assert np.square(twice - weights).sum() < 0.2 * np.square(once - weights).sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": 8}, "group is for weights of 4 bits"),
        ({"symmetric": False}, "symmetric=False belongs to weight-only"),
        ({"correct": ("equalize",)}, "neither with corrections"),
    ],
)
def test_what_cannot_be_done_is_said(changes, message):
    with pytest.raises(NybbleError, match=message):
        Recipe(**{"weights": 4, "activations": 8, "group": 64, **changes})
