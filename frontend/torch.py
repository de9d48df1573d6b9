"""torch -> float Relax through torch.export, keeping module paths as names."""

from __future__ import annotations

import contextlib
import copy
import itertools
import operator
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import tvm
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.fx.node import map_arg
from tvm import relax

from nybble.errors import ImportModelError, UnsupportedNode, UnsupportedOpError
from nybble.frontend import torch_quantized, torch_sizes
from nybble.frontend.build import Builder, not_finite
from nybble.frontend.extents import Refused
from nybble.frontend.open_sizes import Shapes
from nybble.frontend.torch_ops import CONVERTERS, DTYPES, FRESH, IN_PLACE
from nybble.ir import graph


def from_torch(
    net: torch.nn.Module | ExportedProgram,
    example_inputs: Any,
    dynamic_batch: bool = True,
    shapes: Shapes | None = None,
) -> tvm.IRModule:
    """Imports a network, float or quantized by torch (PT2E).

    Args:
        net: a module (also an ``fx.GraphModule``), imported in eval mode and left as it is, or an
            exported program, taken as it was exported.
        example_inputs: one tensor or a tuple of them; ignored for an exported program.
        dynamic_batch: whether axis 0 of the inputs stays symbolic; ignored for an exported program.
        shapes: by the name of an argument of ``forward``, its extents: None is the batch, a name
            an extent that stays open (the same name, the same size). Not for an exported program,
            which says by itself what is open.

    Returns:
        A module of stage ``float``, or ``quantized``: NCHW / OIHW, inputs called as the arguments
        of ``forward``, outputs ``output`` (or ``output_0``, ``output_1`` …).

    Raises:
        ImportModelError: torch cannot export the network, its floats are not float32, it has NaN
            weights, no inputs, buffers that it changes, or an open size that cannot vary.
        UnsupportedOpError: operators without a translation; it lists every one of them.
    """
    if isinstance(net, ExportedProgram):
        if shapes:
            raise ImportModelError("shapes: an ExportedProgram keeps the sizes of its export.")
        return _Importer(_decomposed(net), None).run()
    examples = _examples(example_inputs)
    asked = torch_sizes.asked(net, examples, dynamic_batch, shapes or {})
    return _Importer(_decomposed(_export(net, asked)), asked.open_axes).run()


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """Functional ATen; operators that we translate whole stay whole.

    Torch's decomposition costs more than everything else here, so it runs only when needed.
    """
    calls = [
        node for node in program.graph.nodes
        if node.op == "call_function" and (node.users or _changes_an_operand(node))
    ]  # fmt: skip
    if all(_is_known(node.target) or _is_harmless(node) for node in calls):
        return program
    rules = torch.export.default_decompositions().items()
    with _without_own_warnings():
        return program.run_decompositions({op: r for op, r in rules if op not in CONVERTERS})


def _is_known(target: Any) -> bool:
    return target in CONVERTERS or torch_quantized.converter(target) is not None


