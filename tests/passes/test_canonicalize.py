"""Canonical form: golden graphs, and the same floats as before."""

import numpy as np
import pytest
from tvm import relax

from nybble.errors import NybbleError, StageError
from nybble.ir import graph, interpreter, specs, tvm
from nybble.passes import pipeline
from nybble.passes.base import module_pass
from nybble.passes.channels_last import channels_last
from nybble.passes.drop_identities import drop_identities
from nybble.passes.fold_batch_norm import fold_batch_norm
from nybble.passes.fold_padding import fold_padding
from tests.passes.nets import LAYERS, SHAPE, Net, call_of, images, layer, names, nn, op_names

NHWC = {"data_layout": "NHWC", "kernel_layout": "OHWI"}


def same_floats(before, after, x, tolerance=1e-5):
    for want, got in zip(interpreter.run(before, [x]), interpreter.run(after, [x]), strict=True):
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= tolerance * max(1, np.abs(want).max())


# The interpreter knows pools without ceil_mode only: what canonicalize makes of it is tested below.
@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"max_pool_ceil"}))
def test_canonical_modules_compute_the_same(name):
    before = layer(name)
    after = pipeline.canonicalize(before)
    specs.check(after, "float")
    same_floats(before, after, images(*SHAPE))
    layouts = [graph.attributes(b.value) for b in graph.bindings(after)]
    assert all("NCHW" not in attrs.values() for attrs in layouts)


def test_channels_last_permutes_only_at_the_border():
    net = Net(3, 8, 8)
    a = net.relu("relu", net.conv("conv1", net.x, 4, padding=1))
    mod = net.done(net.emit("cat", relax.op.concat([a, net.conv("conv2", a, 4, 1)], 1)))
    after = channels_last(mod)
    assert names(after) == ["x.nhwc", "conv1", "relu", "conv2", "cat", "cat.nchw"]
    assert graph.attributes(call_of(after, "cat"))["axis"] == 3

    expected = graph.Emitter(graph.inputs(mod))
    x = expected.emit(relax.op.permute_dims(graph.inputs(mod)[0], [0, 2, 3, 1]), "x.nhwc")
    w1, w2 = (
        graph.constant(graph.numpy_of(call_of(mod, n).args[1]).transpose(0, 2, 3, 1))
        for n in ("conv1", "conv2")
    )
    c = expected.emit(nn.conv2d(x, w1, padding=1, **NHWC), "conv1")
    c = expected.emit(nn.relu(c), "relu")
    d = expected.emit(nn.conv2d(c, w2, **NHWC), "conv2")
    d = expected.emit(relax.op.concat([c, d], 3), "cat")
    d = expected.emit(relax.op.permute_dims(d, [0, 3, 1, 2]), "cat.nchw")
    tvm.ir.assert_structural_equal(after, expected.finish([d], ["y0"], "float"))


def test_one_pixel_needs_no_permute_and_true_order_keeps_one():
    net = Net(3, 8, 8)
    c = net.conv("c", net.x, 4)
    pooled = net.emit("gap", relax.op.mean(c, [2, 3], keepdims=True))
    flat = net.emit("flat", relax.op.reshape(pooled, (net.x.ty.shape[0], 4)))
    true_order = net.emit("all", relax.op.reshape(c, (net.x.ty.shape[0], 4 * 36)))
    mod = net.done(flat, true_order)
    after = pipeline.canonicalize(mod)
    assert op_names(after) == [
        "permute_dims", "nn.conv2d", "nn.avg_pool2d", "reshape", "permute_dims", "reshape",
    ]  # fmt: skip
    same_floats(mod, after, images(3, 8, 8))


def test_user_permutes_cancel():
    net = Net(3, 8, 8)
    c = net.conv("c", net.x, 4, padding=1)
    last = net.emit("nhwc", relax.op.permute_dims(c, [0, 2, 3, 1]))
    first = net.emit("nchw", relax.op.permute_dims(net.relu("r", last), [0, 3, 1, 2]))
    mod = net.done(net.conv("d", first, 2))
    after = pipeline.canonicalize(mod)
    expected = ["permute_dims", "nn.conv2d", "nn.relu", "nn.conv2d", "permute_dims"]
    assert op_names(after) == expected
    same_floats(mod, after, images(3, 8, 8))


def test_batch_norm_folds_in_any_sequence():
    net = Net(3, 8, 8)
    c = net.norm("bn2", net.norm("bn1", net.bias("c.bias", net.conv("c", net.x, 4, padding=1))))
    d = net.emit("half", relax.op.divide(net.relu("r", c), graph.constant(np.float32(2))))
    e = net.emit("centre", relax.op.subtract(d, net.normal(4, 1, 1)))
    mod = net.done(net.conv("unpadded", e, 5))
    after = pipeline.canonicalize(mod)
    assert names(after) == ["x.nhwc", "c", "c.bias", "r", "unpadded", "unpadded.bias",
                            "unpadded.nchw"]  # fmt: skip
    same_floats(mod, after, images(3, 8, 8))


def test_an_offset_in_front_of_padding_is_not_folded():
    net = Net(3, 8, 8)
    mod = net.done(net.conv("c", net.bias("shift", net.relu("r", net.x)), 4, padding=1))
    after = pipeline.canonicalize(mod)
    assert op_names(after).count("nn.conv2d") == 2  # the offset became a depthwise convolution
    same_floats(mod, after, images(3, 8, 8))


