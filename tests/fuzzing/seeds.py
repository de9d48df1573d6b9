"""Valid models that mutants are made of: small networks with many operators, ONNX's own cases."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.frontend.onnx_models import model, node, values

Image = tuple[int | str | None, ...]
IMAGE: Image = ("N", 3, 9, 7)
LINE: Image = ("N", 6, 8)


def _conv() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x w b", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a s c m v", "n"),
        node("Relu", "n", "r"),
        node("MaxPool", "r", "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("AveragePool", "r", "q", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        node("Add", "p q", "z"),
        node("GlobalAveragePool", "z", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f d e", transB=1, alpha=0.5),
    ]
    kept = np.abs(values(8)) + 0.5
    weights = {"w": values(8, 3, 3, 3), "b": values(8), "s": values(8), "c": values(8),
               "m": values(8), "v": kept, "d": values(5, 8), "e": values(5)}  # fmt: skip
    return model(nodes, IMAGE, weights)


def _mobile() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x w", "a"),
        node("Clip", "a low high", "c"),
        node("Conv", "c d", "e", group=8, kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
        node("HardSwish", "e", "h"),
        node("ReduceMean", "h", "m", axes=[2, 3], keepdims=1),
        node("Conv", "m g", "i"),
        node("HardSigmoid", "i", "j", alpha=0.2),
        node("Mul", "h j", "k"),
        node("Concat", "k c", "l", axis=1),
        node("PRelu", "l slope", "y"),
    ]
    weights = {"w": values(8, 3, 1, 1), "d": values(8, 1, 3, 3), "g": values(8, 8, 1, 1),
               "low": np.float32(0), "high": np.float32(6), "slope": values(16, 1, 1)}  # fmt: skip
    return model(nodes, IMAGE, {k: np.asarray(v) for k, v in weights.items()}, opset=14)


def _attention() -> onnx.ModelProto:
    nodes = [
        node("LayerNormalization", "x gain bias", "n", axis=-1),
        node("MatMul", "n w", "h"),
        node("Split", "h", "q k v", axis=2),
        node("Transpose", "k", "t", perm=[0, 2, 1]),
        node("MatMul", "q t", "s"),
        node("Div", "s root", "scaled"),
        node("Softmax", "scaled", "p", axis=-1),
        node("MatMul", "p v", "o"),
        node("Add", "o x", "r"),
        node("Shape", "r", "shape"),
        node("Slice", "shape zero two", "front"),
        node("Concat", "front rest", "target", axis=0),
        node("Reshape", "r target", "u"),
        node("ReduceSum", "u axes", "z", keepdims=0),
        node("Erf", "z"),
    ]
    weights = {"gain": values(8), "bias": values(8), "w": values(8, 24), "root": np.float32(2.8),
               "zero": np.array([0]), "two": np.array([2]), "rest": np.array([2, 4]),
               "axes": np.array([3])}  # fmt: skip
    return model(nodes, LINE, {k: np.asarray(v) for k, v in weights.items()})


def _moves() -> onnx.ModelProto:
    nodes = [
        node("Pad", "x pads", "a", mode="constant"),
        node("Slice", "a starts ends axes steps", "b"),
        node("Tile", "b repeats", "c"),
        node("Gather", "c index", "d", axis=1),
        node("Unsqueeze", "d one", "e"),
        node("Squeeze", "e one", "f"),
        node("Expand", "f wide", "g"),
        node("DepthToSpace", "g", "h", blocksize=2),
        node("Resize", "h _ scales", "i", mode="linear"),
        node("ConvTranspose", "i w", "j", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
        node("ArgMax", "j", "k", axis=1, keepdims=1),
        node("Cast", "k", "l", to=TensorProto.FLOAT),
        node("Where", "mask j l", "m"),
        node("TopK", "m three", "n o", axis=2),
        node("CumSum", "n axis", "y"),
    ]  # fmt: skip
    weights = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "starts": np.array([0, 1]),
        "ends": np.array([8, -1]), "axes": np.array([2, 3]), "steps": np.array([2, 1]),
        "repeats": np.array([1, 2, 1, 1]), "index": np.array([0, 1, -1, 2]), "one": np.array([1]),
        "wide": np.array([1, 4, 1, 1]), "scales": np.array([1, 1, 2, 2], np.float32),
        "w": values(1, 3, 3, 3), "mask": np.array([[[True]]]), "three": np.array([3]),
        "axis": np.asarray(3),
    }  # fmt: skip
    return model(nodes, IMAGE, weights)


def _recurrent() -> onnx.ModelProto:
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("LSTM", "t w r b", "a b_h b_c", hidden_size=5, direction="bidirectional"),
        node("Transpose", "a", "c", perm=[0, 2, 1, 3]),
        node("Reshape", "c flat", "d"),
        node("GRU", "d gw gr", "e", hidden_size=4, linear_before_reset=1),
        node("Squeeze", "e one", "f"),
        node("Tanh", "f"),
    ]
    weights = {"w": values(2, 20, 8), "r": values(2, 20, 5), "b": values(2, 40),
               "flat": np.array([0, 0, -1]), "gw": values(1, 12, 10), "gr": values(1, 12, 4),
               "one": np.array([1])}  # fmt: skip
    return model(nodes, ("N", 1, 8), weights)  # every step is unrolled, and compiled


def _qdq() -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", "x sx zx", "a"),
        node("DequantizeLinear", "a sx zx", "b"),
        node("DequantizeLinear", "w sw zw", "c", axis=0),
        node("Conv", "b c", "d", pads=[1, 1, 1, 1]),
        node("Relu", "d", "e"),
        node("QuantizeLinear", "e sy zy", "f"),
        node("DequantizeLinear", "f sy zy", "y"),
    ]
    integers = np.random.default_rng(3).integers(-100, 100, (4, 3, 3, 3))
    weights = {
        "sx": np.float32(0.02), "zx": np.uint8(120), "w": integers.astype(np.int8),
        "sw": np.full(4, 0.01, np.float32), "zw": np.zeros(4, np.int8),
        "sy": np.float32(0.1), "zy": np.uint8(0),
    }  # fmt: skip
    return model(nodes, IMAGE, {k: np.asarray(v) for k, v in weights.items()})


def _operators() -> onnx.ModelProto:
    """QOperator form: QLinearConv, com.microsoft's sum, QLinearMatMul."""
    nodes = [
        node("QuantizeLinear", "x sx zx", "a"),
        node("QLinearConv", "a sx zx w sw zw sy zy", "b"),
        node("QLinearAdd", "b sy zy b sy zy sy zy", "c"),
        node("QLinearMatMul", "c sy zy m sw zw sx zx", "d"),
        node("DequantizeLinear", "d sx zx", "y"),
    ]
    nodes[2].domain = "com.microsoft"
    rng = np.random.default_rng(4)
    weights = {
        "sx": np.float32(0.02), "zx": np.uint8(120), "sw": np.float32(0.01), "zw": np.int8(0),
        "w": rng.integers(-100, 100, (4, 3, 1, 1)).astype(np.int8),
        "m": rng.integers(-100, 100, (7, 5)).astype(np.int8),
        "sy": np.float32(0.1), "zy": np.uint8(5),
    }  # fmt: skip
    return model(nodes, IMAGE, {k: np.asarray(v) for k, v in weights.items()})