def _changes_an_operand(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _is_harmless(node: Node) -> bool:
    """Whether an in-place operator changes a fresh tensor that nothing else reads."""
    changed = node.args[0] if node.target in IN_PLACE else None
    return (
        isinstance(changed, Node)
        and len(changed.users) == 1
        and (changed.target in FRESH or _is_harmless(changed))
    )


@contextlib.contextmanager
def _without_own_warnings() -> Iterator[None]:
    """Torch's exporter uses what torch itself deprecates; a user can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)
        yield


def _examples(example_inputs: Any) -> Sequence[torch.Tensor]:
    examples = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    tensors = isinstance(examples, Sequence) and all(isinstance(e, torch.Tensor) for e in examples)
    if not tensors or not examples:
        raise ImportModelError(
            "example_inputs: pass one tensor or a tuple of tensors, as forward takes them."
        )
    return cast("Sequence[torch.Tensor]", examples)


def _export(net: torch.nn.Module, asked: torch_sizes.Asked) -> ExportedProgram:
    """Exports an eval copy that shares its weights with the user's module."""
    weights = itertools.chain(net.parameters(), net.buffers())
    twin = copy.deepcopy(net, {id(w): w for w in weights})
    with contextlib.suppress(NotImplementedError):  # a graph of torch.export has one mode only
        twin.eval()
    try:
        with torch.no_grad(), _without_own_warnings():
            return torch.export.export(twin, asked.examples, dynamic_shapes=asked.dynamic_shapes())
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ImportModelError(
            f"{type(net).__name__}: torch.export cannot export it: {error}"
        ) from error


class _Importer:
    """One walk over an exported graph."""

    def __init__(self, program: ExportedProgram, open_axes: Sequence[torch_sizes.Axes] | None):
        self.program, self.graph = program, program.graph
        self.values: dict[Node, Any] = {}
        self.unsupported: list[UnsupportedNode] = []
        self.sizes = torch_sizes.named(program, open_axes)
        self.owners: dict[Node, str] = {}  # module path that owns a parameter
        params = self._bind_inputs()
        self.build = Builder(params)

    def run(self) -> tvm.IRModule:
        """The module."""
        needed = self._needed()
        for node in self.graph.nodes:
            if node.op == "call_function" and node in needed:
                self._convert(node)
        if self.unsupported:
            raise UnsupportedOpError(self.unsupported)
        results = self._results()
        names = [f"output_{i}" for i in range(len(results))] if len(results) > 1 else ["output"]
        return self.build.finish(results, names)

    # ------------------------------------------------------------ inputs and outputs

    def _bind_inputs(self) -> list[relax.Var]:
        state = {**self.program.state_dict, **self.program.constants}
        params: list[relax.Var] = []
        specs = self.program.graph_signature.input_specs
        nodes = [node for node in self.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(nodes, specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                if isinstance(node.meta.get("val"), torch.Tensor):
                    params.append(self._input(node))
                    self.values[node] = params[-1]
                continue
            tensor = state[spec.target]
            self.values[node] = tensor
            self.owners[node] = str(spec.target).rpartition(".")[0]
            if node.users:
                _check_weight(tensor, str(spec.target))
        if not params:
            raise ImportModelError("Model: it has no inputs, so there is nothing to run.")
        return params

    def _input(self, node: Node) -> relax.Var:
        fake = node.meta["val"]
        if fake.dtype not in DTYPES:
            raise ImportModelError(
                f"Input '{node.name}': its dtype is {fake.dtype}; float32, integers and bool are "
                "supported. Call net.float() and pass float32 examples."
            )
        shape = self.sizes.extents(fake)
        return relax.Var(node.name, relax.TensorType(shape, DTYPES[fake.dtype]))

    def _results(self) -> list[relax.Var]:
        results = []
        output = next(node for node in self.graph.nodes if node.op == "output")
        specs = self.program.graph_signature.output_specs
        for node, spec in zip(output.args[0], specs, strict=True):
            if spec.kind == OutputKind.USER_INPUT_MUTATION:
                raise ImportModelError(
                    f"Model: it writes into its input '{spec.target}'. Write into a copy and return"
                    " that, as in cache = cache.index_copy(2, places, keys)."
                )
            if spec.kind != OutputKind.USER_OUTPUT:
                raise ImportModelError(
                    f"Model: it changes '{spec.target}' when it runs. Export it in eval mode."
                )
            value = self.values.get(node)
            if not isinstance(value, relax.Var):
                raise ImportModelError(f"Output '{node}': it is a constant; no input reaches it.")
            results.append(value)
        return results

    def _needed(self) -> set[Node]:
        """Nodes on a path to an output (the exporter's assertions lead nowhere)."""
        needed: set[Node] = set()
        for node in reversed(self.graph.nodes):
            if node.op == "output" or node in needed:
                needed.update(node.all_input_nodes)
        return needed

    # ------------------------------------------------------------ nodes

    def _convert(self, node: Node) -> None:
        """Translates one node, or notes why it has no translation."""
        if any(operand not in self.values for operand in node.all_input_nodes):
            if IN_PLACE.get(node.target, node.target) not in CONVERTERS:
                self._refuse(node, "there is no translation for this operator")
            return
        try:
            self.values[node] = self._value(node)
        except Refused as refused:
            self._refuse(node, str(refused))

    def _value(self, node: Node) -> Any:
        operands = [self.values[operand] for operand in node.all_input_nodes]
        known = all(isinstance(value, torch.Tensor) for value in operands)
        quantized = torch_quantized.converter(node.target)
        if quantized is not None:
            args, kwargs = map_arg((node.args, node.kwargs), self._argument)
            return quantized(self.build, self._name(node), *args, **kwargs)
        if known and isinstance(node.target, OpOverload) and not _is_random(node.target):
            with torch.no_grad():  # reads weights at most: torch itself evaluates it
                args, kwargs = map_arg((node.args, node.kwargs), self.values.get)
                return node.target(*args, **kwargs)
        target = IN_PLACE.get(node.target, node.target)
        if target not in CONVERTERS:
            raise Refused("there is no translation for this operator")
        args, kwargs = map_arg((node.args, node.kwargs), self._argument)
        value = CONVERTERS[target](self.build, self._name(node), *args, **kwargs)
        fake = node.meta.get("val")
        if isinstance(value, relax.Var) and isinstance(fake, torch.Tensor):
            _check_dtype(graph.dtype_of(value), fake.dtype)
        return value

    def _argument(self, node: Node) -> Any:
        value = self.values[node]
        return value.detach().numpy() if isinstance(value, torch.Tensor) else value

    def _refuse(self, node: Node, reason: str) -> None:
        self.unsupported.append(UnsupportedNode(str(node.target), self._name(node), reason))
        fake = node.meta.get("val")
        if isinstance(fake, torch.Tensor) and fake.dtype == torch.float32:
            try:
                shape = self.sizes.extents(fake)
            except Refused:
                return
            self.values[node] = relax.Var(node.name, relax.TensorType(shape, "float32"))

    def _name(self, node: Node) -> str:
        """The module's path for a layer, path and operator for what a container computes."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]).partition("@")[0] if stack else ""
        owned = any(self.owners.get(operand) == path for operand in node.all_input_nodes)
        if path and (owned or str(stack[-1][1]).startswith("torch.nn.modules.")):
            return path
        if node.target is operator.getitem:
            return node.name
        target = node.target
        op = (
            target.name().partition("::")[2].partition(".")[0].rstrip("_")
            if isinstance(target, OpOverload)
            else node.name
        )
        return f"{path}.{op}" if path else op


def _check_dtype(given: str, wanted: torch.dtype) -> None:
    """Refuses what torch promotes to another type than the converter does."""
    if DTYPES.get(wanted) not in (given, None):
        raise Refused(f"gives {given} where torch gives {DTYPES[wanted]}: cast its operands")


def _is_random(op: OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in op.tags


def _check_weight(tensor: Any, name: str) -> None:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        return
    if tensor.dtype != torch.float32:
        raise ImportModelError(
            f"Weight '{name}': its dtype is {tensor.dtype}; only float32 is supported. "
            "Call net.float() first."
        )
    if not torch.isfinite(tensor).all():
        raise ImportModelError(not_finite(tensor.detach().cpu().numpy(), f"weight '{name}'"))
