"""Quantized and integer modules: golden graphs, the law against the simulation, errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from nybble.errors import StageError
from nybble.ir import graph, interpreter, numerics, specs
from nybble.passes import pipeline
from nybble.passes.calibrate import Ranges, calibrate
from nybble.passes.grids import grid, quantize_weights
from nybble.recipe import Recipe
from tests.passes.nets import LAYERS, SHAPE, Net, call_of, images, layer, names, nn, op_names

RECIPE = Recipe()


def walk(mod, x, recipe=RECIPE):
    """(canonical, quantized, integer) modules, calibrated on ``x``."""
    canonical = pipeline.canonicalize(mod)
    inputs = x if isinstance(x, dict) else {str(graph.inputs(mod)[0].name): x}
    ranges = calibrate(canonical, [inputs], recipe)
    quantized = pipeline.quantize(canonical, ranges, recipe)
    return canonical, quantized, pipeline.to_integer(quantized, recipe)


def kept(mod):
    return [str(line) for line in mod["main"].attrs["kept_float"]]


@pytest.mark.sweep
@pytest.mark.parametrize("rounding", ["half_up", "half_even", "tflite"])
@pytest.mark.parametrize("name", LAYERS)
def test_one_layer_of_integers_is_within_a_step_of_its_simulation(name, rounding):
    x = images(*SHAPE)
    canonical, quantized, integer = walk(layer(name), x, Recipe(rounding=rounding))
    assert kept(integer) == []
    assert specs.between_borders(integer) == []
    real, simulated, exact = (interpreter.run(m, [x])[0] for m in (canonical, quantized, integer))
    steps = [graph.numpy_of(b.value.args[1]).item() for b in graph.bindings(quantized)
             if graph.op_name(b.value) == "nybble.quantize"][1:]  # fmt: skip
    if not steps:  # accumulators leave as float: only the bias was rounded
        steps = [graph.numpy_of(call_of(integer, "c.dequantize").args[1]).max()]
    roundings = [op for op in op_names(integer) if op in ("nybble.requantize", "nybble.add")]
    assert np.abs(exact - simulated).max() <= max(1, len(roundings)) * max(steps) * 1.001
    assert np.abs(simulated - real).max() <= 0.05 * np.abs(real).max()


def test_a_quantized_convolution_in_both_forms():
    net = Net(3, 8, 8)
    mod = net.done(net.relu("r", net.bias("c.bias", net.conv("c", net.x, 4, padding=1))))
    _, quantized, integer = walk(mod, images(3, 8, 8))
    assert names(quantized) == [
        "x.nhwc", "x.nhwc.quantize", "x.nhwc.dequantize", "c.weight", "c", "c.bias", "r",
        "r.quantize", "r.dequantize", "r.nchw",
    ]  # fmt: skip
    assert list(zip(names(integer), op_names(integer), strict=True)) == [
        ("x.nhwc", "permute_dims"),
        ("x.nhwc.quantize", "nybble.quantize"),
        ("c", "nybble.conv2d"),
        ("c.requantize", "nybble.requantize"),
        ("r.dequantize", "nybble.dequantize"),
        ("r.nchw", "permute_dims"),
    ]
    attrs = graph.attributes(call_of(integer, "c.requantize"))
    assert (attrs["dtype"], attrs["lo"], attrs["hi"]) == ("uint8", 0, 255)
    weights = graph.numpy_of(call_of(integer, "c").args[1])
    assert np.abs(weights.reshape(4, -1).astype(int)).max(axis=1).tolist() == [127] * 4


def test_clip_bounds_become_integers():
    _, _, integer = walk(layer("clip"), images(*SHAPE))
    attrs = graph.attributes(call_of(integer, "c.requantize"))
    assert (attrs["dtype"], attrs["lo"], attrs["hi"]) == ("int8", -51, 127)  # -0.5 and 1.25


def test_the_later_branch_of_an_add_keeps_its_accumulators():
    _, _, integer = walk(layer("two_branches"), images(*SHAPE))
    a, _, _, b, _, _ = call_of(integer, "add").args
    assert str(a.name) == "b"
    assert graph.dtype_of(a) == "int32"
    assert str(b.name) == "a.requantize"
    assert graph.dtype_of(b) == "int8"


def test_logits_leave_as_accumulators():
    net = Net(8, 4, 4)
    flat = net.emit("flat", relax.op.reshape(net.relu("r", net.x), (net.x.ty.shape[0], 128)))
    mod = net.done(net.emit("soft", nn.softmax(net.linear("fc", flat, 10), -1)))
    x = images(8, 4, 4)
    canonical, _, integer = walk(mod, x)
    assert op_names(integer)[-3:] == ["nybble.linear", "nybble.dequantize", "nn.softmax"]
    assert graph.shape_of(call_of(integer, "fc.dequantize").args[1]) == (10,)
    assert kept(integer) == ["soft: relax.nn.softmax: follows the last quantized layer"]
    assert specs.between_borders(integer) == []
    real, exact = interpreter.run(canonical, [x])[0], interpreter.run(integer, [x])[0]
    assert np.abs(exact - real).max() < 0.02


def test_concat_branches_share_a_scale():
    net = Net(4, 8, 8)
    x = net.emit("r0", relax.op.clip(net.x, 0.0, 0.5))
    a = net.relu("ra", net.conv("a", x, 4, padding=1))
    b = net.relu("rb", net.conv("b", x, 4, padding=1))
    mod = net.done(net.conv("last", net.emit("cat", relax.op.concat([a, b, x], 1)), 2))
    _, quantized, integer = walk(mod, images(4, 8, 8))
    scales = [graph.numpy_of(call_of(quantized, f"{n}.quantize").args[1]).item()
              for n in ("ra", "rb", "cat")]  # fmt: skip
    assert len(set(scales)) == 1
    branches = [str(v.name) for v in graph.operands(call_of(integer, "cat"))]
    assert branches == ["a.requantize", "b.requantize", "cat.r0.requantize"]


def test_max_pool_and_reshape_keep_the_grid():
    net = Net(4, 8, 8)
    p = net.emit("p", nn.max_pool2d(net.relu("r", net.conv("c", net.x, 4)), (2, 2), (2, 2)))
    mod = net.done(net.conv("d", p, 3))
    _, quantized, integer = walk(mod, images(4, 8, 8))
    grids = [graph.numpy_of(call_of(quantized, f"{n}.quantize").args[1]) for n in ("r", "p")]
    assert grids[0] == grids[1]
    assert op_names(integer).count("nybble.requantize") == 1


def test_float_islands_are_bordered_and_reported():
    net = Net(4, 8, 8)
    c = net.conv("c", net.x, 4, padding=1)
    gate = net.emit("gate", nn.softmax(c, 2))
    gated = net.emit("gated", relax.op.maximum(c, gate))
    mod = net.done(net.relu("r", net.conv("d", gated, 4)))
    x = images(4, 8, 8)
    canonical, _, integer = walk(mod, x)
    assert kept(integer) == [
        "gate: relax.nn.softmax: is a softmax over another axis than the last",
        "gated: relax.maximum: has no integer form yet",
    ]
    assert [n for n, _ in specs.between_borders(integer)] == ["gate", "gated"]
    real, exact = interpreter.run(canonical, [x])[0], interpreter.run(integer, [x])[0]
    assert np.abs(exact - real).max() <= 0.05 * np.abs(real).max()


def test_padding_with_something_else_than_zeros_stays_float():
    net = Net(4, 8, 8)
    padded = net.emit(
        "p", nn.pad(net.conv("c", net.x, 4), [0, 0, 0, 0, 1, 0, 2, 0], "constant", 0.5)
    )
    x = images(4, 8, 8)
    canonical, _, integer = walk(net.done(net.conv("d", padded, 4)), x)
    assert kept(integer) == ["p: relax.nn.pad: pads with something else than zeros"]
    real, exact = interpreter.run(canonical, [x])[0], interpreter.run(integer, [x])[0]
    assert np.abs(exact - real).max() <= 0.05 * np.abs(real).max()


def test_the_recipe_keeps_layers_float():
    net = Net(4, 8, 8)
    a = net.relu("ra", net.bias("first.bias", net.conv("first", net.x, 4)))
    mod = net.done(net.relu("rb", net.conv("second", a, 4)))
    x = images(4, 8, 8)
    _, _, integer = walk(mod, x, Recipe(keep_float=("sec*",)))
    assert kept(integer) == [
        "second: relax.nn.conv2d: the recipe keeps 'sec*' float",
        "rb: relax.nn.relu: follows a layer that stays float",
    ]
    assert "nn.conv2d" in op_names(integer)
    assert "nybble.conv2d" in op_names(integer)


def test_channels_and_activations_of_zeros_survive():
    net = Net(4, 8, 8)
    w = np.ones((5, 4, 3, 3), np.float32)
    w[1:3] = 0
    w[3] = 1e-42  # denormal
    c = net.emit("c", nn.conv2d(net.x, graph.constant(w)))
    bias = np.array([0, 0, 0.75, 0.5, 1e-3], np.float32).reshape(1, 5, 1, 1)
    r = net.relu("r", net.emit("b", relax.op.add(c, graph.constant(bias))))
    mod = net.done(r, net.conv("dead", net.relu("never", net.emit(
        "low", relax.op.clip(net.x, -9.0, 0.0))), 3))  # fmt: skip
    x = np.abs(images(4, 8, 8)) * 0.01
    canonical, _, integer = walk(mod, x)
    for want, got in zip(
        interpreter.run(canonical, [x]), interpreter.run(integer, [x]), strict=True
    ):
        assert np.all(np.isfinite(got))
        assert np.abs(got - want).max() <= 0.01


def test_all_zero_inputs_survive():
    net = Net(4, 8, 8)
    mod = net.done(net.relu("r", net.norm("bn", net.conv("c", net.x, 4))))
    x = np.zeros((2, 4, 8, 8), np.float32)
    canonical, _, integer = walk(mod, x)
    real, exact = interpreter.run(canonical, [x])[0], interpreter.run(integer, [x])[0]
    assert np.abs(exact - real).max() <= 0.01 * np.abs(real).max()


def test_two_inputs_and_two_outputs():
    net = Net(4, 8, 8, inputs=("left", "right"))
    left, right = net.params
    total = net.emit("sum", relax.op.add(net.conv("c", left, 4, 1), right))
    mod = net.done(total, net.relu("r", total))
    x = {"left": images(4, 8, 8), "right": images(4, 8, 8, seed=9) * 3}
    canonical, _, integer = walk(mod, x)
    assert op_names(integer).count("nybble.quantize") == 2
    for want, got in zip(interpreter.run(canonical, x), interpreter.run(integer, x), strict=True):
        assert np.abs(got - want).max() <= 0.02 * np.abs(want).max()


def test_overflow_is_refused_with_a_remedy():
    net = Net(1, 1, 1)
    flat = net.emit("flat", relax.op.reshape(net.x, (net.x.ty.shape[0], 1)))
    wide = net.emit("wide", relax.op.matmul(flat, graph.constant(np.ones((1, 70_000), np.float32))))
    w = graph.constant(np.ones((70_000, 1), np.float32))
    mod = net.done(net.emit("fc", relax.op.matmul(net.relu("r", wide), w)))
    with pytest.raises(StageError, match=r"'fc': channel 0 may reach .* Keep the layer float"):
        walk(mod, np.ones((1, 1, 1, 1), np.float32))


def test_impossible_ratios_are_refused():
    canonical = pipeline.canonicalize(layer("relu"))
    ranges = calibrate(canonical, [{"x": images(*SHAPE)}], RECIPE)
    limits = dict(ranges.limits) | {"r": (0.0, 1e-12)}
    quantized = pipeline.quantize(canonical, Ranges(limits), RECIPE)
    with pytest.raises(StageError, match="'c': one output step"):
        pipeline.to_integer(quantized, RECIPE)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.booleans())
def test_rounding_to_a_grid_is_off_by_at_most_half_a_step(values, non_negative):
    x = np.abs(np.array(values, np.float32)) if non_negative else np.array(values, np.float32)
    on = grid(float(x.min()), float(x.max()), non_negative)
    scale, zero = np.asarray(np.float32(on.scale)), np.asarray(np.int32(0))
    back = numerics.dequantize(numerics.quantize(x, scale, zero, on.dtype), scale, zero)
    assert np.all(np.abs(back.astype(np.float64) - x) <= on.scale * (0.5 + 1e-4))


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6),
    st.lists(st.floats(-1e9, 1e9, width=32), min_size=2, max_size=2),
    st.floats(1e-6, 1e3),
)
def test_weights_and_bias_always_fit(weights, bias, scale_in):
    w, b = np.array(weights, np.float32).reshape(2, 3), np.array(bias, np.float32)
    q, scale = quantize_weights(w, b, scale_in)
    assert np.all(np.isfinite(scale))
    assert np.all(scale > 0)
    assert np.abs(q.astype(int)).max() <= 127
    assert np.all(np.abs(b / (scale * scale_in)) < 2**30)
    assert np.all(np.abs(q * scale[:, None].astype(np.float64) - w) <= scale[:, None] * 0.5001)
