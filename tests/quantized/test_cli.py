"""``nybble compile quantized.onnx``: no calibration, no recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import nybble
from nybble.commands import CompileJob, compile_to_file
from nybble.errors import NybbleError
from nybble.options import RecipeOptions

RANDOM = np.random.default_rng(0)


def integers_in_and_out(folder: Path) -> Path:
    """A convolution of uint8 images that gives int8 ones: no float anywhere."""
    constants = {
        "xs": np.float32(0.02), "xz": np.uint8(120), "ys": np.float32(0.05), "yz": np.int8(-7),
        "w": RANDOM.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "ws": np.full(8, 0.01, np.float32), "wz": np.zeros(8, np.int8),
    }  # fmt: skip
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    node = helper.make_node("QLinearConv", names, ["y"], name="conv", pads=[1, 1, 1, 1])
    made = helper.make_graph(
        [node], "test",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 3, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, ["n", 8, 9, 9])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "quantized.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def job(path: Path, **options: object) -> CompileJob:
    given: dict[str, object] = {
        "model": path, "output": path.with_suffix(".so"), "calibration": None,
        "recipe": RecipeOptions(), "targets": ("native",), "keep_float": False,
    }  # fmt: skip
    return CompileJob(**(given | options))  # type: ignore[arg-type]


def test_compile(tmp_path: Path) -> None:
    path = integers_in_and_out(tmp_path)
    compile_to_file(job(path))
    session = nybble.load(path.with_suffix(".so"))
    assert [port.dtype for port in session.manifest.inputs] == ["uint8"]
    assert [port.dtype for port in session.manifest.outputs] == ["int8"]
    assert session.manifest.rounding == "half_up"
    x = RANDOM.integers(0, 256, (4, 3, 9, 9)).astype(np.uint8)
    y = session(x)
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, nybble.load_onnx(path).run(x))
    assert np.ptp(y.astype(int)) > 50


CHOICES: list[dict[str, object]] = [
    {"calibration": Path("few.npy")}, {"keep_float": True}, {"recipe": RecipeOptions(weights="4")},
]  # fmt: skip


@pytest.mark.parametrize("options", CHOICES)
def test_what_makes_no_sense_is_refused(options: dict[str, object], tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((2, 3, 9, 9), np.float32))
    options = {k: tmp_path / v if isinstance(v, Path) else v for k, v in options.items()}
    with pytest.raises(NybbleError, match="quantized already"):
        compile_to_file(job(integers_in_and_out(tmp_path), **options))
