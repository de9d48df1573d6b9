"""Everything that stops an ONNX import, and what the message says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nybble.errors import ImportModelError, UnsupportedOpError
from nybble.frontend.onnx import from_onnx
from nybble.ir import graph, interpreter
from tests.frontend.onnx_models import model, node, values


def _conv_model(weight: Any = None) -> onnx.ModelProto:
    return model([node("Conv", "x w")], weights={"w": values(4, 3, 3, 3)} | (weight or {}))


@pytest.mark.parametrize("keep", [1, 20, -40, -1])
def test_truncated_bytes(keep: int) -> None:
    data = _conv_model().SerializeToString()
    with pytest.raises(ImportModelError, match=r"truncated|holds no graph"):
        from_onnx(data[:keep])


def test_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(_conv_model().SerializeToString()[:-40])
    with pytest.raises(ImportModelError, match=r"cut\.onnx'.*truncated"):
        from_onnx(path)


@pytest.mark.parametrize("data", [b"", b"version https://git-lfs.github.com/spec/v1\n", bytes(64)])
def test_not_onnx(data: bytes) -> None:
    with pytest.raises(ImportModelError, match=r"no ONNX|holds no graph"):
        from_onnx(data)


@pytest.mark.parametrize("source", [None, 3, bytearray(b"x")])
def test_no_source(source: Any) -> None:
    with pytest.raises(ImportModelError, match=f"not {type(source).__name__}"):
        from_onnx(source)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImportModelError, match=r"gone\.onnx': cannot be read \(No such file"):
        from_onnx(tmp_path / "gone.onnx")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weight_that_is_not_finite_is_named(bad: float) -> None:
    weight = values(4, 3, 3, 3)
    weight[2, 1] = bad
    with pytest.raises(ImportModelError, match=r"weight 'w' of shape \(4, 3, 3, 3\) holds 9 value"):
        from_onnx(_conv_model({"w": weight}))


def test_scalar_operand_that_is_not_finite() -> None:
    with pytest.raises(ImportModelError, match=r"the_Add_y.*NaN"):
        from_onnx(model([node("Add", "x c")], weights={"c": np.asarray(np.nan, np.float32)}))


def test_external_data(tmp_path: Path) -> None:
    path, proto = tmp_path / "net.onnx", _conv_model()
    reference = from_onnx(proto.SerializeToString())
    onnx.save(proto, path, save_as_external_data=True, location="net.data", size_threshold=0)
    x = values(2, 3, 9, 7)
    (wanted,), (got,) = interpreter.run(reference, [x]), interpreter.run(from_onnx(path), [x])
    np.testing.assert_array_equal(got, wanted)
    with pytest.raises(ImportModelError, match=r"Weight 'w'.*Pass the path"):
        from_onnx(path.read_bytes())
    (tmp_path / "net.data").write_bytes(b"short")
    with pytest.raises(ImportModelError, match=r"Weight 'w': cannot be read.*next to the model"):
        from_onnx(path)
    (tmp_path / "net.data").unlink()
    with pytest.raises(ImportModelError, match=r"Weight 'w': cannot be read.*next to the model"):
        from_onnx(str(path))


def test_every_unsupported_node_is_listed() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Bernoulli", "a", "b"),
        node("Conv", "b v", "c"),  # supported, but behind one that is not
        node("BatchNormalization", "c s s s s", "d", training_mode=1),
        node("FusedMagic", "d w", "e", domain="com.microsoft"),
        node("MaxUnpool", "e e", "f", kernel_shape=[2, 2]),
        node("Relu", "f"),
        node("Det", "a", "unused"),  # leads nowhere: needs no translation
    ]
    weights = {"w": values(3, 3, 3, 3), "v": values(3, 3, 1, 1), "s": values(3)}
    with pytest.raises(UnsupportedOpError) as caught:
        from_onnx(model(nodes, weights=weights, opset=15))
    found = {n.op: (n.name, n.reason) for n in caught.value.nodes}
    assert list(found) == [
        "Bernoulli",
        "BatchNormalization",
        "com.microsoft.FusedMagic",
        "MaxUnpool",
    ]
    assert found["BatchNormalization"][0] == "the_BatchNormalization_d"
    assert "training" in found["BatchNormalization"][1]
    assert "4 node(s)" in str(caught.value)
    assert "Bernoulli 'the_Bernoulli_b'" in str(caught.value)


REFUSED: list[tuple[onnx.NodeProto, dict[str, Any], str]] = [
    (node("Conv", "x w"), {"w": values(4, 3, 3)}, "over one to three axes"),
    (node("Conv", "x w"), {"w": values(4, 5, 3, 3)}, "channel size"),
    (node("MatMul", "x w"), {"w": values(5, 4)}, "reduction|shape|dim"),
    (node("Pad", "x p v"), {"p": np.ones(8, np.int64), "v": np.float32(np.nan)}, "pads with NaN"),
    (node("NonZero", "x"), {}, "fixed shapes"),
    (node("Tile", "x x"), {}, "must be a constant"),

    (node("Dropout", "x r t"), {"r": np.float32(0.5), "t": np.array(True)}, "training mode"),
    (node("BatchNormalization", "x s s s s", training_mode=1), {"s": values(3)}, "training mode"),
    (node("BatchNormalization", "x s s s v"), {"s": values(3), "v": -np.ones(3, np.float32)},
     "not positive"),
    (node("Reshape", "x s"), {"s": np.array([1, 189])}, "for every batch size"),
    (node("Reshape", "x s"), {"s": np.array([0, 5, -1])}, "not equal in size"),
    (node("Add", "x c"), {"c": values(2, 3, 9, 7)}, "for some batch sizes only"),
    (node("Squeeze", "x a"), {"a": np.array([1])}, "not all are 1"),
    (node("Cast", "x", to=TensorProto.FLOAT8E4M3FN), {}, "casts to FLOAT8E4M3FN"),
    (node("MaxPool", "x", "y i", kernel_shape=[2, 2]), {}, "only its first 1 output"),
    (node("MaxPool", "x", kernel_shape=[2]), {}, "is not that of its image"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "weights", "reason"), REFUSED)
def test_refused_forms(bad: onnx.NodeProto, weights: dict[str, Any], reason: str) -> None:
    proto = model([bad], weights=weights, outputs=[name for name in bad.output if name])
    with pytest.raises(UnsupportedOpError, match=reason) as caught:
        from_onnx(proto)
    assert [n.name for n in caught.value.nodes] == [bad.name]


def test_no_inputs() -> None:
    proto = model([node("Relu", "w")], weights={"w": values(3)})
    del proto.graph.input[:]
    with pytest.raises(ImportModelError, match="no inputs"):
        from_onnx(proto)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.STRING])
def test_input_dtype(kind: int) -> None:
    proto = model([node("Relu", "x")])
    proto.graph.input[0].type.tensor_type.elem_type = kind
    with pytest.raises(ImportModelError, match=r"Input 'x': its dtype is (BFLOAT16|STRING)"):
        from_onnx(proto)


def test_dynamic_image_needs_shapes() -> None:
    proto = model([node("MaxPool", "x", kernel_shape=[2, 2])], ("N", 3, "H", None))
    with pytest.raises(ImportModelError, match=r"Input 'x': axes \[2, 3\] are dynamic.*shapes="):
        from_onnx(proto)
    mod = from_onnx(proto, shapes={"x": (None, 3, 8, 6)})
    assert graph.shape_of(graph.inputs(mod)[0]) == ("batch", 3, 8, 6)
    fixed = from_onnx(proto, shapes={"x": (4, 3, 8, 6)})
    assert graph.shape_of(graph.outputs(fixed)[0]) == (4, 3, 7, 5)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": (None, 4, 9, 7)}, "only dynamic extents can be chosen"),
        ({"x": (None, 3, 9)}, "only dynamic extents can be chosen"),
        ({"z": (1,)}, r"no inputs \['z'\]; the model has x"),
        ({"x": (0, 3, 9, 7)}, "not positive"),
    ],
)
def test_shapes_that_do_not_fit(shapes: dict[str, Any], message: str) -> None:
    with pytest.raises(ImportModelError, match=message):
        from_onnx(model([node("Relu", "x")]), shapes=shapes)


def test_input_without_a_shape() -> None:
    proto = model([node("Relu", "x")])
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ImportModelError, match="gives no shape"):
        from_onnx(proto)


def test_undefined_tensor() -> None:
    with pytest.raises(ImportModelError, match=r"Add 'the_Add_y'.*'ghost'"):
        from_onnx(model([node("Add", "x ghost")]))


def test_invalid_node() -> None:
    with pytest.raises(ImportModelError, match=r"MaxPool 'the_MaxPool_y': invalid ONNX"):
        from_onnx(model([node("MaxPool", "x")]))


def test_constant_output() -> None:
    proto = model([node("Relu", "x", "h"), node("Neg", "c")], weights={"c": values(2)})
    with pytest.raises(ImportModelError, match=r"Output 'y': it is a constant"):
        from_onnx(proto)


@pytest.mark.parametrize("opset", [6, 0])
def test_opset_too_old(opset: int) -> None:
    proto = model([node("Relu", "x")], opset=opset)
    with pytest.raises(ImportModelError, match=f"opset {opset}; the oldest"):
        from_onnx(proto)


def test_no_operator_set_of_onnx() -> None:
    proto = model([node("Relu", "x")])
    del proto.opset_import[:]
    proto.opset_import.add(domain="ai.onnx.preview.training", version=1)
    with pytest.raises(ImportModelError, match=r"uses ai\.onnx\.preview\.training, not ONNX"):
        from_onnx(proto)


def test_newer_opsets_are_taken_where_the_operator_did_not_change() -> None:
    assert from_onnx(model([node("Sigmoid", "x")], opset=onnx.defs.onnx_opset_version()))


def test_names_of_nodes_and_outputs_survive_and_the_model_is_not_changed() -> None:
    nodes = [node("Conv", "x w b", "h"), helper.make_node("Relu", ["h"], ["y"])]
    proto = model(nodes, weights={"w": values(4, 3, 3, 3), "b": values(4)}, outputs=("y", "h"))
    before = proto.SerializeToString(deterministic=True)
    mod = from_onnx(proto)
    names = [name for name, _, _ in graph.walk(mod)]
    assert names == ["the_Conv_h", "the_Conv_h.bias", "y"]  # a node without a name: its output's
    assert graph.output_names(mod) == ["y", "h"]
    assert [str(v.name) for v in graph.inputs(mod)] == ["x"]
    assert proto.SerializeToString(deterministic=True) == before
