"""Places that a network computes and that lie outside of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import nybble
from nybble.errors import UnsupportedOpError
from tests.frontend.onnx_models import model, node, values

TABLE = values(5, 4)
FAR = np.array([[1e6], [-1e6], [5.0], [-6.0], [-1.0]], np.float32)
NEAR = np.array([4, 0, 4, 0, 4])  # in a table of five rows, negative ones counted from its end


def of_computed_places(op: str, shape: tuple[int, int]) -> onnx.ModelProto:
    """Reads a table at places x, or writes rows there."""
    cast = node("Cast", "x", "places", to=TensorProto.INT64)
    operands = "t places" if op.startswith("Gather") else "t places new"
    new = np.full((5, 4) if op == "ScatterND" else (5, 1), 9, np.float32)
    return model([cast, node(op, operands)], shape, {"t": TABLE, "new": new})


def written(columns: Any) -> Any:
    table = TABLE.copy()
    table[NEAR, columns] = 9
    return table


CASES = {
    "GatherND": TABLE[NEAR],
    "GatherElements": TABLE[NEAR, :1],
    "ScatterND": written(slice(None)),
    "ScatterElements": written(0),
}


@pytest.mark.parametrize("op", CASES)
def test_computed_places_are_taken_for_the_nearest(op: str) -> None:
    network = nybble.load_onnx(of_computed_places(op, (5, 1)))
    np.testing.assert_array_equal(network.run(FAR), CASES[op])


def test_compiled_code_writes_nothing_beside_its_tensor(tmp_path: Path) -> None:
    network = nybble.load_onnx(of_computed_places("ScatterND", (5, 1)))
    session = nybble.load(nybble.compile(network).save(tmp_path / "net.so"))
    np.testing.assert_array_equal(session(FAR), CASES["ScatterND"])


@pytest.mark.parametrize("op", CASES)
def test_known_places_outside_are_refused(op: str) -> None:
    proto = of_computed_places(op, (5, 1))
    del proto.graph.node[0]
    places = helper.make_tensor("places", TensorProto.INT64, (5, 1), [5, 0, 1, 2, 3])
    proto.graph.initializer.append(places)
    proto.graph.node.insert(0, node("Relu", "x", "t"))
    proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "t"))
    del proto.graph.input[0].type.tensor_type.shape.dim[1:]
    proto.graph.input[0].type.tensor_type.shape.dim.add(dim_value=4)
    with pytest.raises(UnsupportedOpError, match="outside of the extents"):
        nybble.load_onnx(proto)
