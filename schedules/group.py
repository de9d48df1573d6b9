"""A layer as its bindings, problem and constants, and what the matching rules share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.errors import ScheduleError
from nybble.ir import graph
from nybble.schedules.kernel import Epilogue, Extent, Problem, TensorSpec
from nybble.schedules.target import Target


@dataclass(frozen=True)
class Group:
    """One layer of the scheduled module.

    Attributes:
        bindings: the anchor first; the last one's variable is the layer's output.
        problem: what to compile; None for ops that have no kernel (structural ones, and those that
            `nybble.schedules.cpu.stock` does not list).
        activations: the tensor operands, ``epilogue.other`` last.
        constants: unpacked constants by operand name; per-channel ones as vectors.
    """

    bindings: tuple[relax.VarBinding, ...]
    problem: Problem | None = None
    activations: tuple[Any, ...] = ()
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def output(self) -> relax.Var:
        """The variable that holds the layer's result."""
        return self.bindings[-1].var


class Matcher:
    """What the rules need to know about the module around a binding."""

    def __init__(self, mod: tvm.IRModule, target: Target):
        self.target = target
        self.users = graph.users(mod)
        self.outputs = set(graph.outputs(mod))
        self.bindings = {b.var: b for b in graph.bindings(mod)}
        self.claimed: set[Any] = set()
        self.live = self._live(mod)

    def follower(self, binding: relax.VarBinding, *wanted: str) -> relax.VarBinding | None:
        """The only reader of a binding, if it is one of the wanted ops and still free."""
        readers = self.users[binding.var]
        if len(readers) != 1 or binding.var in self.outputs or readers[0].var in self.claimed:
            return None
        return readers[0] if graph.op_name(readers[0].value) in wanted else None

    def _live(self, mod: tvm.IRModule) -> set[Any]:
        live = set(self.outputs)
        for binding in reversed(graph.bindings(mod)):
            if binding.var in live:
                live.update(graph.operands(binding.value))
        return live


def spec_of(expr: Any) -> TensorSpec:
    """Shape and dtype of an expression."""
    return TensorSpec(graph.shape_of(expr), graph.dtype_of(expr))


def constant_of(expr: Any, name: str, operand: str) -> NDArray[Any]:
    """The values of an operand that must be a constant."""
    if not graph.is_constant(expr):
        raise ScheduleError(f"'{name}': operand {operand} must be a constant. Fold it first.")
    return graph.numpy_of(expr)


def vector(values: NDArray[Any], length: Extent, name: str, operand: str) -> NDArray[Any]:
    """A per-channel constant as a vector; a symbolic length takes a single value only."""
    flat = values.reshape(-1)
    if isinstance(length, int) and values.shape[-1:] in ((), (1,), (length,)) and (
        flat.size in (1, length)
    ):  # fmt: skip
        return np.ascontiguousarray(np.broadcast_to(flat, (length,)))
    if flat.size == 1:
        return flat
    raise ScheduleError(
        f"'{name}': operand {operand} has shape {values.shape}, expected a scalar or ({length},)."
    )


def fused(
    group: Group,
    reader: relax.VarBinding,
    epilogue: Epilogue,
    constants: Mapping[str, NDArray[Any]],
    other: Any = None,
) -> Group:
    """The group with its reader as the new last binding, and ``other`` as a further activation."""
    assert group.problem is not None
    return Group(
        (*group.bindings, reader),
        replace(group.problem, output=spec_of(reader.var), epilogue=epilogue),
        group.activations if other is None else (*group.activations, other),
        {**group.constants, **constants},
    )


def is_reshape(call: relax.Call) -> bool:
    """Whether a call leaves the elements in their order, so that it costs nothing at run time."""
    op = graph.op_name(call)
    if op in {"relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims"}:
        return True
    if op != "relax.permute_dims":
        return False
    shape = graph.shape_of(call.args[0])
    moved = [axis for axis in permutation(call) if shape[axis] != 1]
    return moved == sorted(moved)


def permutation(call: relax.Call) -> tuple[int, ...]:
    """The axes of a ``permute_dims``, none of them negative."""
    rank = len(graph.shape_of(call.args[0]))
    axes = graph.attributes(call)["axes"] or tuple(reversed(range(rank)))
    return tuple(axis % rank for axis in axes)
