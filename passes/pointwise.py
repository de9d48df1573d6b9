"""Finds what becomes a table: element-wise functions of one tensor, of any number of ops.

    SiLU        x · sigmoid(x)
    hard-swish  x · clip(x / 6 + 1/2, 0, 1)
    GELU        x / 2 · (1 + tanh(…x + …x·x·x))

A tensor of 8 bits has 256 values, so such a function is 256 numbers, whatever it computes
(`nybble.ir.numerics.table`); of 16 bits, which imported networks may have, it is 65,536.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from nybble.ir import graph
from nybble.passes.view import View

FUNCTIONS = {
    "relax.sigmoid", "relax.tanh", "relax.exp", "relax.nn.silu", "relax.nn.leakyrelu",
    "relax.nn.gelu", "relax.nn.gelu_tanh", "relax.nn.softplus", "relax.erf", "relax.log",
    "relax.sqrt", "relax.rsqrt", "relax.abs", "relax.negative", "relax.square", "relax.sin",
    "relax.cos", "relax.floor", "relax.ceil", "relax.round", "relax.sign",
}  # fmt: skip
CLAMPS = {"relax.nn.relu", "relax.clip"}
SCALES = {"relax.multiply", "relax.divide"}
ARITHMETIC = SCALES | {
    "relax.add", "relax.subtract", "relax.maximum", "relax.minimum", "relax.power", "relax.where",
    "relax.greater", "relax.greater_equal", "relax.less", "relax.less_equal", "relax.equal",
}  # fmt: skip


@dataclass(frozen=True)
class Function:
    """An element-wise function of one tensor.

    Attributes:
        root: the tensor that it is a function of.
        steps: the bindings that compute it, in order; the last one is its result.
    """

    root: str
    steps: tuple[str, ...]


def functions(view: View, apart: Collection[str] = ()) -> dict[str, Function]:
    """Every function worth a table, by its result; nothing else reads what is inside of it.

    Scaling, clamping and adding channels' biases, which kernels do by the way, are none by
    themselves.

    Args:
        view: a float or quantized module.
        apart: bindings that belong to no function.
    """
    barriers: set[str] = set()
    while True:
        found = _Members(view, barriers, apart)
        split = found.read_from_outside() - barriers
        if not split:
            return found.functions()
        barriers |= split


class _Members:
    """Bindings that are functions of one tensor, given where functions must end.

    Attributes:
        roots: binding -> the tensor that it is a function of.
        worth: the bindings among them that need a table.
    """

    def __init__(self, view: View, barriers: set[str], apart: Collection[str]):
        self.view, self.barriers = view, barriers
        self.roots: dict[str, str] = {}
        self.worth: set[str] = set()
        for name in view.calls:
            if name not in apart:
                self._add(name)
        self._drop_useless()

    def read_from_outside(self) -> set[str]:
        """Members that functions go through and others read as well: they have to be results."""
        return {
            name
            for name in self.roots
            if self._inner(name) and (name in self.view.outputs or self._outer(name))
        }

    def functions(self) -> dict[str, Function]:
        results = [name for name in self.roots if not self._inner(name)]
        return {name: Function(self.roots[name], self._steps(name)) for name in results}

    # ---- parts

    def _add(self, name: str) -> None:
        op, sources = self.view.op(name), self.view.sources(name)
        roots = {self._root(source) for source in sources}
        if len(roots) != 1 or not self._is_elementwise(name, op, sources):
            return
        (root,) = roots
        if not graph.dtype_of(self.view.variables[root]).startswith("float"):
            return
        inherits = any(source in self.roots for source in sources)
        if op in CLAMPS and not inherits:
            return  # the kernel in front of it clamps
        if op == "relax.add" and not inherits and self._is_bias(sources):
            return
        self.roots[name] = root
        scales = op in CLAMPS or (op in SCALES and _is_scale(self.view.calls[name]))
        if not scales or any(source in self.worth for source in sources):
            self.worth.add(name)

    def _root(self, name: str) -> str:
        is_end = name in self.barriers or name not in self.roots
        return name if is_end else self.roots[name]

    def _is_elementwise(self, name: str, op: str, sources: list[str]) -> bool:
        shape = self.view.shape(name)
        if any(self.view.shape(source) != shape for source in sources):
            return False
        if op in FUNCTIONS | CLAMPS:
            return True
        constants = [t for t in graph.operands(self.view.calls[name]) if graph.is_constant(t)]
        return op in ARITHMETIC and all(map(_is_one_number, constants))

    def _is_bias(self, sources: list[str]) -> bool:
        return len(sources) == 1 and self.view.op(sources[0]) in ("relax.nn.conv2d", "relax.matmul")

    def _drop_useless(self) -> None:
        """Keeps what leads to a binding that needs a table."""
        for name in reversed(list(self.roots)):
            is_float = graph.dtype_of(self.view.variables[name]).startswith("float")
            if not (name in self.worth and is_float) and not self._inner(name):
                del self.roots[name]

    def _inner(self, name: str) -> bool:
        """Whether a longer function goes through a binding."""
        return name not in self.barriers and any(
            reader in self.roots for reader in self.view.readers[name]
        )

    def _outer(self, name: str) -> bool:
        return any(reader not in self.roots for reader in self.view.readers[name])

    def _steps(self, name: str) -> tuple[str, ...]:
        wanted, left = set[str](), [name]
        while left:
            one = left.pop()
            if one in self.roots and one not in wanted and (one == name or self._inner(one)):
                wanted.add(one)
                left += self.view.sources(one)
        return tuple(step for step in self.view.calls if step in wanted)


def _is_scale(call: Any) -> bool:
    """Whether a product or quotient is by a positive constant, or one for each channel."""
    left, right = graph.operands(call)
    if graph.is_constant(left) and graph.op_name(call) == "relax.multiply":
        left, right = right, left
    return graph.is_constant(right) and bool(np.all(graph.numpy_of(right) > 0))


def _is_one_number(constant: Any) -> bool:
    values = graph.numpy_of(constant)
    return values.size > 0 and bool(np.all(values == values.flat[0]))
