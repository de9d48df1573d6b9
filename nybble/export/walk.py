"""What the rules of the export share: ONNX tensors by Relax variable, in both orders of axes.

Relax images are NHWC and ONNX wants NCHW. A tensor is kept in the order in which it was made, and
transposed where a reader needs the other one; the permutations at the network's ends then cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.errors import NybbleError
from nybble.export.builder import Graph
from nybble.ir import graph, numerics, specs
from nybble.passes.biases import bias_name
from nybble.passes.channels_last import FIRST, LAST
from nybble.passes.fold_stored import values_of
from nybble.passes.view import View, per_channel

Order = Literal["own", "nchw"]  # as in the module, or an NHWC image in NCHW
Form = tuple[Order, str]
SUFFIX = {"own": "nhwc", "nchw": "nchw"}
NARROW = 4  # bits, up to which weights are stored as int4


@dataclass(frozen=True)
class Step:
    """One binding to be translated.

    Attributes:
        name: of the binding, and of the ONNX node.
        call: its expression.
    """

    name: str
    call: Any

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes as plain Python."""
        return graph.attributes(self.call)

    @property
    def operands(self) -> list[Any]:
        """Tensors that are read, in order."""
        return graph.operands(self.call)

    def refuse(self, reason: str) -> NoReturn:
        """Raises the error that names this binding."""
        raise NybbleError(
            f"ONNX export: '{self.name}' ({graph.op_name(self.call)}) {reason}. Compile the "
            "network with nybble.compile instead, or take this layer out of the model."
        )


class Walk:
    """The state of one export.

    Attributes:
        view: the module by names.
        graph: the ONNX graph so far.
        biases: convolution or linear layer -> the binding that adds its bias.
        kept: "name: …" of every layer that stays float.
    """

    def __init__(self, mod: tvm.IRModule):
        self.view = View(mod)
        self.graph = Graph([*self.view.inputs, *graph.output_names(mod)])
        self.forms: dict[Any, dict[Order, str]] = {
            self.view.variables[name]: {"own": name} for name in self.view.inputs
        }
        self.kept = [str(line) for line in dict(mod["main"].attrs).get(specs.KEPT_FLOAT, ())]
        self.weights = {  # dequantized where they are read, in the order that their reader wants
            self.view.variables[name]: Step(name, call)
            for name, call in self.view.calls.items()
            if self.view.op(name) == "nybble.dequantize" and graph.is_constant(call.args[0])
        }
        self.biases = self._biases()

    def _biases(self) -> dict[str, str]:
        found = {}
        for name in self.view.calls:
            is_gemm = self.view.op(name) == "relax.matmul" and len(self.view.shape(name)) == 2
            if is_gemm or self.view.op(name) == "relax.nn.conv2d":
                reader = bias_name(self.view, name) or self._stored_bias(name)
                if reader is not None and self.bias(name, reader) is not None:
                    found[name] = reader
        return found

    def _stored_bias(self, layer: str) -> str | None:
        """The binding that adds an imported bias, which lies there as integers."""
        reader = self.view.sole_reader(layer)
        if reader is None or self.view.op(reader) != "relax.add":
            return None
        is_stored = any(t in self.weights for t in graph.operands(self.view.calls[reader]))
        return reader if is_stored else None

    def bias(self, layer: str, reader: str) -> NDArray[np.float64] | None:
        """The (O,) values that a binding adds to a layer; None where it is no bias."""
        tensors = graph.operands(self.view.calls[reader])
        constant = next((t for t in tensors if graph.is_constant(t)), None)
        stored = next((self.weights[t] for t in tensors if t in self.weights), None)
        if constant is None and stored is not None:
            constant = graph.constant(values_of(stored.call))
        return per_channel(constant, self.view.shape(layer)[-1])

    # ---- tensors

    def common(self, tensors: Sequence[Any]) -> Order:
        """The order in which to compute an op that takes either."""
        variables = [t for t in tensors if isinstance(t, relax.Var)]
        images = all(len(graph.shape_of(v)) in (0, 4) for v in variables)
        return (
            "nchw" if images and any("nchw" in self.forms.get(v, {}) for v in variables) else "own"
        )

    def get(self, x: Any, order: Order, name: str) -> str:
        """The ONNX tensor of a variable or constant; ``name`` is for a new initializer."""
        if graph.is_constant(x):
            return self.graph.constant(_reordered(graph.numpy_of(x), order), name)
        if x in self.weights:
            return self._weight(self.weights[x], order)
        forms = self.forms[x]
        if len(graph.shape_of(x)) == 0:
            order = "own"
        if order not in forms:
            (other,) = forms.values()
            perm = FIRST if order == "nchw" else LAST
            name = f"{x.name}.{SUFFIX[order]}"
            forms[order] = self.graph.node("Transpose", [other], name, perm=perm)
        return forms[order]

    def _weight(self, step: Step, order: Order) -> str:
        """DequantizeLinear of the weights' integers, a scale for each output channel."""
        q, scale, zero = map(graph.numpy_of, step.call.args)
        block = step.attrs["block"]
        axis, holder = step.attrs["axis"] % q.ndim, holder_of(graph.dtype_of(step.call.args[0]))
        if order == "nchw":
            q, axis = q.transpose(FIRST), FIRST.index(axis)
        zeros = np.broadcast_to(zero, scale.shape)
        inputs = [
            self.graph.constant(q, f"{step.name}.integers", holder),
            self.graph.constant(scale, f"{step.name}.scale"),
            self.graph.constant(zeros, f"{step.name}.zero_point", holder),
        ]
        blocks = {"block_size": block} if block else {}
        return self.graph.node("DequantizeLinear", inputs, step.name, axis=axis, **blocks)

    def scales(self, x: Any) -> NDArray[np.float64] | None:
        """The scale (or scales) of a dequantized tensor; None for any other."""
        step = self.view.calls.get(str(x.name)) if isinstance(x, relax.Var) else None
        if step is None or graph.op_name(step) != "nybble.dequantize":
            return None
        return graph.numpy_of(step.args[1]).astype(np.float64)


Rule = Callable[[Walk, Step], Form]


def holder_of(dtype: str) -> str:
    """The ONNX dtype that holds weights: ``int4`` up to 4 bits, then whole bytes."""
    bits = numerics.width(dtype)[1]
    return "int4" if bits <= NARROW else str(numerics.storage(dtype))


def _reordered(values: NDArray[Any], order: Order) -> NDArray[Any]:
    """A constant that broadcasts against NHWC (or OHWI weights), for NCHW."""
    if order == "own" or values.ndim == 0:
        return values
    return values.reshape((1,) * (4 - values.ndim) + values.shape).transpose(FIRST)
