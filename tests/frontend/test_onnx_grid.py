"""GridSample in every mode against ONNX Runtime, at places far outside of the image too."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import nybble
from nybble.errors import UnsupportedOpError
from nybble.frontend.onnx import from_onnx
from nybble.ir import interpreter
from tests.frontend.onnx_models import values

MODES = list(product(("nearest", "linear", "cubic"), ("zeros", "border", "reflection"), (0, 1)))
SHAPES: dict[str, Any] = {"x": ("n", 3, 5, 4), "grid": ("n", 2, 7, 2)}


def _model(shapes: dict[str, Any], **attrs: Any) -> Any:
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], name="the_node", **attrs)
    graph = helper.make_graph(
        [node], "test",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize(("mode", "padding", "corners"), MODES)
def test_modes(mode: str, padding: str, corners: int) -> None:
    model = _model(SHAPES, mode=mode, padding_mode=padding, align_corners=corners)
    feeds = {"x": values(2, 3, 5, 4), "grid": 1.5 * values(2, 2, 7, 2, seed=1)}
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    (got,) = interpreter.run(from_onnx(model), feeds)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_volume_and_one_pixel() -> None:
    shapes = {"x": (1, 2, 3, 1, 4), "grid": (1, 2, 2, 2, 3)}
    model = _model(shapes, padding_mode="reflection", align_corners=1)
    feeds = {"x": values(*shapes["x"]), "grid": 2 * values(*shapes["grid"], seed=1)}
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(interpreter.run(from_onnx(model), feeds)[0], wanted, rtol=1e-4)


def test_image_of_open_size() -> None:
    with pytest.raises(UnsupportedOpError, match="reads an image of open size"):
        from_onnx(_model({**SHAPES, "x": ("n", 3, "h", 4)}), {"x": (None, 3, "height", 4)})


@pytest.mark.slow
def test_places_that_are_no_numbers(tmp_path: Any) -> None:
    """The compiled network reads nothing outside of the image; beside NaN all is as ever."""
    model = nybble.load_onnx(_model(SHAPES))
    session = nybble.load(nybble.compile(model).save(tmp_path / "net.so"), threads=1)
    x, grid = values(2, 3, 5, 4), values(2, 2, 7, 2, seed=1)
    bad = grid.copy()
    bad[0, 0, 0], bad[1, 1, 3] = np.nan, 1e30
    got = np.asarray(session(x, bad))
    (wanted,) = interpreter.run(model.module, [x, grid])
    kept = np.asarray(np.abs(bad).max(-1) < 1e9)[:, None].repeat(3, 1)
    np.testing.assert_allclose(got[kept], wanted[kept], rtol=1e-5, atol=1e-6)
