"""Operators that ONNX or the model defines by other operators, and branches, as flat lists."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import defs

from nybble.frontend.extents import Refused

Renames = dict[str, str]


def reads(proto: onnx.NodeProto) -> set[str]:
    """The tensors that a node reads, those that its branches take from outside included."""
    found = {name for name in proto.input if name}
    for attribute in proto.attribute:
        if attribute.HasField("g"):
            found |= _free(attribute.g)
    return found


def _free(graph: onnx.GraphProto) -> set[str]:
    known = {t.name for t in graph.initializer} | {i.name for i in graph.input}
    found: set[str] = set()
    for node in graph.node:
        found |= reads(node) - known
        known |= set(node.output)
    return found | ({o.name for o in graph.output} - known)


def definition(
    proto: onnx.NodeProto, opset: int, types: Sequence[onnx.TypeProto | None]
) -> onnx.FunctionProto | None:
    """How ONNX itself defines an operator by others, or None.

    Args:
        proto: the node, of the default domain.
        opset: the model's.
        types: of the operands; None for an omitted or unknown one.
    """
    try:
        schema: Any = defs.get_schema(proto.op_type, opset, "")  # its stub lacks the versions
    except defs.SchemaError:
        return None
    for versions, make in (
        (schema.function_opset_versions, schema.get_function_with_opset_version),
        (
            schema.context_dependent_function_opset_versions,
            lambda v: schema.get_context_dependent_function_with_opset_version(
                v,
                proto.SerializeToString(),
                [(t or onnx.TypeProto()).SerializeToString() for t in types],
            ),
        ),
    ):
        fitting = [version for version in versions if version <= opset]
        data = make(max(fitting)) if fitting else b""
        if data:
            function = onnx.FunctionProto()
            function.ParseFromString(data)
            return _with_defaults(function, schema)
    return None


def _with_defaults(function: onnx.FunctionProto, schema: Any) -> onnx.FunctionProto:
    """The function with the schema's default values of its attributes."""
    given = {a.name for a in function.attribute_proto}
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        if name not in given and default.type != onnx.AttributeProto.UNDEFINED:
            function.attribute_proto.append(default)
    return function


def called(function: onnx.FunctionProto, proto: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """The nodes of a function in place of its call."""
    renames = dict.fromkeys(function.input, "")
    renames |= dict(zip(function.input, proto.input, strict=False))
    renames |= {f: o for f, o in zip(function.output, proto.output, strict=False) if o}
    attributes = {a.name: a for a in function.attribute_proto}
    attributes |= {a.name: a for a in proto.attribute}
    return _renamed(function.node, renames, name, attributes)


def branch(
    graph: onnx.GraphProto, outputs: Sequence[str], name: str
) -> tuple[list[onnx.NodeProto], dict[str, onnx.TensorProto]]:
    """A branch's nodes, the last of which give ``outputs``, and its weights by their new names."""
    weights = {f"{name}/{tensor.name}": tensor for tensor in graph.initializer}
    renames = {tensor.name: f"{name}/{tensor.name}" for tensor in graph.initializer}
    nodes = _renamed(graph.node, renames, name, {})
    for inner, outer in zip(graph.output, outputs, strict=False):
        value = renames.get(inner.name, inner.name)
        nodes.append(onnx.helper.make_node("Identity", [value], [outer], name=f"{name}.{outer}"))
    return nodes, weights


def _renamed(
    nodes: Sequence[onnx.NodeProto], renames: Renames, prefix: str,
    attributes: Mapping[str, onnx.AttributeProto],
) -> list[onnx.NodeProto]:  # fmt: skip
    """Copies of nodes with tensors renamed and attribute references filled in.

    ``renames`` gains the new names of what the nodes compute.
    """
    copies = []
    for index, node in enumerate(nodes):
        new = copy.deepcopy(node)
        new.name = f"{prefix}.{node.name or f'{node.op_type}_{index}'}"
        for place, name in enumerate(node.input):
            new.input[place] = renames.get(name, name)
        for place, name in enumerate(node.output):
            new.output[place] = renames.setdefault(name, f"{prefix}/{name}") if name else ""
        _fill(new, attributes)
        for attribute in new.attribute:
            if attribute.HasField("g"):
                _rename_free(attribute.g, renames)
        copies.append(new)
    return copies


def _fill(node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto]) -> None:
    """Replaces references to the function's attributes by their values; absent ones vanish."""
    filled = []
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            filled.append(attribute)
        elif attribute.ref_attr_name in attributes:
            value = copy.deepcopy(attributes[attribute.ref_attr_name])
            value.name = attribute.name
            filled.append(value)
    del node.attribute[:]
    node.attribute.extend(filled)


def _rename_free(graph: onnx.GraphProto, renames: Renames) -> None:
    own = {t.name for t in graph.initializer} | {o for n in graph.node for o in n.output}
    outer = {old: new for old, new in renames.items() if old not in own}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = outer.get(name, name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_free(attribute.g, outer)


def refused_loop(op: str) -> Refused:
    """Why loops and scans are not imported."""
    return Refused(
        f"{op} runs a graph as often as the data asks for; a compiled network has a fixed order. "
        "Export the network with the loop unrolled, or run it outside"
    )