def test_a_shared_convolution_is_not_folded():
    net = Net(3, 8, 8)
    c = net.conv("c", net.x, 4)
    mod = net.done(c, net.norm("bn", c))
    after = fold_batch_norm(channels_last(mod))
    assert {"bn.scale", "bn.shift"} <= set(names(after))
    same_floats(mod, after, images(3, 8, 8))


def test_grouped_convolution_takes_the_scale_of_its_own_inputs():
    net = Net(6, 8, 8)
    scaled = net.emit("s", relax.op.multiply(net.relu("r", net.x), net.normal(6, 1, 1)))
    mod = net.done(net.conv("c", scaled, 9, groups=3, padding=1))
    after = pipeline.canonicalize(mod)
    assert op_names(after) == ["permute_dims", "nn.relu", "nn.conv2d", "permute_dims"]
    same_floats(mod, after, images(6, 8, 8))


def test_zero_padding_folds_and_other_padding_stays():
    net = Net(3, 8, 8)
    zeros = net.emit("zeros", nn.pad(net.x, [0, 0, 0, 0, 1, 2, 3, 4], "constant", 0.0))
    ones = net.emit("ones", nn.pad(net.x, [0, 0, 0, 0, 1, 2, 3, 4], "constant", 1.0))
    mod = net.done(net.conv("a", zeros, 2), net.conv("b", ones, 2))
    after = fold_padding(channels_last(mod))
    assert graph.attributes(call_of(after, "a"))["padding"] == (1, 3, 2, 4)
    assert "zeros" not in names(after)
    assert "ones" in names(after)
    same_floats(mod, after, images(3, 8, 8))


def test_ceil_mode_becomes_padding():
    after = pipeline.canonicalize(layer("max_pool_ceil"))
    attrs = graph.attributes(call_of(after, "pool"))
    assert (attrs["padding"], attrs["ceil_mode"]) == ((0, 0, 1, 1), False)
    x = images(*SHAPE)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=-np.inf)
    want = padded.reshape(3, 8, 5, 2, 4, 2).max(axis=(3, 5))
    np.testing.assert_array_equal(interpreter.run(after, [x])[0], want)


def test_identities_vanish():
    net = Net(4, 4, 4)
    same = net.emit("same", relax.op.reshape(net.x, net.x.ty.shape))
    once = net.emit("once", relax.op.multiply(same, graph.constant(np.float32(1))))
    alone = net.emit("alone", relax.op.concat([once], 1))
    net.relu("unread", alone)
    mod = net.done(net.relu("relu", alone))
    assert names(drop_identities(mod)) == ["relu"]


def test_passes_compose_in_a_stock_sequential_and_leave_their_input_alone():
    seen = []

    @tvm.ir.instrument.pass_instrument
    class Watch:
        def run_before_pass(self, _mod, info):
            seen.append(str(info.name))

    mod = layer("relu")
    before = mod.script()
    with tvm.ir.transform.PassContext(instruments=[Watch()]):
        together = tvm.ir.transform.Sequential([channels_last.stock(), fold_batch_norm.stock()])
        after = together(mod)
    assert mod.script() == before
    tvm.ir.assert_structural_equal(after, fold_batch_norm(channels_last(mod)))
    assert [n for n in seen if n in ("channels_last", "fold_batch_norm")] == seen[-2:]


def test_errors_keep_their_type_through_tvm():
    @module_pass
    def fail(mod):
        raise NybbleError(f"{graph.stage(mod)} is refused")

    with pytest.raises(NybbleError, match="float is refused"):
        fail(layer("relu"))


def test_a_broken_border_names_the_passes_that_ran():
    def spoil(mod):
        net = graph.Emitter(graph.inputs(mod))
        y = net.emit(relax.op.nn.selu(graph.inputs(mod)[0]), "layer3.gelu")
        return net.finish([y], ["y"], "float")

    steps = [("channels_last", channels_last), ("spoil", spoil)]
    with pytest.raises(StageError, match=r"layer3\.gelu.*relax\.nn\.selu.*channels_last, spoil"):
        pipeline.run(layer("relu"), steps, "float", "float")


def test_debugging_checks_after_every_pass_and_dumps(monkeypatch, tmp_path):
    monkeypatch.setenv("NYBBLE_DEBUG", "2")
    monkeypatch.setenv("NYBBLE_DUMP", str(tmp_path))

    def spoil(mod):
        return tvm.IRModule({"main": mod["main"].with_attr("stage", "integer")})

    steps = [("channels_last", channels_last), ("spoil", spoil), ("again", channels_last)]
    with pytest.raises(StageError, match=r"after the passes channels_last, spoil\)"):
        pipeline.run(layer("relu"), steps, "float", "float")
    assert [p.name for p in tmp_path.iterdir()] == ["float.00.channels_last.py"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("NYBBLE_DEBUG", "yes", "'yes' is not one of: 0"), ("NYBBLE_DUMP", "/proc/x", "written")],
)
def test_environment_that_cannot_be_followed(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(NybbleError, match=rf"{name}={value}.*{message}|{name}={message}"):
        pipeline.run(layer("relu"), [("channels_last", channels_last)], "float", "float")
