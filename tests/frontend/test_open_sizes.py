"""Heights, widths and lengths that stay open: what the same library computes for several sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import nybble
from nybble.errors import UnsupportedOpError
from nybble.frontend.onnx import from_onnx
from nybble.ir import graph, interpreter, specs
from tests.frontend.onnx_models import model, node, values

IMAGE = ("N", 3, "H", "W")


def _tokens() -> Any:
    """An embedding, positions by a range over the length, and a sum over the tokens."""
    nodes = [
        node("Gather", "table x", "word"),
        node("Shape", "x", "shape"),
        node("Gather", "shape one", "length"),
        node("Range", "zero length one", "steps"),
        node("Gather", "places steps", "place"),
        node("Add", "word place", "h"),
        node("MatMul", "h w", "z"),
        node("ReduceSum", "z axis", "y", keepdims=0),
    ]
    weights = {
        "table": values(9, 4), "places": values(20, 4, seed=1), "w": values(4, 3),
        "zero": np.int64(0), "one": np.int64(1), "axis": np.array([1]),
    }  # fmt: skip
    body = helper.make_graph(
        nodes, "tokens", [helper.make_tensor_value_info("x", TensorProto.INT64, ("N", "T"))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_open_image_that_grows(tmp_path: Path) -> None:
    """The factors alone decide, so one library of integers serves every size."""
    nodes = [
        node("Conv", "x w b", "a", pads=[1, 1, 1, 1]),
        node("Resize", "a _ scales", "g", mode="linear"),
        node("Resize", "g _ scales", "h", mode="nearest"),
        node("Conv", "h v", "y"),
    ]
    weights = {"w": values(16, 3, 3, 3), "b": values(16), "v": values(8, 16, 1, 1),
               "scales": np.array([1, 1, 2, 3], np.float32)}  # fmt: skip
    open_ = nybble.load_onnx(model(nodes, IMAGE, weights), {"x": (None, 3, "height", "width")})
    quantized = nybble.quantize(open_, [values(2, 3, 10, 12)])
    assert specs.between_borders(quantized.integer) == []
    session = nybble.load(nybble.compile(quantized).save(tmp_path / "net.so"), threads=1)
    for sizes in ((10, 12), (7, 9)):
        x = values(2, 3, *sizes, seed=sizes[0])
        np.testing.assert_array_equal(session(x), quantized.run(x))


def test_open_image(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w b", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        node("MaxPool", "r", "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Conv", "p v", "y"),
    ]
    weights = {"w": values(16, 3, 3, 3), "b": values(16), "v": values(8, 16, 1, 1)}
    open_ = nybble.load_onnx(model(nodes, IMAGE, weights), {"x": (None, 3, "height", "width")})
    quantized = nybble.quantize(open_, [values(2, 3, 10, 12)])
    session = nybble.load(nybble.compile(quantized).save(tmp_path / "net.so"), threads=1)
    for sizes in ((10, 12), (17, 9)):
        x = values(2, 3, *sizes, seed=sizes[0])
        fixed = from_onnx(model(nodes, (2, 3, *sizes), weights))
        (wanted,), (got,) = interpreter.run(fixed, [x]), interpreter.run(open_.module, [x])
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
        (law,) = interpreter.run(quantized.integer, [x])
        np.testing.assert_array_equal(session(x), law)


def test_open_length(tmp_path: Path) -> None:
    open_ = nybble.load_onnx(_tokens(), {"x": (None, "length")})
    session = nybble.load(nybble.compile(open_).save(tmp_path / "net.so"), threads=1)
    for length in (3, 7):
        x = np.arange(2 * length).reshape(2, length) % 9
        (wanted,) = interpreter.run(from_onnx(_tokens(), {"x": (2, length)}), [x])
        np.testing.assert_allclose(np.asarray(session(x)), wanted, rtol=1e-5, atol=1e-5)


def test_the_same_name_is_the_same_size() -> None:
    mod = from_onnx(model([node("Relu", "x")], IMAGE), {"x": (None, 3, "side", "side")})
    assert graph.shape_of(graph.inputs(mod)[0]) == ("batch", 3, "side", "side")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (node("Split", "x", "y z", axis=3), "splits an open size"),
        (node("Pad", "x p", mode="reflect"), "open size"),
        (node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
         "known size"),
    ],
)  # fmt: skip
def test_what_needs_a_known_size(bad: Any, reason: str) -> None:
    proto = model([bad], IMAGE, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, outputs=bad.output)
    with pytest.raises(UnsupportedOpError, match=reason):
        from_onnx(proto, {"x": (None, 3, "height", "width")})
