"""One-node and few-node ONNX models, built in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nybble.frontend.onnx import from_onnx
from nybble.ir import graph, interpreter, specs

Array = NDArray[Any]


def model(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str | None] = ("N", 3, 9, 7),
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """A model from input "x" to output "y"."""
    graph = helper.make_graph(
        list(nodes), "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(v, k) for k, v in (weights or {}).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def node(op: str, inputs: str, outputs: str = "y", **attrs: Any) -> onnx.NodeProto:
    """A node; tensor names separated by blanks, "_" for an omitted operand."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=f"the_{op}_{outputs}", **attrs)


def values(*shape: int, seed: int = 0) -> Array:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(proto: onnx.ModelProto, batch: int = 2) -> list[str]:
    """Compares the imported module with ONNX Runtime; returns the op names of the module."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    mod = from_onnx(proto)
    specs.check(mod, "float")
    (info,) = session.get_inputs()
    x = values(*(d if isinstance(d, int) else batch for d in info.shape), seed=1) * 3
    wanted = session.run(None, {"x": x})
    got = interpreter.run(mod, [x])
    for left, right in zip(got, wanted, strict=True):
        assert left.shape == right.shape
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    return [graph.op_name(binding.value) for binding in graph.bindings(mod)]