def _branches() -> onnx.ModelProto:
    """``If`` with a computed condition, a constant one, and a function of the model."""
    then = _body("yes", [node("Relu", "x", "left")], "left")
    other = _body("no", [node("Neg", "x", "right")], "right")
    nodes = [
        node("ReduceMax", "x", "top", keepdims=0),
        node("Greater", "top limit", "cond"),
        node("If", "cond", "a", then_branch=then, else_branch=other),
        node("If", "never", "b", then_branch=then, else_branch=other),
        node("Einsum", "a b", "c", equation="nij,nkj->nik"),
        node("Twice", "c", "y"),
    ]
    nodes[-1].domain = "own"
    proto = model(nodes, LINE, {"limit": np.asarray(np.float32(1)), "never": np.asarray(False)})
    proto.opset_import.append(helper.make_opsetid("own", 1))
    twice = helper.make_function(
        "own", "Twice", ["p"], ["q"], [node("Add", "p p", "q")], [helper.make_opsetid("", 17)]
    )
    proto.functions.append(twice)
    return proto


def _body(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [info])


def _tokens() -> onnx.ModelProto:
    nodes = [
        node("Gather", "table x", "word"),
        node("Add", "word places", "h"),
        node("FusedMatMul", "h w", "z", alpha=0.5),
        node("SkipLayerNormalization", "z h gain bias", "n"),
        node("FastGelu", "n bias", "f"),
        node("OneHot", "x depth on_off", "hot"),
        node("Concat", "f hot", "y", axis=2),
    ]
    for contrib in nodes[2:5]:
        contrib.domain = "com.microsoft"
    weights: Mapping[str, Any] = {
        "table": values(9, 4), "places": values(5, 4), "w": values(4, 4), "gain": values(4),
        "bias": values(4), "depth": np.asarray(9), "on_off": np.array([0, 1], np.float32),
    }  # fmt: skip
    body = helper.make_graph(
        nodes, "tokens", [helper.make_tensor_value_info("x", TensorProto.INT64, ("N", 5))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=8)


NETWORKS: tuple[Callable[[], onnx.ModelProto], ...] = (
    _conv, _mobile, _attention, _moves, _recurrent, _qdq, _operators, _branches, _tokens,
)  # fmt: skip


@cache
def networks() -> list[bytes]:
    """Every network of this file."""
    return [build().SerializeToString(deterministic=True) for build in NETWORKS]


@cache
def nodes() -> list[bytes]:
    """The models of ONNX's own operator tests (some 2,000; building them takes seconds)."""
    from onnx.backend.test.case.node import collect_testcases  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    models = [case.model for case in found if case.model is not None]
    return [proto.SerializeToString(deterministic=True) for proto in models]
