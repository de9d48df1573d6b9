"""Finds what one integer kernel computes: dequantize -> float ops -> quantize."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import graph, ops
from nybble.passes.fold_batch_norm import affine
from nybble.passes.grids import Grid
from nybble.passes.plan import ACTIVATIONS, clamp_bounds, pads_zeros
from nybble.passes.pointwise import functions
from nybble.passes.view import View, per_channel

GATHERS = {
    "relax.reshape", "relax.permute_dims", "relax.nn.pad", "relax.nn.max_pool2d", "relax.concat",
    "relax.nn.avg_pool2d",
}  # fmt: skip


@dataclass(frozen=True)
class Leaf:
    """An integer tensor that a region reads.

    Attributes:
        name: of the dequantize binding.
        grid: its grid.
        shape: its shape.
    """

    name: str
    grid: Grid
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Accumulators:
    """A convolution or matmul (with bias) of integers.

    Attributes:
        name: of the convolution or matmul.
        call: it.
        x: the activations.
        weights: (O, KH, KW, C / groups) or (O, K) integers.
        dtype: their width.
        scale: (O,) of the weights.
        bias: (O,) in float.
    """

    name: str
    call: Any
    x: Leaf
    weights: NDArray[Any]
    dtype: str
    scale: NDArray[np.float64]
    bias: NDArray[np.float64]


ANY_GRID = Grid(1.0, "int8")  # until the quantize is known
Operand = Leaf | Accumulators


@dataclass(frozen=True)
class Region:
    """Everything between its operands and one quantize.

    Attributes:
        name: of the op that gives the region its name.
        call: that op; None for a bare requantization.
        operands: what it reads.
        out: the grid of the quantize that ends it.
        factor: what its operand is multiplied by.
        lo: lower bound of the clamps behind the op.
        hi: upper bound.
        steps: the bindings of a table's function, in order, with their variables.
    """

    name: str
    call: Any
    operands: tuple[Operand, ...]
    out: Grid = ANY_GRID
    factor: float = 1.0
    lo: float = -np.inf
    hi: float = np.inf
    steps: tuple[tuple[Any, Any], ...] = ()


class Matcher:
    """Matches regions in a quantized module."""

    def __init__(self, view: View):
        self.view = view
        self.functions = functions(view)

    def region(self, name: str) -> Region | None:
        """The region that ends in the quantize called ``name``; None where none matches."""
        call = self.view.calls[name]
        _, scale, zero_point = call.args
        out = single_grid(scale, zero_point, graph.dtype_of(call))
        if out is None:
            return None
        source, lo, hi = self.view.sources(name)[0], -np.inf, np.inf
        if source in self.functions:
            return self._tabled(source, out)
        first_clamp = ""
        while self.view.op(source) in ACTIVATIONS:
            below, above = clamp_bounds(self.view.calls[source])
            # clip(clip(x, a, b), lo, hi): the outer bounds apply to the inner ones
            lo, hi = min(max(lo, below), hi), max(min(hi, above), lo)
            first_clamp, source = source, self.view.sources(source)[0]
        found = self._computation(source)
        if found is None:
            return None
        if found.call is None:
            found = replace(found, name=first_clamp or name.removesuffix(".quantize"))
        return replace(found, out=out, lo=lo, hi=hi)

    def _tabled(self, name: str, out: Grid) -> Region | None:
        function, view = self.functions[name], self.view
        leaf = self.leaf(function.root)
        if leaf is None:
            return None
        steps = tuple((view.variables[step], view.calls[step]) for step in function.steps)
        return Region(name, view.calls[name], (leaf,), out, steps=steps)

    def _computation(self, name: str) -> Region | None:
        call, op = self.view.calls.get(name), self.view.op(name)
        accumulators = self.accumulators(name)
        if accumulators is not None:
            return Region(accumulators.name, accumulators.call, (accumulators,))
        leaf = self.leaf(name)
        if leaf is not None:
            return Region(name, None, (leaf,))
        if op in GATHERS and (op != "relax.nn.pad" or pads_zeros(call)):
            leaves = tuple(self.leaf(source) for source in self.view.sources(name))
            known = tuple(leaf for leaf in leaves if leaf is not None)
            return Region(name, call, known) if len(known) == len(graph.operands(call)) else None
        if op == "relax.add" and len(self.view.sources(name)) == 2:
            return self._residual(name, call)
        if op == "relax.multiply" and len(self.view.sources(name)) == 2:
            return self._product(name, call)
        return self._scaled(name, call)

    def _product(self, name: str, call: Any) -> Region | None:
        left, right = (self.leaf(source) for source in self.view.sources(name))
        return None if left is None or right is None else Region(name, call, (left, right))

    def _residual(self, name: str, call: Any) -> Region | None:
        branches = [self.accumulators(s) or self.leaf(s) for s in self.view.sources(name)]
        left, right = branches
        if left is None or right is None:
            return None
        if isinstance(right, Accumulators):
            left, right = right, left
        return None if isinstance(right, Accumulators) else Region(name, call, (left, right))

    def _scaled(self, name: str, call: Any) -> Region | None:
        step = affine(call)
        leaf = self.leaf(self.view.sources(name)[0]) if step else None
        if step is None or leaf is None:
            return None
        scale, offset = step
        if np.any(offset) or np.ptp(scale) or scale[0] <= 0:
            return None
        return Region(name, call, (leaf,), factor=float(scale[0]))

    def leaf(self, name: str) -> Leaf | None:
        """The integer tensor that ``name`` dequantizes, if its grid is one for the whole tensor."""
        if self.view.op(name) != "nybble.dequantize":
            return None
        q, scale, zero_point = self.view.calls[name].args
        on = None if graph.is_constant(q) else single_grid(scale, zero_point, graph.dtype_of(q))
        return None if on is None else Leaf(name, on, graph.shape_of(q))

    def accumulators(self, name: str) -> Accumulators | None:
        """The integer convolution or matmul behind ``name``, which may be its bias add."""
        if self.view.op(name) == "relax.add":
            return self._biased(name)
        if self.view.op(name) not in ("relax.nn.conv2d", "relax.matmul"):
            return None
        sources = self.view.sources(name)
        if len(sources) != 2:  # float weights are constants
            return None
        leaf, weights = self.leaf(sources[0]), self._weights(sources[1], self.view.op(name))
        if leaf is None or weights is None:
            return None
        zeros = np.zeros(len(weights[0]))
        return Accumulators(name, self.view.calls[name], leaf, *weights, zeros)

    def _biased(self, name: str) -> Accumulators | None:
        sums = [str(t.name) for t in graph.operands(self.view.calls[name]) if not self._value(t)]
        addends = [v for t in graph.operands(self.view.calls[name]) if (v := self._value(t))]
        found = self.accumulators(sums[0]) if len(sums) == len(addends) == 1 else None
        bias = per_channel(addends[0], len(found.bias)) if found else None
        return replace(found, bias=found.bias + bias) if found and bias is not None else None

    def _value(self, expr: Any) -> Any:
        """A constant operand, dequantized if need be; None for a computed one."""
        return expr if graph.is_constant(expr) else self._constant(str(expr.name))

    def _constant(self, name: str) -> Any:
        """A dequantized constant as a float constant; None for anything else."""
        if self.view.op(name) != "nybble.dequantize":
            return None
        call = self.view.calls[name]
        if not all(graph.is_constant(arg) for arg in call.args):
            return None
        law = ops.VOCABULARY["dequantize"].law
        return graph.constant(law(*map(graph.numpy_of, call.args), **graph.attributes(call)))

    def _weights(self, name: str, op: str) -> tuple[NDArray[Any], str, NDArray[np.float64]] | None:
        """Integer weights with output channels first, their width, and one scale per channel."""
        if self._constant(name) is None:
            return None
        call = self.view.calls[name]
        q, scale, zero_point = map(graph.numpy_of, call.args)
        axis = 0 if op == "relax.nn.conv2d" else 1
        along = graph.attributes(call)["axis"] % q.ndim
        if np.any(zero_point) or (scale.size > 1 and along != axis):
            return None
        q = np.ascontiguousarray(np.moveaxis(q, axis, 0))
        dtype = graph.dtype_of(call.args[0])
        return q, dtype, np.broadcast_to(scale.astype(np.float64).reshape(-1), (len(q),))


def single_grid(scale: Any, zero_point: Any, dtype: str) -> Grid | None:
    """The grid of a quantize or dequantize that treats the whole tensor alike, else None."""
    if not (graph.is_constant(scale) and graph.is_constant(zero_point)):
        return None
    s, z = graph.numpy_of(scale), graph.numpy_of(zero_point)
    return Grid(float(s.item()), dtype, int(z.item())) if s.size == z.size == 1 else None
