"""An ONNX graph under construction: nodes, initializers and names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import nybble
from nybble.errors import NybbleError
from nybble.ir import numerics

OPSET = 21  # the first with 4-bit integers and with blocks in DequantizeLinear
IR_VERSION = 10  # the one that came with it
LARGEST = 2**31 - 1  # bytes that protobuf can write
Shape = Sequence[int | str]


class Graph:
    """Collects nodes in order. Inputs and outputs keep the names they have in the source model."""

    def __init__(self, reserved: Iterable[str]):
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._tensors, self._names = set(reserved), set[str]()
        self._scalars: dict[tuple[str, bytes], str] = {}

    def node(self, op: str, inputs: Sequence[str], name: str, **attrs: Any) -> str:
        """Adds a node of one output, both called ``name`` where it is free; returns the output."""
        output, unique = _unique(name, self._tensors), _unique(name, self._names)
        self._nodes.append(helper.make_node(op, inputs, [output], name=unique, **attrs))
        return output

    def constant(self, values: Any, name: str, dtype: str | None = None) -> str:
        """Adds an initializer; scalars of the same bits share one.

        Args:
            values: an array, a number or a list of them.
            name: of the tensor, where it is free.
            dtype: of the tensor, the array's own unless given; ``int4`` is packed.
        """
        array = np.array(values, None if dtype == "int4" else dtype, order="C")
        key = (str(array.dtype), array.tobytes())
        if array.ndim == 0 and key in self._scalars:
            return self._scalars[key]
        unique = _unique(name, self._tensors)
        if array.ndim == 0:
            self._scalars[key] = unique
        made = _packed(array, unique) if dtype == "int4" else numpy_helper.from_array(array, unique)
        self._initializers.append(made)
        return unique

    def finish(
        self,
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, tuple[str, Shape]],
        properties: Mapping[str, str],
    ) -> bytes:
        """The model as bytes; inputs and outputs are float32.

        Args:
            inputs: name -> shape.
            outputs: name -> (tensor, shape).
            properties: of the model, for people and tools.

        Raises:
            NybbleError: the model is larger than an ONNX file can be.
        """
        self._name_outputs({name: tensor for name, (tensor, _) in outputs.items()}, set(inputs))
        graph = helper.make_graph(
            self._nodes,
            "nybble",
            [_float(name, shape) for name, shape in inputs.items()],
            [_float(name, shape) for name, (_, shape) in outputs.items()],
            self._initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="nybble",
            producer_version=nybble.__version__,
        )
        helper.set_model_props(model, dict(properties))
        if model.ByteSize() > LARGEST:
            raise NybbleError(
                f"ONNX export: the model has {model.ByteSize()} bytes, and one file can hold "
                f"{LARGEST}. Quantize its weights to fewer bits."
            )
        return bytes(model.SerializeToString())

    def _name_outputs(self, outputs: Mapping[str, str], inputs: set[str]) -> None:
        """Gives outputs their names: by renaming, or by Identity where a tensor has one already."""
        renamed: dict[str, str] = {}
        for name, tensor in outputs.items():
            if tensor in inputs or tensor in renamed:
                copied = helper.make_node("Identity", [tensor], [name], name=f"{name}.identity")
                self._nodes.append(copied)
            else:
                renamed[tensor] = name
        for node in self._nodes:
            for field in (node.input, node.output):
                field[:] = [renamed.get(tensor, tensor) for tensor in field]


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}.{count}"
    taken.add(candidate)
    return candidate


def _packed(array: NDArray[Any], name: str) -> onnx.TensorProto:
    """4-bit integers, two in a byte, the first one in the low half."""
    raw = numerics.pack(array.reshape(-1), "int4").tobytes()
    return helper.make_tensor(name, TensorProto.INT4, array.shape, raw, raw=True)


def _float(name: str, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
