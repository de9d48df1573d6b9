"""Which layer and which tensor gets which width from the recipe."""

import numpy as np
import pytest
from tvm import relax

from nybble.errors import NybbleError, StageError
from nybble.ir import graph, interpreter, specs
from nybble.passes import pipeline
from nybble.passes.calibrate import calibrate
from nybble.recipe import Recipe
from tests.passes.nets import Net, images, nn
from tests.passes.test_lowering import walk


def small():
    """stem -> a -> residual add with the pooled stem -> c, concat -> d -> global pool -> head."""
    net = Net(3, 8, 8)
    stem = net.relu("stem.relu", net.bias("stem.bias", net.conv("stem", net.x, 8, padding=1)))
    low = net.emit("low", nn.max_pool2d(stem, pool_size=2, strides=2))
    a = net.relu("a.relu", net.conv("a", low, 8, padding=1))
    total = net.relu("total", net.emit("add", relax.op.add(net.conv("b", a, 8, padding=1), low)))
    joined = net.emit("cat", relax.op.concat([total, net.conv("c", total, 4, padding=1)], 1))
    d = net.relu("d.relu", net.conv("d", joined, 6))
    mean = net.emit("gap", relax.op.mean(d, [2, 3]))
    return net.done(net.linear("head", mean, 5))


def layers(integer):
    """Layer -> (weights, activations)."""
    return {
        name: (graph.dtype_of(call.args[1]), graph.dtype_of(call.args[0]))
        for name, op, call in graph.walk(integer)
        if op in ("nybble.conv2d", "nybble.linear")
    }


def integers(recipe):
    return walk(small(), images(3, 8, 8), recipe)[2]


def test_eight_bits_unless_asked():
    assert set(layers(integers(Recipe())).values()) == {("int8", "int8"), ("int8", "uint8")}


def test_the_first_and_the_last_layer_keep_eight_bits():
    found = layers(integers(Recipe(weights=4, activations=4)))
    assert found == {
        "stem": ("int8", "int8"),
        "a": ("int4", "uint4"),
        "b": ("int4", "uint4"),
        "c": ("int4", "uint4"),
        "d": ("int4", "int4"),  # c is signed, and the concat has one grid
        "head": ("int8", "uint8"),
    }
    found = layers(integers(Recipe(weights="ternary", activations=3, first_last=None)))
    assert found["stem"] == ("int2", "int3")
    assert found["head"] == ("int2", "uint3")
    found = layers(integers(Recipe(weights=2, activations=2, first_last=5)))
    assert (found["stem"], found["head"]) == (("int5", "int5"), ("int5", "uint5"))


def test_overrides_by_pattern_and_the_last_one_wins():
    recipe = Recipe(
        weights=4,
        activations=4,
        layers={
            "?": {"weights": 3},
            "a": {"activations": 6},
            "stem": {"weights": "ternary", "activations": 7},
            "d": {"weights": 1, "activations": 8},
        },
    )
    found = layers(integers(recipe))
    assert found == {
        "stem": ("int2", "int7"),
        "a": ("int3", "uint6"),
        "b": ("int3", "uint4"),
        "c": ("int3", "uint4"),
        "d": ("int1", "int8"),
        "head": ("int8", "uint8"),
    }


def test_a_tensor_has_the_largest_width_that_its_layers_ask_for():
    recipe = Recipe(4, 4, layers={"c": {"activations": 7}, "a": {"activations": 2}})
    integer = integers(recipe)
    found = layers(integer)
    assert found["c"][1] == "uint7"
    assert found["a"][1] == "uint2"  # through the max pool, which keeps the stem's grid
    dtypes = {str(b.var.name): graph.dtype_of(b.var) for b in graph.bindings(integer)}
    assert dtypes["stem.requantize"] == "uint2"
    assert dtypes["add"] == "uint7"  # c asks; the concat, no layer, has no say
    assert dtypes["cat"] == "int4"
    # d's output is read by the pool alone, whose result the 8-bit head reads
    assert dtypes["d.requantize"] == "uint8"


def test_layers_that_do_not_exist_are_listed():
    with pytest.raises(NybbleError, match=r"'layer9\*' matches no .*: stem, a, b, c, d, head"):
        integers(Recipe(layers={"layer9*": {"weights": 4}}))
    with pytest.raises(NybbleError, match=r"'a.relu' matches no quantized convolution"):
        integers(Recipe(layers={"a.relu": {"weights": 4}}))
    with pytest.raises(NybbleError, match=r"'tem' matches no .* \(did you mean '\*tem\*'\?\)"):
        integers(Recipe(layers={"tem": {"weights": 4}}))
    with pytest.raises(
        NybbleError, match=r"'haed' matches no .* \(did you mean 'head' or 'add'\?\)"
    ):
        integers(Recipe(keep_float=("haed",)))
    with pytest.raises(NybbleError, match=r"'a' matches no quantized .*: stem, b, c"):
        integers(Recipe(keep_float=("a",), layers={"a": {"weights": 4}}))


def test_weight_only_recipes_are_not_calibrated():
    with pytest.raises(NybbleError, match="activations='float' nothing is calibrated"):
        integers(Recipe(weights=4, activations="float", group=128, symmetric=False))


def test_padding_has_no_one_bit_signed_form():
    net = Net(4, 6, 6)
    padded = net.emit(
        "pad", nn.pad(net.conv("a", net.x, 4, 1), [0, 0, 0, 0, 1, 1, 1, 1], "constant", 0.0)
    )
    pooled = net.emit("pool", nn.max_pool2d(padded, pool_size=2, strides=2))
    mod = net.done(net.conv("c", pooled, 3))
    with pytest.raises(StageError, match=r"'pad': .* 1 bit"):
        walk(mod, images(4, 6, 6), Recipe(activations=1, first_last=None))


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "mse", "entropy"])
@pytest.mark.parametrize(("weights", "activations"), [(4, 4), (2, 6), (8, 1)])
def test_the_law_is_within_a_step_of_the_simulation(weights, activations, calibrator):
    recipe = Recipe(weights, activations, first_last=None, calibrator=calibrator)
    net = Net(3, 8, 8)
    mod = net.done(net.relu("r", net.bias("b", net.conv("c", net.x, 8, padding=1))))
    x = images(3, 8, 8)
    _, quantized, integer = walk(mod, x, recipe)
    assert specs.between_borders(integer) == []
    simulated, exact = (interpreter.run(m, [x])[0] for m in (quantized, integer))
    step = graph.numpy_of(
        [c for _, op, c in graph.walk(quantized) if op == "nybble.quantize"][-1].args[1]
    ).item()
    assert np.abs(exact - simulated).max() <= step * 1.001
    assert (exact == simulated).mean() > 0.95


def test_fewer_levels_clip_sooner():
    """The calibrators that weigh clipping against rounding know the width."""
    mod = pipeline.canonicalize(small())
    x = images(3, 8, 8, count=8)
    for calibrator in ("mse", "entropy"):
        tops = [
            calibrate(mod, [{"x": x}], Recipe(8, bits, first_last=None, calibrator=calibrator))[
                "total"
            ][1]
            for bits in (8, 2)
        ]
        assert tops[1] < tops[0] or calibrator == "entropy"
        assert tops[1] > 0
