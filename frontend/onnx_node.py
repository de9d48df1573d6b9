"""One ONNX node with its operands resolved, and the folding of nodes without activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from tvm import relax

from nybble.frontend import extents
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_file import DEFAULT_DOMAINS
from nybble.frontend.stored import Stored

Array = NDArray[Any]
COMPOSED = 21
"""The opset of operators that converters make use of (`Node.op`)."""


@dataclass(frozen=True)
class Node:
    """A node as converters see it.

    Attributes:
        proto: the node itself.
        name: the node's name, or that of its first output.
        inputs: relax.Var, array, or None for an omitted one.
        attrs: the attributes present.
        opset: version of the default operator set.
        read: for each output, whether anything reads it.
        translate: gives the outputs of another node; `op` calls it.
    """

    proto: onnx.NodeProto
    name: str
    inputs: Sequence[Any]
    attrs: dict[str, Any]
    opset: int
    read: Sequence[bool]
    translate: Callable[[Node], list[Any]] = lambda node: fold(node)  # noqa: PLW0108  (defined below)

    def op(self, kind: str, *inputs: Any, **attrs: Any) -> Any:
        """The first output of another operator, for operators that are made of others.

        Args:
            kind: the operator; ``Mul.scale`` is a ``Mul`` whose results get the suffix ``scale``.
            inputs: relax.Var, array, or None for an omitted one; a number is a float32 one.
            attrs: the operator's attributes.
        """
        op, _, suffix = kind.partition(".")
        values = [np.float32(v) if isinstance(v, float) else v for v in inputs]
        arrays = [
            v if v is None or isinstance(v, relax.Var | Stored) else np.asarray(v) for v in values
        ]
        names = ["" if v is None else f"operand_{i}" for i, v in enumerate(arrays)]
        name = f"{self.name}.{suffix or op.lower()}"
        proto = helper.make_node(op, names, ["result"], name=name, **attrs)
        return self.translate(replace(
            self, proto=proto, name=name, inputs=arrays, attrs=attrs, opset=COMPOSED, read=[True]
        ))[0]  # fmt: skip

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attrs.get(name, default)

    def input(self, index: int) -> Any:
        """An operand, or None when it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int) -> Array | None:
        """A constant operand, or None when it is omitted."""
        value = self.input(index)
        if isinstance(value, relax.Var):
            raise Refused(f"its operand {index} is computed by the network; it must be a constant")
        return value

    def scalar(self, index: int) -> float | None:
        """A constant scalar operand, or None when it is omitted."""
        value = self.constant(index)
        if value is None:
            return None
        if value.size != 1:
            raise Refused(f"its operand {index} has shape {value.shape}; it must be a scalar")
        return float(value.reshape(()))

    def numbers(self, index: int, attr: str) -> list[int] | None:
        """Integers that old opsets give as an attribute and new ones as an operand."""
        if attr in self.attrs:
            return [int(v) for v in np.atleast_1d(self.attrs[attr])]
        value = self.constant(index)
        return None if value is None else [int(v) for v in value.reshape(-1)]


def fold(node: Node) -> list[Any]:
    """The outputs of a node that reads constants only.

    Raises:
        Refused: the op is not deterministic, or arithmetic that the symbolic batch does not allow.
    """
    op = node.proto.op_type
    if op == "Transpose" and isinstance(node.inputs[0], Stored):
        axes = node.attrs.get("perm") or range(node.inputs[0].ndim)[::-1]
        return [node.inputs[0].transposed(axes)]
    inputs = [np.asarray(v) if isinstance(v, Stored) else v for v in node.inputs]
    values = [value for value in inputs if value is not None]
    if any(value.dtype == object for value in values):
        return [_settled(_symbolic(node))]
    if op in SIDE_EFFECTS or node.proto.domain not in DEFAULT_DOMAINS:
        raise Refused("cannot be evaluated at import")
    from onnx import reference  # noqa: PLC0415  # costs half a second, few models need it

    graph = helper.make_graph(
        [node.proto], "fold",
        [helper.make_empty_tensor_value_info(name) for name in node.proto.input if name],
        [helper.make_empty_tensor_value_info(name) for name in node.proto.output if name],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.opset)])
    feeds = {
        name: value
        for name, value in zip(node.proto.input, inputs, strict=True)
        if value is not None
    }
    try:
        results = reference.ReferenceEvaluator(model).run(None, feeds)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise Refused(f"cannot be evaluated at import: {error}") from error
    if not all(isinstance(value, np.ndarray | np.generic) for value in results):
        raise Refused("gives something else than tensors")
    return [np.asarray(value) for value in results]


