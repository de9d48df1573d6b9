"""Weight-only quantization: which layers, which grids, and what it computes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from nybble.errors import NybbleError
from nybble.ir import code_books, graph, interpreter, numerics, specs
from nybble.passes import pipeline
from nybble.passes.grids import quantize_groups
from nybble.recipe import BOOKS, Recipe
from tests.passes.nets import Net, call_of, images, nn, op_names


def perceptron():
    """Two linear layers, of which the first has a bias, behind a convolution."""
    net = Net(3, 6, 6)
    conv = net.relu("r", net.conv("conv", net.x, 5, padding=1))
    flat = net.emit("flat", relax.op.reshape(conv, (net.x.ty.shape[0], 180)))
    hidden = net.relu("hidden", net.linear("first", flat, 12))
    w = net.normal(12, 7, scale=0.3)
    return net.done(net.emit("soft", nn.softmax(net.emit("last", relax.op.matmul(hidden, w)), -1)))


def rounded(recipe):
    canonical = pipeline.canonicalize(perceptron())
    return canonical, *pipeline.round_weights(canonical, recipe)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("weights", "group", "error"), [(8, None, 0.01), (4, 32, 0.06), (3, 64, 0.2)]
)
def test_linear_layers_get_integer_weights(weights, group, error, symmetric):
    recipe = Recipe(weights, "float", group=group, symmetric=symmetric)
    canonical, simulated, integer = rounded(recipe)
    first, last = call_of(integer, "first"), call_of(integer, "last")
    assert op_names(integer).count("nybble.weight_only") == 2
    assert graph.dtype_of(first.args[1]) == f"int{weights}"  # first_last has no say here
    assert graph.shape_of(first.args[1]) == (12, 180)
    assert graph.shape_of(first.args[2]) == (12, -(-180 // (group or 180)))
    assert graph.attributes(last)["group"] == 12  # K is below the group
    assert bool(graph.numpy_of(first.args[3]).any()) is not symmetric
    assert not graph.numpy_of(last.args[4]).any()
    kept = [str(line) for line in integer["main"].attrs["kept_float"]]
    assert [line.split(":")[0] for line in kept if "relax.nn" in line] == [
        "conv", "r", "hidden", "soft",
    ]  # fmt: skip
    assert specs.between_borders(integer) == []
    x = images(3, 6, 6)
    real, rough, exact = (interpreter.run(m, [x])[0] for m in (canonical, simulated, integer))
    assert np.abs(rough - real).max() < error
    assert np.abs(exact - rough).max() < 0.01


def test_overrides_and_what_stays_float():
    recipe = Recipe(4, "float", layers={"last": {"weights": "ternary"}}, keep_float=("fi*",))
    _, _, integer = rounded(recipe)
    last = graph.numpy_of(call_of(integer, "last").args[1])
    assert set(np.unique(last)) == {-1, 0, 1}
    assert op_names(integer).count("nybble.weight_only") == 1
    kept = [str(line) for line in integer["main"].attrs["kept_float"]]
    assert "first: relax.matmul: the recipe keeps 'fi*' float" in kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": 1}, "weights have 2 to 8 bits"),
        ({"weights": "ternary", "symmetric": False}, "are ternary or of a code book and symmetric"),
        ({"weights": "fp4", "symmetric": False}, "are ternary or of a code book and symmetric"),
        ({"weights": "nf4", "activations": 8}, "nf4 and fp4 are for weight-only quantization"),
        ({"layers": {"last": {"weights": 1}}}, "weights have 2 to 8 bits"),
        ({"layers": {"last": {"activations": 4}}}, "override weights only"),
        ({"layers": {"conv": {"weights": 4}}}, "'conv' matches no .*: first, last"),
        ({"keep_float": ("first", "last")}, "the network has none to quantize"),
        ({"keep_float": ("middle",)}, "'middle' matches no layer"),
    ],
)
def test_what_cannot_be_done_is_said(changes, message):
    with pytest.raises(NybbleError, match=message):
        rounded(Recipe(**{"weights": 4, "activations": "float", **changes}))


@pytest.mark.parametrize("book", code_books.NAMES)
def test_code_books_have_sixteen_levels(book):
    canonical, simulated, integer = rounded(Recipe(book, "float", group=32))
    call = call_of(integer, "first")
    assert graph.attributes(call)["book"] == book
    w = graph.numpy_of(call.args[1])
    assert set(np.unique(w)) <= set(code_books.levels(book).tolist())
    groups = np.pad(w, ((0, 0), (0, 12))).reshape(12, 6, 32)
    assert (np.abs(groups).max(axis=2) == code_books.levels(book).max()).all()
    x = images(3, 6, 6)
    real, rough, exact = (interpreter.run(m, [x])[0] for m in (canonical, simulated, integer))
    assert np.abs(rough - real).max() < 0.1
    assert np.abs(exact - rough).max() < 0.01


@given(st.lists(st.floats(-200, 200), min_size=1, max_size=40), st.sampled_from(code_books.NAMES))
def test_the_nearest_level_is_taken(values, book):
    found, levels = code_books.nearest(np.array(values), book), code_books.levels(book)
    best = np.abs(np.subtract.outer(values, levels.astype(np.float64))).min(axis=1)
    np.testing.assert_array_equal(np.abs(found - np.array(values)), best)
    np.testing.assert_array_equal(levels[code_books.numbers(found, book)], found)


def test_the_recipe_knows_the_books():
    assert code_books.NAMES == BOOKS
    below = (-1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004)
    above = (0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684)
    nf4 = (*below, 0.0, *above, 1.0)
    np.testing.assert_array_equal(np.rint(np.multiply(nf4, 127)), code_books.levels("nf4"))
    bits = np.arange(16)  # sign, two bits of exponent, one of mantissa
    exponent, mantissa = bits >> 1 & 3, bits & 1
    size = np.where(exponent == 0, mantissa, (2 + mantissa) << np.maximum(exponent, 1) - 1)
    np.testing.assert_array_equal(np.where(bits >> 3, -size, size), code_books.levels("fp4"))


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40),
    st.integers(2, 8),
    st.sampled_from([1, 3, 32]),
)
def test_groups_with_zero_points_are_off_by_a_step_at_most(row, bits, group):
    weights = np.array([row], np.float32)
    q, scale, zero = quantize_groups(weights, group, bits, symmetric=False)
    lo, hi = numerics.limits(f"int{bits}")
    assert (q.min() >= lo, q.max() <= hi, zero.min() >= lo, zero.max() <= hi) == (True,) * 4
    assert scale.shape == zero.shape == (1, -(-len(row) // group))
    at = np.arange(len(row)) // group
    back = (q[0] - zero[0, at]) * scale[0, at].astype(np.float64)
    assert np.all(np.abs(back - row) <= scale[0, at] * 1.001)
    assert np.all(back[weights[0] == 0] == 0)


def test_symmetric_groups_are_channels_of_their_own():
    weights = np.array([[7.0, -3.5, 0.0, 0.5, 0.26, -0.26, 2.0]], np.float32)
    q, scale, zero = quantize_groups(weights, 3, 4, symmetric=True)
    assert q.tolist() == [[7, -4, 0, 7, 4, -4, 7]]
    np.testing.assert_allclose(scale, [[1, 0.5 / 7, 2 / 7]], rtol=1e-6)
    assert not zero.any()


def test_gpus_multiply_in_half_precision():
    _, simulated, integer = rounded(Recipe(4, "float", group=32))
    on_gpu = pipeline.for_gpu(integer)
    assert {graph.attributes(call_of(integer, n))["compute"] for n in ("first", "last")} == {"int8"}
    calls = [call_of(on_gpu, name) for name in ("first", "last")]
    assert [graph.attributes(call)["compute"] for call in calls] == ["float16", "float16"]
    assert [graph.attributes(call)["group"] for call in calls] == [32, 12]
    x = images(3, 6, 6)
    rough, halves, bytes_ = (interpreter.run(m, [x])[0] for m in (simulated, on_gpu, integer))
    assert np.abs(halves - rough).max() < 0.2 * np.abs(bytes_ - rough).max()
