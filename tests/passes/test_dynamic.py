"""Dynamic quantization: the bits of the weight-only law, by integer layers of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax

import nybble
from nybble.errors import NybbleError
from nybble.ir import graph, interpreter
from nybble.model import Model
from nybble.recipe import Recipe
from tests.passes.nets import Net, op_names
from tests.walking import compared, law_of

SHAPE = (5, 24)
ROWS = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)


def block() -> Any:
    """Two layers that read one tensor, and one that reads both, with and without biases."""
    net = Net(*SHAPE)
    left = net.relu("r", net.linear("left", net.x, 40))
    right = net.emit("right", relax.op.matmul(net.x, net.normal(24, 40, scale=0.2)))
    both = net.emit("both", relax.op.add(left, net.emit("g", relax.op.sigmoid(right))))
    return net.done(net.linear("last", both, 7))


@pytest.mark.parametrize("weights", [8, 4, "ternary"])
def test_it_computes_what_weight_only_layers_do(weights: Any) -> None:
    fused, split = (
        nybble.quantize(Model(block()), recipe=Recipe(weights, how)) for how in ("float", "dynamic")
    )
    ops = op_names(split.integer)
    assert ops.count("nybble.row_tops") == ops.count("nybble.quantize_rows") == 2
    assert ops.count("nybble.linear") == ops.count("nybble.rescale_rows") == 3
    assert "nybble.weight_only" not in ops
    x = ROWS.copy()
    x[0, 1, 3], x[0, 2, 5], x[1, 0], x[1, 1] = np.nan, np.inf, 0, 1e-38
    (wanted,), (got,) = (interpreter.run(m.integer, [x]) for m in (fused, split))
    assert np.isnan(got).any(axis=-1).sum() == 2
    np.testing.assert_array_equal(got, wanted)


def test_the_library_equals_the_law(tmp_path: Path) -> None:
    quantized = nybble.quantize(Model(block()), recipe=Recipe(activations="dynamic"))
    path = nybble.compile(quantized).save(tmp_path / "net.so")
    report, session = compared(law_of(quantized, ROWS), path, ROWS, 1)
    by_op = {row.layer: row.differing for row in report.rows}
    linear = [layer for layer in session.manifest.layers if layer["op"] == "linear"]
    assert [layer["activations"] for layer in linear] == ["int8"] * 3
    assert by_op["left"] == by_op["left.sums"] == by_op["x.quantize"] == 0
    wanted: Any = quantized.simulate(ROWS)
    got: Any = session(ROWS)
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()


def test_a_layer_whose_sums_may_exceed_32_bits_stays_weight_only() -> None:
    net, k = Net(140_000), 140_000
    w = graph.constant(np.ones((k, 1), np.float32))
    long = net.done(net.emit("long", relax.op.matmul(net.x, w)))
    quantized = nybble.quantize(Model(long), recipe=Recipe(activations="dynamic"))
    assert op_names(quantized.integer) == ["nybble.weight_only"]


def test_it_travels_as_onnx() -> None:
    """Weights in integers, and the recipe that says how activations are quantized."""
    quantized = nybble.quantize(Model(block()), recipe=Recipe(4, activations="dynamic"))
    again = nybble.load_onnx(quantized.to_onnx())
    assert isinstance(again, nybble.QuantizedModel)
    assert op_names(again.integer).count("nybble.linear") == 3
    np.testing.assert_array_equal(again.run(ROWS), quantized.run(ROWS))


def test_what_it_does_not_go_with() -> None:
    with pytest.raises(NybbleError, match=r"group and symmetric=False .* activations='float'"):
        Recipe(activations="dynamic", group=32)
    with pytest.raises(NybbleError, match="activations='dynamic', weights have 2 to 8 bits"):
        Recipe(1, "dynamic")
    with pytest.raises(NybbleError, match="activations='dynamic' holds for all layers"):
        Recipe(activations="dynamic", layers={"a": {"activations": 4}})
    with pytest.raises(NybbleError, match="mixed"):
        Recipe("mixed", "dynamic", choices=(4, 8))