SIDE_EFFECTS = {
    "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout",
    "If", "Loop", "Scan", "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip


def shape_of(node: Node) -> Array:
    """``Shape`` of an activation: int64, or object entries where the batch is symbolic."""
    sizes = extents.shape(node.input(0))
    return _settled(_objects(sizes[node.attrs.get("start", 0) : node.attrs.get("end")]))


def size_of(node: Node) -> Array:
    """``Size`` of an activation."""
    return _settled(_objects([prod(extents.shape(node.input(0)))])).reshape(())


def unfolds(node: Node) -> bool:
    """Whether constants give a tensor whose shape only the running network knows."""
    is_open = any(isinstance(v, np.ndarray) and v.dtype == object for v in node.inputs)
    return is_open and node.proto.op_type in {"Range", "ConstantOfShape", "Expand"}


def constant_of(node: Node) -> Array:
    """The value of a ``Constant`` node that holds no tensor."""
    kinds = {
        "value_float": np.float32, "value_floats": np.float32,
        "value_int": np.int64, "value_ints": np.int64,
    }  # fmt: skip
    for kind, dtype in kinds.items():
        if kind in node.attrs:
            return np.asarray(node.attrs[kind], dtype)
    raise Refused(f"a constant given as {', '.join(node.attrs) or 'nothing'}")


def _objects(values: Sequence[Any]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _settled(array: Any) -> Array:
    """int64 when nothing symbolic is left."""
    if isinstance(array, np.ndarray) and array.dtype == bool:
        return array
    array = np.asarray(array, object)
    symbolic = any(isinstance(value, extents.Symbolic) for value in array.flat)
    return array if symbolic else array.astype(np.int64)


def _symbolic(node: Node) -> Any:
    """Shape arithmetic with the symbolic batch, as exporters write it in front of a reshape."""
    rule = _SYMBOLIC.get(node.proto.op_type)
    if rule is None:
        raise Refused("computes with the batch size; pass shapes={…} with a fixed batch")
    try:
        return rule(node)
    except TypeError as error:  # an operator that `extents.Symbolic` does not define
        raise Refused("computes with the batch size in an unsupported way") from error


def _sliced(node: Node) -> Any:
    x = node.inputs[0]
    starts, ends = node.numbers(1, "starts"), node.numbers(2, "ends")
    axes, steps = node.numbers(3, "axes"), node.numbers(4, "steps")
    index = [slice(None)] * x.ndim
    for place, (start, end) in enumerate(zip(starts or [], ends or [], strict=True)):
        step = steps[place] if steps else 1
        stop = None if step < 0 and end < -x.size else end
        index[axes[place] if axes else place] = slice(start, stop, step)
    return x[tuple(index)]


def _expanded(node: Node) -> Any:
    return np.expand_dims(node.inputs[0], tuple(node.numbers(1, "axes") or ()))


def _squeezed(node: Node) -> Any:
    axes = node.numbers(1, "axes")
    return np.squeeze(node.inputs[0], None if axes is None else tuple(axes))


def _gathered(node: Node) -> Any:
    axis = node.attrs.get("axis", 0)
    return np.take(node.inputs[0], node.inputs[1].astype(np.int64), axis=axis)


_SYMBOLIC: dict[str, Callable[[Node], Any]] = {
    "Identity": lambda node: node.inputs[0],
    "Cast": lambda node: node.inputs[0],
    "Gather": _gathered,
    "Slice": _sliced,
    "Concat": lambda node: np.concatenate(list(node.inputs), axis=node.attrs["axis"]),
    "Unsqueeze": _expanded,
    "Squeeze": _squeezed,
    "Reshape": lambda node: np.reshape(node.inputs[0], [int(v) for v in node.inputs[1]]),
    "Add": lambda node: node.inputs[0] + node.inputs[1],
    "Sub": lambda node: node.inputs[0] - node.inputs[1],
    "Mul": lambda node: node.inputs[0] * node.inputs[1],
    "Mod": lambda node: node.inputs[0] % node.inputs[1],
    "Equal": lambda node: np.asarray(node.inputs[0] == node.inputs[1], bool),
    "Where": lambda node: np.where(*node.inputs),
    "Div": lambda node: node.inputs[0] // node.inputs[1],
    "ReduceProd": lambda node: np.prod(
        node.inputs[0], keepdims=bool(node.attrs.get("keepdims", 1))
    ),
}
