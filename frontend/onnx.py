"""ONNX -> float Relax, keeping node names and naming every node that cannot be translated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import tvm
from onnx import helper
from tvm import relax

from nybble.errors import ImportModelError, UnsupportedNode, UnsupportedOpError
from nybble.frontend import onnx_file, onnx_node
from nybble.frontend.build import Builder
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_node import Node
from nybble.frontend.onnx_ops import CONVERTERS

NEWEST_OPSET = 23
DEFAULT_DOMAINS = ("", "ai.onnx")


def from_onnx(
    source: str | Path | bytes | onnx.ModelProto, shapes: onnx_file.Shapes | None = None
) -> tvm.IRModule:
    """Imports a float CNN.

    Args:
        source: a path (external data is read next to it), the file's bytes, or the parsed model,
            which is not changed.
        shapes: extents by input name where the model leaves them open, None for a batch that stays
            symbolic. Without it a dynamic axis 0 stays symbolic.

    Returns:
        A module of stage ``float``: NCHW / OIHW, float32 inputs of the model's names and shapes.

    Raises:
        ImportModelError: no readable ONNX model, or one without a meaning (NaN weights, no inputs).
        UnsupportedOpError: operators without a translation; it lists every one of them.
    """
    parsed = onnx_file.read(source)
    return _Importer(parsed, onnx_file.inputs(parsed, shapes)).run()


class _Importer:
    """One walk over a graph's nodes."""

    def __init__(self, source: onnx_file.Source, params: list[relax.Var]):
        self.source, self.graph = source, source.model.graph
        self.build = Builder(params)
        self.values: dict[str, Any] = {str(p.name): p for p in params}
        self.unsupported: list[UnsupportedNode] = []
        self.unknown: set[str] = set()  # tensors that unsupported nodes left undefined
        self.inferred: dict[str, Any] | None = None

    def run(self) -> tvm.IRModule:
        """The module."""
        needed = self._needed()
        for proto in self.graph.node:
            if any(name in needed for name in proto.output):
                self._convert(proto, needed)
        if self.unsupported:
            raise UnsupportedOpError(self.unsupported)
        names = [output.name for output in self.graph.output]
        return self.build.emitter.finish([self._output(n) for n in names], names, "float")

    def _output(self, name: str) -> relax.Var:
        value = self._value(name, f"output '{name}'")
        if not isinstance(value, relax.Var):
            raise ImportModelError(f"Output '{name}': it is a constant; no input reaches it.")
        return value

    def _needed(self) -> set[str]:
        """Tensors on a path to an output; what leads nowhere needs no translation."""
        needed = {output.name for output in self.graph.output}
        for proto in reversed(self.graph.node):
            if any(name in needed for name in proto.output):
                needed.update(name for name in proto.input if name)
        return needed

    def _convert(self, proto: onnx.NodeProto, needed: set[str]) -> None:
        """Translates one node, or notes why it has no translation."""
        name = proto.name or next(output for output in proto.output if output)
        try:
            self._check_scope(proto)
            if any(operand in self.unknown for operand in proto.input):
                self.unknown.update(proto.output)
                return
            node = self._node(proto, name, needed)
            for output, value in zip(proto.output, self._results(node), strict=False):
                self.values[output] = value
        except Refused as refused:
            label = f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type
            self.unsupported.append(UnsupportedNode(label, name, str(refused)))
            self._placeholders(proto)

    def _results(self, node: Node) -> list[Any]:
        op = node.proto.op_type
        if op == "Constant":
            if "value" in node.attrs:
                return [onnx_file.array(node.attrs["value"], self.source, node.name)]
            return [onnx_node.constant_of(node)]
        if op == "Shape":
            return [onnx_node.shape_of(node)]
        if op == "Identity":
            return [node.input(0)]
        operands = [value for value in node.inputs if value is not None]
        if operands and not any(isinstance(value, relax.Var) for value in operands):
            return onnx_node.fold(node)
        if any(node.read[1:]):
            raise Refused("only its first output is supported, but another one is read")
        if op not in CONVERTERS:
            raise Refused("works on constants only")
        return [CONVERTERS[op](node, self.build)]

    def _check_scope(self, proto: onnx.NodeProto) -> None:
        """Refuses an operator that has no translation whatever its attributes are."""
        if proto.domain not in DEFAULT_DOMAINS:
            raise Refused(f"operators of the domain '{proto.domain}' are not supported")
        op = proto.op_type
        if op not in CONVERTERS and (op not in FOLDED or self._reads_activation(proto)):
            raise Refused("there is no translation for this operator")
        if self.source.opset > NEWEST_OPSET:
            since = onnx.defs.get_schema(op, self.source.opset, "").since_version
            if since > NEWEST_OPSET:
                raise Refused(f"changed in opset {since}; export with opset {NEWEST_OPSET}")

    def _reads_activation(self, proto: onnx.NodeProto) -> bool:
        reads = any(
            name in self.unknown or isinstance(self.values.get(name), relax.Var)
            for name in proto.input
        )
        return reads and proto.op_type != "Shape"

    def _node(self, proto: onnx.NodeProto, name: str, needed: set[str]) -> Node:
        context = onnx.checker.C.CheckerContext()
        context.ir_version = self.source.model.ir_version
        context.opset_imports = {"": self.source.opset}
        try:
            onnx.checker.check_node(proto, context)
        except onnx.checker.ValidationError as error:
            raise ImportModelError(f"{proto.op_type} '{name}': invalid ONNX: {error}") from error
        attrs = {a.name: _plain(helper.get_attribute_value(a)) for a in proto.attribute}
        inputs = [self._value(i, f"{proto.op_type} '{name}'") if i else None for i in proto.input]
        read = [output in needed for output in proto.output]
        return Node(proto, name, inputs, attrs, self.source.opset, read)

    def _value(self, name: str, reader: str) -> Any:
        """A tensor by name; initializers are read when first needed."""
        if name not in self.values:
            if name not in self.source.tensors:
                raise ImportModelError(
                    f"{reader}: it reads '{name}', which no earlier node, input or weight defines."
                )
            self.values[name] = onnx_file.array(self.source.tensors[name], self.source, name)
        return self.values[name]

    def _placeholders(self, proto: onnx.NodeProto) -> None:
        """Stand-ins for the outputs of an unsupported node, so that the walk finds the others."""
        if self.inferred is None:
            self.inferred = onnx_file.inferred_types(self.source.model, self.build.emitter.params)
        for output in proto.output:
            if output in self.inferred:
                self.values[output] = relax.Var(output, self.inferred[output])
            else:
                self.unknown.add(output)


FOLDED = {
    "Abs", "And", "Ceil", "Constant", "ConstantOfShape", "Equal", "Expand", "Floor", "Gather",
    "Greater", "Less", "Mod", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceProd",
    "ReduceSum", "Shape", "Size", "Slice", "Split", "Sqrt", "Tile", "Where",
}  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value
