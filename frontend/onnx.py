"""ONNX -> float Relax, keeping node names and naming every node that cannot be translated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import helper
from tvm import relax

from nybble.errors import ImportModelError, UnsupportedNode, UnsupportedOpError
from nybble.frontend import extents, onnx_bodies, onnx_dynamic, onnx_file, onnx_node, onnx_quantized
from nybble.frontend.build import Builder, dtype_of
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_file import DEFAULT_DOMAINS
from nybble.frontend.onnx_node import Node
from nybble.frontend.onnx_ops import CONVERTERS
from nybble.frontend.onnx_quantized import QUANTIZED
from nybble.frontend.open_sizes import Shapes
from nybble.frontend.quantized import held_in
from nybble.ir import graph

NEWEST_OPSET = 28
MISTAKES = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What converters run into where a node's operands or attributes break ONNX's rules."""
RECIPE = "nybble.recipe"  # as `nybble.export` writes it


def from_onnx(
    source: str | Path | bytes | onnx.ModelProto, shapes: Shapes | None = None
) -> tvm.IRModule:
    """Imports a network, float or quantized.

    Args:
        source: a path (external data is read next to it), the file's bytes, or the parsed model,
            which is not changed.
        shapes: extents by input name where the model leaves them open, None for a batch that stays
            symbolic. Without it a dynamic axis 0 stays symbolic.

    Returns:
        A module of stage ``float``, or ``quantized`` where the file holds quantized operators:
        NCHW / OIHW, inputs of the model's names and shapes.

    Raises:
        ImportModelError: no readable ONNX model, or one without a meaning (NaN weights, no inputs).
        UnsupportedOpError: operators without a translation; it lists every one of them.
    """
    given = onnx_file.read(source)
    parsed = onnx_dynamic.as_float(given)
    module = _Importer(parsed, onnx_file.inputs(parsed, shapes)).run()
    if not onnx_dynamic.is_dynamic(given):
        return module
    return tvm.IRModule({"main": module["main"].with_attr(graph.AT_RUN_TIME, True)})


