"""Finds what one integer kernel computes: dequantize -> float ops -> quantize."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import graph, numerics, ops
from nybble.passes.fold_batch_norm import affine
from nybble.passes.fold_stored import values_of
from nybble.passes.grids import Grid
from nybble.passes.plan import ACTIVATIONS, clamp_bounds, pads_zeros, pool_kind
from nybble.passes.pointwise import functions
from nybble.passes.resize import RESIZE, resize_of
from nybble.passes.view import View, per_channel, repeats

GATHERS = {
    "relax.reshape", "relax.permute_dims", "relax.nn.pad", "relax.nn.max_pool2d", "relax.concat",
    "relax.nn.avg_pool2d", "relax.strided_slice", RESIZE,
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


SAME_STEP = 1e-5  # relative: a bias's scale is a rounded product of two
LEAF_BITS = 16  # of activations; accumulators that a model shows as int32 are none
TABLE_BITS = 16  # of the index
WEIGHT_BITS = 8  # of weights between floats
PRODUCT_BITS = 30  # of both factors: products stay within 32 bits


@dataclass(frozen=True)
class WeightOnly:
    """A matmul (with bias) of floats with stored integers (`nybble.ir.weight_only`).

    Attributes:
        name: of the matmul.
        source: binding of the floats.
        weights: (O, K) integers.
        dtype: their width.
        scale: (O, G).
        zero_point: (O, G).
        bias: (O,) in float.
        group: of inputs that share a scale.
    """

    name: str
    source: str
    weights: NDArray[Any]
    dtype: str
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    bias: NDArray[np.float64]
    group: int


@dataclass(frozen=True)
class Products:
    """A product of two integer tensors.

    Attributes:
        name: of the matmul.
        a: (…, M, K).
        b: (…, K, N).
        factor: what it is multiplied by.
    """

    name: str
    a: Leaf
    b: Leaf
    factor: float = 1.0


ANY_GRID = Grid(1.0, "int8")  # until the quantize is known
Operand = Leaf | Accumulators | Products


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
        found = self._computation(source, out)
        if found is None:
            return None
        if found.call is None:
            found = replace(found, name=first_clamp or name.removesuffix(".quantize"))
        return replace(found, out=out, lo=lo, hi=hi)

    def _tabled(self, name: str, out: Grid) -> Region | None:
        function, view = self.functions[name], self.view
        leaf = self.leaf(function.root)
        if leaf is None or numerics.width(leaf.grid.dtype)[1] > TABLE_BITS:
            return None
        steps = tuple((view.variables[step], view.calls[step]) for step in function.steps)
        return Region(name, view.calls[name], (leaf,), out, steps=steps)

    def _computation(self, name: str, out: Grid) -> Region | None:
        call, op = self.view.calls.get(name), self.view.op(name)
        accumulators = self.accumulators(name)
        if accumulators is not None:
            return Region(accumulators.name, accumulators.call, (accumulators,))
        leaf = self.leaf(name)
        if leaf is not None:
            return Region(name, None, (leaf,))
        if repeats(call) or (op in GATHERS and gathers(call)):
            tensors = graph.operands(call)[: 1 if repeats(call) else None]
            known = tuple(leaf for t in tensors if (leaf := self.leaf(str(getattr(t, "name", "")))))
            return Region(name, call, known) if len(known) == len(tensors) else None
        if op == "relax.add" and len(self.view.sources(name)) == 2:
            return self._residual(name, call, out)
        if op == "relax.multiply" and len(self.view.sources(name)) == 2:
            return self._product(name, call)
        return self._scaled(name, call)

    def _product(self, name: str, call: Any) -> Region | None:
        left, right = (self.leaf(source) for source in self.view.sources(name))
        if left is None or right is None or len(left.shape) != len(right.shape):
            return None
        is_wide = sum(numerics.width(leaf.grid.dtype)[1] for leaf in (left, right)) > PRODUCT_BITS
        return None if is_wide else Region(name, call, (left, right))

    def _residual(self, name: str, call: Any, out: Grid) -> Region | None:
        sources = [self._before_rounding(source, out) for source in self.view.sources(name)]
        left, right = (self.accumulators(s) or self.leaf(s) for s in sources)
        is_same = self.view.shape(sources[0]) == self.view.shape(sources[1])
        if left is None or right is None or not is_same:
            return None
        if isinstance(right, Accumulators):
            left, right = right, left
        return None if isinstance(right, Accumulators) else Region(name, call, (left, right))

    def _before_rounding(self, name: str, out: Grid) -> str:
        """What a branch of a sum is rounded from, where the sum itself rounds it so."""
        q = str(self.view.calls[name].args[0].name) if self._is_activation(name) else ""
        if self.view.op(q) != "nybble.quantize":
            return name
        _, scale, zero_point = self.view.calls[q].args
        on = single_grid(scale, zero_point, graph.dtype_of(self.view.calls[q]))
        is_step = on is not None and on.dtype == "int32" and on.scale == out.scale
        return self.view.sources(q)[0] if is_step and not (on and on.zero_point) else name

    def _is_activation(self, name: str) -> bool:
        """Whether a binding dequantizes computed integers."""
        is_float = self.view.op(name) == "nybble.dequantize"
        return is_float and not graph.is_constant(self.view.calls[name].args[0])

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
        if on is None or numerics.width(on.dtype)[1] > LEAF_BITS:
            return None
        return Leaf(name, on, graph.shape_of(q))

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
        if leaf is None or weights is None or not is_channels_last(self.view.calls[name]):
            return None
        zeros = np.zeros(len(weights[0]))
        return Accumulators(name, self.view.calls[name], leaf, *weights, zeros)

    def _biased(self, name: str) -> Accumulators | None:
        sums = [str(t.name) for t in graph.operands(self.view.calls[name]) if not self._value(t)]
        addends = [v for t in graph.operands(self.view.calls[name]) if (v := self._value(t))]
        found = self.accumulators(sums[0]) if len(sums) == len(addends) == 1 else None
        bias = per_channel(addends[0], len(found.bias)) if found else None
        if found is None or bias is None:
            return None
        exact = self._integers(name, found)
        return replace(found, bias=found.bias + (bias if exact is None else exact))

    def weight_only(self, name: str) -> WeightOnly | None:
        """The matmul of floats with stored integers behind ``name``, or behind its bias add."""
        sources = self.view.sources(name)
        if self.view.op(name) == "relax.add":
            sums = [s for s in sources if self._constant(s) is None]
            addends = [v for t in graph.operands(self.view.calls[name]) if (v := self._value(t))]
            both = len(sums) == len(addends) == 1 and self.view.sole_reader(sums[0]) == name
            found = self.weight_only(sums[0]) if both else None
            bias = per_channel(addends[0], len(found.bias)) if found else None
            return replace(found, bias=bias) if found and bias is not None else None
        if self.view.op(name) != "relax.matmul" or len(sources) != 2 or self.leaf(sources[0]):
            return None
        stored = self._groups(sources[1])
        if stored is None or len(self.view.shape(sources[0])) < 2:
            return None
        zeros = np.zeros(len(stored[0]))
        return WeightOnly(name, sources[0], *stored[:-1], zeros, stored[-1])

    def _groups(self, name: str) -> tuple[Any, str, Any, Any, int] | None:
        """(O, K) integers, their width, (O, G) scales and zero points, and the group."""
        if self._constant(name) is None or len(self.view.shape(name)) != 2:
            return None
        call = self.view.calls[name]
        q, scale, zero_point = map(graph.numpy_of, call.args)
        attrs, dtype = graph.attributes(call), graph.dtype_of(call.args[0])
        axis, block = attrs["axis"] % 2, attrs["block"]
        if numerics.width(dtype)[1] > WEIGHT_BITS or (scale.ndim and (axis == 0) != bool(block)):
            return None
        shape = (-1, q.shape[1]) if scale.ndim else (1, 1)
        tables = [np.broadcast_to(t.reshape(shape), (t.size // q.shape[1] or 1, q.shape[1]))
                  for t in (scale, zero_point)]  # fmt: skip
        rows = [np.ascontiguousarray(t.T) for t in (q, *tables)]
        return rows[0], dtype, rows[1], rows[2], block or q.shape[0]

    def _value(self, expr: Any) -> Any:
        """A constant operand, dequantized if need be; None for a computed one."""
        return expr if graph.is_constant(expr) else self._constant(str(expr.name))

    def _constant(self, name: str) -> Any:
        """A dequantized constant as a float constant; None for anything else."""
        if self.view.op(name) != "nybble.dequantize":
            return None
        call = self.view.calls[name]
        is_stored = all(graph.is_constant(arg) for arg in call.args)
        return graph.constant(values_of(call)) if is_stored else None

    def _integers(self, add: str, acc: Accumulators) -> NDArray[np.float64] | None:
        """A bias that is stored as integers in steps of the accumulators, to the last bit."""
        found = (s for s in self.view.sources(add) if self._constant(s) is not None)
        addend = next(found, None)
        if addend is None:
            return None
        q, scale, zero_point = self.view.calls[addend].args
        step = acc.scale * acc.x.grid.scale
        given = per_channel(scale, len(step))
        values = None if np.any(graph.numpy_of(zero_point)) else per_channel(q, len(step))
        if given is None or values is None or not np.allclose(given, step, SAME_STEP, 0):
            return None
        return values * step

    def _weights(self, name: str, op: str) -> tuple[NDArray[Any], str, NDArray[np.float64]] | None:
        """Integer weights with output channels first, their width, and one scale per channel."""
        if self._constant(name) is None:
            return None
        call = self.view.calls[name]
        q, scale, zero_point = map(graph.numpy_of, call.args)
        axis = 0 if op == "relax.nn.conv2d" else 1
        attrs, dtype = graph.attributes(call), graph.dtype_of(call.args[0])
        is_row = scale.size == 1 or (attrs["axis"] % q.ndim == axis and not attrs["block"])
        if not is_row or q.ndim != (4 if axis == 0 else 2) or not np.all(scale > 0):
            return None
        if np.any(zero_point):
            q, dtype = centred(q, ops.along(zero_point, axis, q.ndim))
        q = np.ascontiguousarray(np.moveaxis(q, axis, 0))
        return q, dtype, np.broadcast_to(scale.astype(np.float64).reshape(-1), (len(q),))


def centred(q: NDArray[Any], zero_point: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Integers without their zero points, in 8 bits where they fit, else in 16."""
    values = q.astype(np.int32) - zero_point.astype(np.int32)
    lo, hi = numerics.limits("int8")
    dtype = "int8" if lo <= values.min(initial=0) and values.max(initial=0) <= hi else "int16"
    return values.astype(dtype), dtype


def gathers(call: Any) -> bool:
    """Whether integers can be computed as the floats are: zero padding, NHWC images."""
    op = graph.op_name(call)
    if op == "relax.nn.pad":
        return pads_zeros(call)
    if op in ("relax.nn.max_pool2d", "relax.nn.avg_pool2d"):
        return pool_kind(call, op)[0] != "float"
    return op != RESIZE or not isinstance(resize_of(call), str)


def is_channels_last(call: Any) -> bool:
    """Whether a layer is a matmul, or a convolution of NHWC images."""
    attrs = graph.attributes(call)
    return graph.op_name(call) == "relax.matmul" or (
        (attrs["data_layout"], attrs["kernel_layout"]) == ("NHWC", "OHWI")
    )


def single_grid(scale: Any, zero_point: Any, dtype: str) -> Grid | None:
    """The grid of a quantize or dequantize that treats the whole tensor alike, else None."""
    if not (graph.is_constant(scale) and graph.is_constant(zero_point)):
        return None
    s, z = graph.numpy_of(scale), graph.numpy_of(zero_point)
    return Grid(float(s.item()), dtype, int(z.item())) if s.size == z.size == 1 else None
