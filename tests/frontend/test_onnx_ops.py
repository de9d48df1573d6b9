"""Every ONNX operator and each of its traps, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from nybble.frontend.onnx import from_onnx
from nybble.ir import graph, interpreter
from tests.frontend.onnx_models import check, model, node, values

FLOAT_MAX = float(np.finfo(np.float32).max)

UNARY: list[tuple[str, int, dict[str, Any], list[str]]] = [
    ("Relu", 13, {}, ["relax.nn.relu"]),
    ("LeakyRelu", 16, {"alpha": 0.2}, ["relax.nn.leakyrelu"]),
    ("Sigmoid", 13, {}, ["relax.sigmoid"]),
    ("Tanh", 13, {}, ["relax.tanh"]),
    ("Exp", 13, {}, ["relax.exp"]),
    ("HardSigmoid", 6 + 1, {}, ["relax.multiply", "relax.add", "relax.clip"]),
    ("HardSigmoid", 7, {"alpha": 0.3, "beta": 0.4}, ["relax.multiply", "relax.add", "relax.clip"]),
    ("HardSwish", 14, {}, ["relax.multiply", "relax.add", "relax.clip", "relax.multiply"]),
    ("Clip", 7, {"min": -1.0, "max": 2.0}, ["relax.clip"]),
    ("Clip", 7, {"min": 0.0, "max": FLOAT_MAX}, ["relax.nn.relu"]),
    ("Clip", 7, {"max": 1.0}, ["relax.minimum"]),
    ("Clip", 7, {}, []),
    ("Softmax", 11, {"axis": 1}, ["relax.reshape", "relax.nn.softmax", "relax.reshape"]),
    ("Softmax", 11, {"axis": 3}, ["relax.nn.softmax"]),
    ("Softmax", 13, {"axis": 1}, ["relax.nn.softmax"]),
    ("GlobalAveragePool", 7, {}, ["relax.mean"]),
    ("ReduceMean", 13, {"axes": [2, -1], "keepdims": 0}, ["relax.mean"]),
    ("ReduceMean", 13, {}, ["relax.mean"]),
    ("Flatten", 13, {}, ["relax.reshape"]),
    ("Flatten", 13, {"axis": -1}, ["relax.reshape"]),
    ("Flatten", 13, {"axis": 0}, ["relax.reshape"]),
    ("Transpose", 13, {}, ["relax.permute_dims"]),
    ("Transpose", 13, {"perm": [0, 2, 3, 1]}, ["relax.permute_dims"]),
    ("Dropout", 7, {"ratio": 0.3}, []),
    ("Identity", 13, {}, []),
    ("Pad", 7, {"pads": [0, 0, 1, 2, 0, 0, 0, 3], "value": 1.5}, ["relax.nn.pad"]),
    ("Pad", 7, {"pads": [0] * 8}, []),
    ("Unsqueeze", 11, {"axes": [1, -1]}, ["relax.reshape"]),
    ("Cast", 13, {"to": 1}, []),
    ("Sum", 13, {}, []),
]  # fmt: skip


@pytest.mark.parametrize(("op", "opset", "attrs", "ops"), UNARY)
def test_one_operand(op: str, opset: int, attrs: dict[str, Any], ops: list[str]) -> None:
    # the relu in front keeps the graph from returning its own input
    proto = model([node("Sigmoid", "x", "h"), node(op, "h", **attrs)], opset=opset)
    assert check(proto) == ["relax.sigmoid", *ops]


OPERANDS: list[tuple[str, int, dict[str, Any], dict[str, Any], str]] = [
    ("Clip", 13, {}, {"lo": np.float32(-1), "hi": np.float32(1)}, "x lo hi"),
    ("Clip", 13, {}, {"hi": np.float32(1)}, "x _ hi"),
    ("Clip", 13, {}, {"lo": np.float32(-1)}, "x lo"),
    ("Pad", 13, {}, {"p": np.array([0, 0, 1, 2, 0, 0, 0, 3])}, "x p"),
    ("Pad", 18, {}, {"p": np.array([1, 0, 2, 3]), "v": np.float32(2), "a": np.array([3, -2])},
     "x p v a"),
    ("Squeeze", 13, {}, {"w": np.array([2, 3])}, "x1 w"),
    ("Squeeze", 11, {"axes": [-1]}, {}, "x1"),
    ("Squeeze", 13, {}, {}, "x1"),
    ("Unsqueeze", 13, {}, {"a": np.array([0, 2])}, "x a"),
    ("ReduceMean", 18, {"keepdims": 0}, {"a": np.array([2, 3])}, "x a"),
    ("ReduceMean", 18, {"noop_with_empty_axes": 1}, {"a": np.zeros(0, np.int64)}, "x a"),
    ("Reshape", 13, {}, {"s": np.array([0, -1])}, "x s"),
    ("Reshape", 13, {}, {"s": np.array([-1, 3, 63])}, "x s"),
    ("Reshape", 14, {"allowzero": 1}, {"s": np.array([-1, 63, 3])}, "x s"),
    ("Add", 13, {}, {"c": values(3, 1, 1)}, "x c"),
    ("Add", 13, {}, {"c": values(3, 1, 1)}, "c x"),
    ("Sub", 13, {}, {"c": values(7)}, "c x"),
    ("Mul", 13, {}, {"c": np.float32(0.3)}, "c x"),
    ("Div", 13, {}, {"c": np.array([4], np.float32)}, "x c"),
    ("Max", 13, {}, {"c": np.float32(0.3), "d": values(7)}, "c x d"),
    ("Min", 13, {}, {"c": np.float32(0.3)}, "x c"),
    ("Concat", 13, {"axis": -3}, {}, "x x2 x"),
    ("Dropout", 13, {}, {"r": np.float32(0.3), "t": np.array(False)}, "x r t"),
    ("Sum", 13, {}, {}, "x x x"),
    ("Sub", 13, {}, {}, "x x2"),
    ("MatMul", 13, {}, {"w": values(7, 4)}, "x w"),
    ("BatchNormalization", 15, {"epsilon": 1e-3},
     {"g": values(3), "b": values(3, seed=2), "m": values(3, seed=3),
      "v": np.array([0, 1, 2], np.float32)}, "x g b m v"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "opset", "attrs", "weights", "inputs"), OPERANDS)
def test_operands(
    op: str, opset: int, attrs: dict[str, Any], weights: dict[str, Any], inputs: str
) -> None:
    extra = {
        "x1": [node("GlobalAveragePool", "x", "x1")],
        "x2": [node("Tanh", "x", "x2")],
    }
    first = [n for name in inputs.split() for n in extra.get(name, [])]
    proto = model([*first, node(op, inputs, **attrs)], weights=weights, opset=opset)
    check(proto)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (5,), (1, 5), (4, 5), (4, 1)])
def test_gemm(trans_a: int, trans_b: int, bias: tuple[int, ...] | None) -> None:
    weights = {"w": values(5, 6) if trans_b else values(6, 5)}
    if bias is not None:
        weights["b"] = np.asarray(values(*bias, seed=4), np.float32)
    gemm = node("Gemm", "x w b" if bias is not None else "x w", transA=trans_a, transB=trans_b,
                alpha=0.5, beta=2.0)  # fmt: skip
    check(model([gemm], (6, 4) if trans_a else (4, 6), weights))


CONVS: list[dict[str, Any]] = [
    {},
    {"pads": [0, 1, 2, 3], "strides": [2, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
    {"auto_pad": "VALID"},
    {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
    {"group": 3},
    {"kernel_shape": [3, 2]},
]


@pytest.mark.parametrize("attrs", CONVS)
@pytest.mark.parametrize("bias", [False, True])
def test_conv(attrs: dict[str, Any], bias: bool) -> None:
    weights = {"w": values(6, 3 // attrs.get("group", 1), 3, 2), "b": values(6)}
    conv = node("Conv", "x w b" if bias else "x w", **attrs)
    assert check(model([conv], weights=weights))[0] == "relax.nn.conv2d"


POOLS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2]},
    {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]},
    {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [3, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 3], "strides": [3, 3], "pads": [0, 1, 0, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
]


@pytest.mark.parametrize("attrs", POOLS)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("counted", [0, 1])
def test_pool(op: str, attrs: dict[str, Any], counted: int) -> None:
    if op == "AveragePool":
        attrs = {**attrs, "count_include_pad": counted}
    ops = check(model([node(op, "x", **attrs)], opset=19))
    assert ops[-1] == ("relax.nn.max_pool2d" if op == "MaxPool" else "relax.nn.avg_pool2d")


def test_concat_with_a_constant() -> None:
    concat = node("Concat", "x c", axis=1)
    assert check(model([concat], (2, 3, 9, 7), {"c": values(2, 1, 9, 7)})) == ["relax.concat"]


def test_max_pool_with_dilation() -> None:
    check(model([node("MaxPool", "x", kernel_shape=[2, 3], dilations=[3, 2], strides=[2, 1])]))


def _constant(name: str, array: Any) -> onnx.NodeProto:
    return node("Constant", "", name, value=numpy_helper.from_array(array))


def test_weights_as_constant_nodes_and_through_identity() -> None:
    nodes = [
        _constant("w", values(4, 3, 3, 3)),
        node("Identity", "b", "b1"),
        node("Identity", "b1", "b2"),
        node("Conv", "x w b2"),
    ]
    check(model(nodes, weights={"b": values(4)}))


def test_arithmetic_on_weights_is_folded() -> None:
    nodes = [
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("Mul", "wt two", "w2"),
        node("MatMul", "x w2"),
    ]
    proto = model(nodes, ("N", 6), {"w": values(5, 6), "two": np.asarray(2, np.float32)})
    assert check(proto) == ["relax.matmul"]


def _reshape_by_shape(tail: list[onnx.NodeProto]) -> onnx.ModelProto:
    weights = {
        "zero": np.array(0), "axis": np.array([0]), "minus": np.array([-1]),
        "one": np.array([1]), "big": np.array([2**63 - 1]), "three": np.array([3]),
    }  # fmt: skip
    return model([node("Shape", "x", "s"), *tail], weights=weights)


def test_reshape_to_symbolic_batch_by_gather_unsqueeze_concat() -> None:
    nodes = [
        node("Gather", "s zero", "n"),
        node("Unsqueeze", "n axis", "n1"),
        node("Concat", "n1 minus", "t", axis=0),
        node("Reshape", "x t"),
    ]
    assert check(_reshape_by_shape(nodes), batch=5) == ["relax.reshape"]


def test_reshape_to_symbolic_batch_by_slice_cast_mul() -> None:
    nodes = [
        node("Slice", "s axis one axis", "n"),
        node("Cast", "n", "n64", to=7),
        node("Slice", "s one big axis", "chw"),
        node("ReduceProd", "chw", "size", keepdims=1),
        node("Mul", "n64 three", "rows"),
        node("Div", "size three", "columns"),
        node("Concat", "rows columns", "t", axis=0),
        node("Reshape", "x t"),
    ]
    assert check(_reshape_by_shape(nodes), batch=5) == ["relax.reshape"]


def test_reshape_that_merges_the_batch() -> None:
    nodes = [node("Reshape", "x t", "r"), node("Relu", "r", "q"), node("Reshape", "q u")]
    check(model(nodes, weights={"t": np.array([-1, 7]), "u": np.array([-1, 3, 9, 7])}))


def test_two_inputs_share_the_batch() -> None:
    proto = model([node("Add", "x z")])
    proto.graph.input.append(helper.make_tensor_value_info("z", 1, ("M", 3, 9, 7)))
    mod = from_onnx(proto)
    assert [graph.shape_of(v) for v in graph.inputs(mod)] == [("batch", 3, 9, 7)] * 2
    x, z = values(4, 3, 9, 7), values(4, 3, 9, 7, seed=2)
    np.testing.assert_array_equal(interpreter.run(mod, {"z": z, "x": x})[0], x + z)
