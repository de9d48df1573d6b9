"""Weights in files beside the model, more of them than one protobuf can hold, and float16."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nybble.errors import ImportModelError
from nybble.frontend.onnx import from_onnx
from nybble.ir import interpreter
from tests.frontend.onnx_models import model, node, values

TABLES, WORDS, WIDTH = 3, 190_000, 1024  # 2.33 GB of float32
LOAD = """
import resource, sys
import numpy as np
from nybble.frontend.onnx import from_onnx
from nybble.ir import interpreter
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mod = from_onnx(sys.argv[1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
(y,) = interpreter.run(mod, [np.array([[0, int(sys.argv[2]) - 1]])])
print(peak * 1024, y[0, 0].sum(), y[0, 1].sum())
"""


def _external(name: str, shape: tuple[int, ...], offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights"), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _tables(folder: Path, words: int) -> Path:
    """The sum of rows of several tables; the file is holes but for the last row of each."""
    size = words * WIDTH * 4
    with (folder / "weights").open("wb") as file:
        for i in range(TABLES):
            file.seek((i + 1) * size - WIDTH * 4)
            file.write(np.full(WIDTH, i + 1, np.float32).tobytes())
    nodes = [node("Gather", f"t{i} x", f"g{i}") for i in range(TABLES)]
    nodes += [node("Sum", " ".join(f"g{i}" for i in range(TABLES)))]
    tables = [_external(f"t{i}", (words, WIDTH), i * size, size) for i in range(TABLES)]
    body = helper.make_graph(
        nodes, "tables", [helper.make_tensor_value_info("x", TensorProto.INT64, ("N", 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tables,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(body, opset_imports=opsets, ir_version=8), folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    path = _tables(tmp_path, WORDS)
    total = (tmp_path / "weights").stat().st_size
    assert total > 2**31
    done = subprocess.run(
        [sys.executable, "-c", LOAD, path, str(WORDS)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak, first, last = map(float, done.stdout.split())
    assert (first, last) == (0, WIDTH * TABLES * (TABLES + 1) / 2)
    assert peak < 2.1 * total  # the constants, what is mapped, one copy on its way


def test_external_data_is_mapped(tmp_path: Path) -> None:
    (got,) = interpreter.run(from_onnx(_tables(tmp_path, 5)), [np.array([[0, 4]])])
    np.testing.assert_array_equal(got[0], [[0] * WIDTH, [6] * WIDTH])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"location": "../weights"}, "outside of the model's folder"),
        ({"location": "gone"}, "No such file.*Keep the data file next to the model"),
        ({"length": "16"}, "16 bytes of 'weights' do not hold float32"),
        ({"offset": "999999"}, "do not hold float32"),
        ({"offset": "-4"}, "offset must be non-negative"),
    ],
)
def test_external_data_that_cannot_be(tmp_path: Path, change: dict[str, str], said: str) -> None:
    path = _tables(tmp_path, 5)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[2].external_data:
        entry.value = change.get(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ImportModelError, match=f"(?s)Weight 't2': cannot be read: .*{said}"):
        from_onnx(path)


def test_float16_network() -> None:
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f d", "y", transB=1),
    ]
    weights = {"w": values(8, 3, 3, 3), "b": values(8), "d": values(5, 8)}
    proto = model(nodes, weights={k: v.astype(np.float16) for k, v in weights.items()})
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    x = values(2, 3, 9, 7, seed=1).astype(np.float16)
    (wanted,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    (got,) = interpreter.run(from_onnx(proto), [x])
    assert got.dtype == wanted.dtype == np.float16
    np.testing.assert_allclose(got, wanted, atol=5e-3 * np.abs(wanted).max(), rtol=0)
    assert numpy_helper.to_array(proto.graph.initializer[0]).dtype == np.float16  # as it was
