"""Operators of com.microsoft against ONNX Runtime, which defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nybble.frontend.onnx import from_onnx
from nybble.ir import interpreter
from tests.frontend.onnx_models import values

W = 8  # width of a token
ROPE = {"cos_cache": np.cos(values(6, 2)), "sin_cache": np.sin(values(6, 2))}
WIDE = {"cos_cache": np.cos(values(8, 8)), "sin_cache": np.sin(values(8, 8))}
GROUPED = {  # a past of 4, of which the second sequence holds 2
    "x": values(2, 1, 64), "k": values(2, 1, 32, seed=1), "v": values(2, 1, 32, seed=2),
    "pk": values(2, 2, 4, 16, seed=3), "pv": values(2, 2, 4, 16, seed=4),
    "last": np.array([4, 2], np.int32), "total": np.array(5, np.int32),
}  # fmt: skip
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Gelu", {"x": values(2, 5, W)}, {}),
    ("FastGelu", {"x": values(2, 5, W), "b": values(W, seed=1)}, {}),
    ("BiasGelu", {"x": values(2, 5, W), "b": values(W, seed=1)}, {}),
    ("QuickGelu", {"x": values(2, 5, W)}, {"alpha": 1.5}),
    ("SkipLayerNormalization",
     {"x": values(2, 5, W), "s": values(2, 5, W, seed=1), "g": values(W, seed=2),
      "b": values(W, seed=3), "bias": values(W, seed=4)}, {"epsilon": 1e-5}),
    ("SkipSimplifiedLayerNormalization",
     {"x": values(2, 5, W), "s": values(2, 5, W, seed=1), "g": values(W, seed=2)}, {}),
    ("FusedMatMul", {"x": values(2, 5, W), "w": values(3, W, seed=1)},
     {"transB": 1, "alpha": 0.5}),
    ("FusedMatMul", {"x": values(2, 5, W), "v": values(2, 5, 4, seed=1)}, {"transA": 1}),
    ("FusedConv", {"x": values(1, 3, 6, 6), "w": values(4, 3, 3, 3), "b": values(4)},
     {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    ("Attention", {"x": values(2, 5, W), "w": values(W, 3 * W, seed=1), "b": values(3 * W)},
     {"num_heads": 2}),
    ("Attention", {"x": values(2, 5, W), "w": values(W, 3 * W, seed=1), "b": values(3 * W),
                   "mask": MASK}, {"num_heads": 2}),
    ("Attention", {"x": values(2, 5, W), "w": values(W, 3 * W, seed=1), "b": values(3 * W)},
     {"num_heads": 4, "unidirectional": 1}),
    ("MultiHeadAttention", {"x": values(2, 5, W), "k": values(2, 6, W, seed=1),
                            "v": values(2, 6, W, seed=2), "b": values(3 * W)}, {"num_heads": 2}),
    ("RotaryEmbedding", {"x": values(2, 3, 5, 4), "ids": np.arange(5) + np.array([[0], [1]]),
                         **ROPE}, {}),
    ("RotaryEmbedding", {"x": values(2, 5, 12), "ids": np.zeros(1, np.int64), **ROPE},
     {"interleaved": 1}),
    ("RotaryEmbedding", {"x": values(2, 5, 12), "ids": np.ones(1, np.int64), **ROPE}, {}),
    ("Attention", {"x": values(2, 1, W), "w": values(W, 3 * W, seed=1), "b": values(3 * W),
                   "mask": MASK, "past": values(2, 2, 2, 4, 4)},
     {"num_heads": 2, "unidirectional": 1}),
    ("MultiHeadAttention", {"x": values(2, 2, W), "k": values(2, 2, W, seed=1),
                            "v": values(2, 2, W, seed=2), " ": None, "mask": MASK, "  ": None,
                            "pk": values(2, 2, 3, 4), "pv": values(2, 2, 3, 4)},
     {"num_heads": 2, "unidirectional": 1}),
    ("GroupQueryAttention", GROUPED,
     {"num_heads": 4, "kv_num_heads": 2, "local_window_size": 3, "softcap": 2.0}),
    ("GroupQueryAttention", {**GROUPED, **WIDE},
     {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "scale": 0.3}),
    ("EmbedLayerNormalization",
     {"ids": np.array([[1, 2, 3], [4, 5, 0]], np.int32), "seg": np.array([[0, 0, 1]] * 2, np.int32),
      "w": values(6, W), "p": values(4, W, seed=1), "s": values(2, W, seed=2),
      "g": values(W, seed=3), "b": values(W, seed=4)}, {}),
]  # fmt: skip
CONSTANT = {"w", "b", "g", "p", "bias", "cos_cache", "sin_cache", "total"}


def _given(operands: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in operands.items() if k not in CONSTANT and v is not None}


def _model(op: str, operands: dict[str, Any], attrs: dict[str, Any]) -> onnx.ModelProto:
    kept = ["present"] if "past" in operands else ["keys", "values"] if "pk" in operands else []
    outputs = ["y", "lengths"] if op.startswith("Embed") else ["y", *kept]
    node = helper.make_node(
        op,
        [name.strip() for name in operands],
        outputs,
        name="the_node",
        domain="com.microsoft",
        **attrs,
    )
    given = _given(operands)
    kinds = {k: helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in given.items()}
    graph = helper.make_graph(
        [node], "test",
        [helper.make_tensor_value_info(k, kinds[k], v.shape) for k, v in given.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in operands.items() if k in CONSTANT],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize(("op", "operands", "attrs"), CASES)
def test_as_onnx_runtime(op: str, operands: dict[str, Any], attrs: dict[str, Any]) -> None:
    model = _model(op, operands, attrs)
    feeds = _given(operands)
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["y"], feeds)
    (got,) = interpreter.run(from_onnx(model), feeds)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-5)
