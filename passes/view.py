"""A module read by names: who defines a tensor, who reads it. Passes plan with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph


class View:
    """Definitions and readers of every tensor of ``main``, by name.

    Attributes:
        calls: expression of every binding, in order.
        variables: variable of every input and binding.
        readers: names of the bindings that read a tensor; an output has no extra entry.
        inputs: names of the inputs.
        outputs: names of the tensors that ``main`` returns.
    """

    def __init__(self, mod: tvm.IRModule):
        self.calls = {str(b.var.name): b.value for b in graph.bindings(mod)}
        self.variables = {str(b.var.name): b.var for b in graph.bindings(mod)}
        self.inputs = [str(v.name) for v in graph.inputs(mod)]
        self.variables.update({str(v.name): v for v in graph.inputs(mod)})
        self.readers = {
            str(v.name): [str(b.var.name) for b in found] for v, found in graph.users(mod).items()
        }
        self.outputs = {str(v.name) for v in graph.outputs(mod)}

    def op(self, name: str) -> str:
        """The op that defines a tensor, "" for an input."""
        return graph.op_name(self.calls.get(name))

    def sources(self, name: str) -> list[str]:
        """Names of the variables that a binding reads, in operand order."""
        found = graph.operands(self.calls[name]) if name in self.calls else []
        return [str(v.name) for v in found if isinstance(v, relax.Var)]

    def sole_reader(self, name: str) -> str | None:
        """The one binding that reads a tensor; None for outputs and for any other number."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def shape(self, name: str) -> tuple[int | str, ...]:
        """A tensor's shape."""
        return graph.shape_of(self.variables[name])


REPEATS = {"relax.take", "relax.tile", "relax.flip", "relax.broadcast_to"}


def repeats(call: Any) -> bool:
    """Whether a call takes, turns or repeats elements of one tensor, at places that are known."""
    tensors = graph.operands(call)
    is_move = graph.op_name(call) in REPEATS and isinstance(tensors[0], relax.Var)
    return is_move and all(graph.is_constant(tensor) for tensor in tensors[1:])


def first_variable(call: Any) -> relax.Var:
    """The first variable operand of a call: stands in for a call that a pass has absorbed."""
    return next(v for v in graph.operands(call) if isinstance(v, relax.Var))


def per_channel(expr: Any, channels: int | str) -> NDArray[np.float64] | None:
    """A constant that varies along the last axis only, as (channels,) float64; else None."""
    if not graph.is_constant(expr) or not isinstance(channels, int):
        return None
    values = graph.numpy_of(expr)
    if values.size not in (1, channels) or (values.ndim and values.shape[-1] != values.size):
        return None
    return np.broadcast_to(values.reshape(-1).astype(np.float64), (channels,))


def with_attribute(mod: tvm.IRModule, key: str, value: Any) -> tvm.IRModule:
    """The module with one more attribute on ``main``."""
    return tvm.IRModule({"main": mod["main"].with_attr(key, value)})
