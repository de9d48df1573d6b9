"""The nine networks that the onnx package carries, with random weights for their constant ones."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import numpy_helper
from tvm import relax

import nybble

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NETWORKS = sorted(path.stem for path in FOLDER.glob("*.onnx"))


def drawn(path: Path) -> onnx.ModelProto:
    """The network with He-scaled random values where the file fills weights with one number."""
    model, rng = onnx.load(path), np.random.default_rng(5)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    scales = {
        name for n in model.graph.node if n.op_type == "BatchNormalization" for name in n.input[1:]
    }
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(v) for v in shapes[node.input[0]])
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 100
        values = rng.standard_normal(shape) * sqrt(2 / fan_in)
        if node.output[0] in scales:
            values = 1 + 0.2 * rng.random(shape)
        tensor = numpy_helper.from_array(values.astype(np.float32), node.output[0])
        model.graph.initializer.append(tensor)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def test_all_nine_are_here() -> None:
    assert len(NETWORKS) == 9


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_light_network(name: str) -> None:
    model = drawn(FOLDER / f"{name}.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (info,) = session.get_inputs()
    x = np.random.default_rng(6).random(info.shape).astype(np.float32)
    (wanted,) = session.run(None, {info.name: x})
    executable = nybble.compile(nybble.load_onnx(model)).executable
    got = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()
    assert np.ptp(wanted) > 1e-3 * np.abs(wanted).max()  # a result that says something
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)