class _Importer:
    """One walk over a graph's nodes."""

    def __init__(self, source: onnx_file.Source, params: list[relax.Var]):
        self.source, self.graph = source, source.model.graph
        self.build = Builder(params)
        self.values: dict[str, Any] = {str(p.name): p for p in params}
        self.unsupported: list[UnsupportedNode] = []
        self.unknown: set[str] = set()  # tensors that unsupported nodes left undefined
        self.inferred: dict[str, Any] | None = None
        self.mistake: Exception | None = None  # the first error that no converter foresaw
        self.functions = {(f.domain, f.name): f for f in self.source.model.functions}
        for param in params:
            if graph.dtype_of(param) in WIDER:
                self.values[str(param.name)] = self.build.cast(
                    param, "float32", f"{param.name}.single"
                )

    def run(self) -> tvm.IRModule:
        """The module."""
        needed = self._needed()
        for proto in self.graph.node:
            if any(name in needed for name in proto.output):
                self._convert(proto, needed)
        if self.unsupported:
            raise UnsupportedOpError(self.unsupported) from self.mistake
        names = [output.name for output in self.graph.output]
        results = [self._output(output) for output in self.graph.output]
        return self.build.finish(results, names, self.source.property(RECIPE))

    def _output(self, info: onnx.ValueInfoProto) -> relax.Var:
        value = self._value(info.name, f"output '{info.name}'")
        if not isinstance(value, relax.Var):
            raise ImportModelError(f"Output '{info.name}': it is a constant; no input reaches it.")
        code = info.type.tensor_type.elem_type
        declared = (
            onnx_file.INPUTS.get(code, dtype_of(value)) if code in (0, *onnx_file.INPUTS) else ""
        )
        if declared not in ("", held_in(dtype_of(value)), *WIDER):
            declared = ""
        if not declared:
            kind = onnx_file.type_name(code)
            raise ImportModelError(
                f"Output '{info.name}': the model declares {kind}, and {dtype_of(value)} is what"
                " can be computed. Cast it, or leave the cast to the caller."
            )
        return (
            self.build.cast(value, declared, f"{info.name}.{declared}")
            if declared in WIDER
            else value
        )

    def _needed(self) -> set[str]:
        """Tensors on a path to an output; what leads nowhere needs no translation."""
        needed = {output.name for output in self.graph.output}
        for proto in reversed(self.graph.node):
            if any(name in needed for name in proto.output):
                needed.update(onnx_bodies.reads(proto))
        return needed

    def _convert(self, proto: onnx.NodeProto, needed: set[str]) -> None:
        """Translates one node, or notes why it has no translation."""
        name = proto.name or next(output for output in proto.output if output)
        try:
            if any(operand in self.unknown for operand in onnx_bodies.reads(proto)):
                self._check_scope(proto, self.source.opset)
                self.unknown.update(proto.output)
                return
            self._translate(proto, name, needed, self.source.opset)
        except Refused as refused:
            self._refuse(proto, name, str(refused))
        except MISTAKES as error:
            self.mistake = self.mistake or error
            reason = " ".join(str(error).split())[:200] or "it says no more"
            self._refuse(proto, name, f"cannot be translated ({type(error).__name__}: {reason})")

    def _refuse(self, proto: onnx.NodeProto, name: str, reason: str) -> None:
        label = f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type
        self.unsupported.append(UnsupportedNode(label, name, reason))
        self._placeholders(proto)

    def _translate(self, proto: onnx.NodeProto, name: str, needed: set[str], opset: int) -> None:
        """Gives the outputs of one node their values.

        Raises:
            Refused: it has no translation.
        """
        if proto.op_type == "If" and proto.domain in DEFAULT_DOMAINS:
            self._choose(proto, name, needed, opset)
            return
        body = self._body(proto, opset)
        if body is not None:
            versions = [o.version for o in body.opset_import if o.domain in DEFAULT_DOMAINS]
            inside = max(versions, default=opset)
            self._translate_all(onnx_bodies.called(body, proto, name), needed, inside)
            return
        self._check_scope(proto, opset)
        node = self._node(proto, name, needed, opset)
        results = self._results(node)
        if any(node.read[len(results) :]):
            raise Refused(f"only its first {len(results)} output(s) are supported")
        for output, value in zip(proto.output, results, strict=False):
            self.values[output] = value

    def _translate_all(self, nodes: list[onnx.NodeProto], needed: set[str], opset: int) -> None:
        inside = set(needed)
        for node in reversed(nodes):
            if any(name in inside for name in node.output):
                inside |= onnx_bodies.reads(node)
        for node in nodes:
            if any(name in inside for name in node.output):
                try:
                    self._translate(node, node.name, inside, opset)
                except Refused as refused:
                    raise Refused(f"{node.op_type} inside of it {refused}") from refused

    def _body(self, proto: onnx.NodeProto, opset: int) -> onnx.FunctionProto | None:
        """The definition of an operator that has no translation of its own."""
        local = self.functions.get((proto.domain, proto.op_type))
        if local is not None or _key(proto) in CONVERTERS or _key(proto) in QUANTIZED:
            return local
        if proto.domain not in DEFAULT_DOMAINS or not self._reads_activation(proto):
            return None
        types = [self._type(name) for name in proto.input]
        return onnx_bodies.definition(proto, opset, types)

    def _type(self, name: str) -> onnx.TypeProto | None:
        if not name:
            return None
        value = self._value(name, "a function")
        dtype = graph.dtype_of(value) if isinstance(value, relax.Var) else str(value.dtype)
        code = onnx.TensorProto.INT64
        if dtype != "object":
            code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_type_proto(code, [None] * extents.rank(value))

    def _choose(self, proto: onnx.NodeProto, name: str, needed: set[str], opset: int) -> None:
        """``If``: the branch that a constant condition takes, or both and a choice."""
        branches = {a.name: a.g for a in proto.attribute}
        condition = self._value(proto.input[0], f"If '{name}'")
        if not isinstance(condition, relax.Var):
            taken = "then_branch" if np.asarray(condition).any() else "else_branch"
            self._take(branches[taken], list(proto.output), f"{name}.{taken}", needed, opset)
            return
        values = []
        for kind in ("then_branch", "else_branch"):
            outputs = [f"{name}.{kind}/{output}" for output in proto.output]
            inside = needed | set(outputs)
            self._take(branches[kind], outputs, f"{name}.{kind}", inside, opset)
            values.append([self._value(output, f"If '{name}'") for output in outputs])
        for output, yes, no in zip(proto.output, *values, strict=True):
            if extents.shape(yes) != extents.shape(no):
                raise Refused("its branches give different shapes, and the network chooses")
            self.values[output] = self.build.where(condition, yes, no, f"{name}.{output}")

    def _take(
        self, body: onnx.GraphProto, outputs: list[str], name: str, needed: set[str], opset: int
    ) -> None:
        nodes, weights = onnx_bodies.branch(body, outputs, name)
        for tensor, value in weights.items():
            self.values[tensor] = onnx_file.array(value, self.source, tensor)
        self._translate_all(nodes, needed, opset)

    def _results(self, node: Node) -> list[Any]:  # noqa: PLR0911  (one return for each kind)
        op = node.proto.op_type
        if op == "Constant":
            if "value" in node.attrs:
                return [onnx_file.array(node.attrs["value"], self.source, node.name)]
            return [onnx_node.constant_of(node)]
        if op in ("Shape", "Size"):
            return [onnx_node.shape_of(node) if op == "Shape" else onnx_node.size_of(node)]
        if op == "Identity":
            return [node.input(0)]
        if _key(node.proto) in QUANTIZED:
            return [QUANTIZED[_key(node.proto)](node, self.build)]
        operands = [value for value in node.inputs if value is not None]
        computed = any(isinstance(value, relax.Var) for value in operands)
        if operands and not computed and not onnx_node.unfolds(node):
            return onnx_node.fold(node)
        if onnx_quantized.moves(node, self.build):
            return onnx_quantized.on_integers(node, self.build, self._results)
        if _key(node.proto) not in CONVERTERS:
            raise Refused("works on constants only")
        result = CONVERTERS[_key(node.proto)](node, self.build)
        return list(result) if isinstance(result, tuple) else [result]

    def _check_scope(self, proto: onnx.NodeProto, opset: int) -> None:
        """Refuses an operator that has no translation whatever its attributes are."""
        op = proto.op_type
        if _key(proto) in QUANTIZED or _key(proto) in CONVERTERS or op in ("Shape", "Size"):
            pass
        elif proto.domain not in DEFAULT_DOMAINS:
            raise Refused(f"there is no translation for this operator of '{proto.domain}'")
        elif op in ("Loop", "Scan"):
            raise onnx_bodies.refused_loop(op)
        elif self._reads_activation(proto):
            raise Refused("there is no translation for this operator")
        if self.source.opset > NEWEST_OPSET and proto.domain in DEFAULT_DOMAINS:
            since = onnx.defs.get_schema(op, opset, "").since_version
            if since > NEWEST_OPSET:
                raise Refused(f"changed in opset {since}; export with opset {NEWEST_OPSET}")

    def _reads_activation(self, proto: onnx.NodeProto) -> bool:
        return any(
            name in self.unknown or isinstance(self.values.get(name), relax.Var)
            for name in proto.input
        )

    def _node(self, proto: onnx.NodeProto, name: str, needed: set[str], opset: int) -> Node:
        context = onnx.checker.C.CheckerContext()
        context.ir_version = self.source.model.ir_version
        others = {o.domain: o.version for o in self.source.model.opset_import}
        context.opset_imports = {**others, "": opset}
        try:
            if not _is_foreign(proto):
                onnx.checker.check_node(proto, context)
        except onnx.checker.ValidationError as error:
            raise ImportModelError(f"{proto.op_type} '{name}': invalid ONNX: {error}") from error
        attrs = {a.name: _plain(helper.get_attribute_value(a)) for a in proto.attribute}
        inputs = [self._value(i, f"{proto.op_type} '{name}'") if i else None for i in proto.input]
        read = [output in needed for output in proto.output]
        return Node(proto, name, inputs, attrs, opset, read, self._results)

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


WIDER = {"float16", "float64"}
"""Inputs and outputs of these types are cast at the border; inside, floats are float32."""


def _key(proto: onnx.NodeProto) -> str:
    """An operator's name, with its domain where that is not ONNX's own."""
    own = proto.domain in DEFAULT_DOMAINS
    return str(proto.op_type) if own else f"{proto.domain}.{proto.op_type}"


def _is_foreign(proto: onnx.NodeProto) -> bool:
    """Whether ONNX Runtime keeps an operator of its own under ONNX's name, unknown to ONNX."""
    return proto.op_type in CONVERTERS and not onnx.defs.has(proto.op_type)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value
