"""Emits the integer ops of one region: numbers only, the matching is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from nybble.errors import StageError
from nybble.ir import graph, interpreter, numerics, ops
from nybble.ir.graph import Emitter
from nybble.passes.grids import Grid
from nybble.passes.regions import Accumulators, Leaf, Operand, Region, WeightOnly
from nybble.passes.resize import RESIZE, Resize, resize_of

ACCUMULATOR_LIMIT = 2**31
SAME_SCALE = 1e-6  # relative: scales that differ by float32 rounding are one grid


@dataclass(frozen=True)
class Term:
    """An integer variable and what turns it into output steps."""

    var: Any
    ratio: NDArray[np.float64]
    zero_point: int


@dataclass(frozen=True)
class Lowering:
    """Emits integer regions.

    Attributes:
        rounding: the requantization convention.
        integers: dequantize binding of the old module -> integer variable of the new one.
    """

    rounding: str
    integers: dict[str, Any]

    def region(self, emitter: Emitter, region: Region) -> Any:
        """The integer variable that equals the region's quantize."""
        op = graph.op_name(region.call)
        special = self._tabled if region.steps else self._joining(op, len(region.operands))
        if special is not None:
            return special(emitter, region)
        operand = region.operands[0]
        if isinstance(operand, Accumulators):
            return self._requantize(emitter, region, self._term(emitter, operand, region))
        if op == "relax.nn.avg_pool2d":
            return self._requantize(emitter, region, self._summed(emitter, operand, region))
        assert isinstance(operand, Leaf)
        if op == RESIZE:
            return self._requantize(emitter, region, self._resized(emitter, operand, region))
        x = self.integers[operand.name]
        stays = region.call is None or op in _SCALES
        moved = x if stays else _moved(region.name, region.call, x, operand)
        moved = emitter.emit(moved, region.name)
        ratio = np.asarray(operand.grid.scale * region.factor / region.out.scale)
        return self._requantize(emitter, region, Term(moved, ratio, operand.grid.zero_point))

    def _joining(self, op: str, operands: int) -> Callable[[Emitter, Region], Any] | None:
        """What emits an op of several tensors."""
        if op == "relax.concat":
            return self._concat
        pairs = {"relax.add": self._residual, "relax.multiply": self._product}
        return pairs.get(op) if operands == 2 else None

    def leave(self, emitter: Emitter, accumulators: Accumulators) -> Any:
        """Accumulators as float: one scale per channel, no rounding to few bits."""
        acc = self._accumulate(emitter, accumulators)
        scale = (accumulators.scale * accumulators.x.grid.scale).astype(np.float32)
        operands = [acc, graph.constant(scale), graph.constant(np.zeros(len(scale), np.int32))]
        return emitter.emit(ops.call("dequantize", operands), f"{accumulators.name}.dequantize")

    def weight_only(self, layer: WeightOnly, x: Any) -> Any:
        """A matmul of floats with stored integers."""
        constants = [
            graph.constant(layer.weights, layer.dtype),
            graph.constant(layer.scale),
            graph.constant(layer.zero_point),
            graph.constant(layer.bias.astype(np.float32)),
        ]
        return ops.call("weight_only", [x, *constants], group=layer.group)

    def _tabled(self, emitter: Emitter, region: Region) -> Any:
        """The float ops' result for every integer of the operand's grid, on the output's grid."""
        (leaf,) = region.operands
        assert isinstance(leaf, Leaf)
        lo, hi = numerics.limits(leaf.grid.dtype)
        rank = len(graph.shape_of(region.steps[-1][0]))  # constants that fill a tensor broadcast
        q = np.arange(lo, hi + 1).astype(numerics.storage(leaf.grid.dtype))
        q = q.reshape(-1, *[1] * rank)
        first = next(v for v in graph.operands(region.steps[0][1]) if isinstance(v, relax.Var))
        values = {first: numerics.dequantize(q, *_arrays(leaf.grid))}
        with np.errstate(all="ignore"):  # also of values that no input ever takes
            for var, call in region.steps:
                values[var] = interpreter.evaluate(call, values, str(var.name))
        entries = numerics.quantize(values[var], *_arrays(region.out), region.out.dtype)
        table = graph.constant(entries.reshape(len(q), -1)[:, 0], region.out.dtype)
        return emitter.emit(ops.call("table", [self.integers[leaf.name], table]), region.name)

    # ---- operands

    def _term(self, emitter: Emitter, operand: Operand, region: Region) -> Term:
        if isinstance(operand, Leaf):
            ratio = np.asarray(operand.grid.scale / region.out.scale, np.float64)
            return Term(self.integers[operand.name], ratio, operand.grid.zero_point)
        assert isinstance(operand, Accumulators)
        acc = self._accumulate(emitter, operand)
        ratio = operand.scale * operand.x.grid.scale / region.out.scale
        silent = ~(operand.weights.reshape(len(ratio), -1).any(axis=1) | (operand.bias != 0))
        return Term(acc, np.where(silent, 1.0, ratio), 0)  # accumulators of 0 stay 0

    def _accumulate(self, emitter: Emitter, acc: Accumulators) -> Any:
        """The convolution or linear layer; its bias in steps of both scales."""
        zero_point = acc.x.grid.zero_point
        rows, steps = accumulator_steps(acc)
        _prove(acc, rows, steps)
        w, bias = graph.constant(acc.weights, acc.dtype), graph.constant(steps.astype(np.int32))
        operands = [self.integers[acc.x.name], w, bias]
        if graph.op_name(acc.call) == "relax.matmul":
            return emitter.emit(ops.call("linear", operands), acc.name)
        attrs = graph.attributes(acc.call)
        keep = {k: attrs[k] for k in ("strides", "padding", "dilation", "groups")}
        return emitter.emit(ops.call("conv2d", operands, **keep, pad_value=zero_point), acc.name)

    def _summed(self, emitter: Emitter, x: Operand, region: Region) -> Term:
        """The sum of every window; the ratio holds 1/N, per pixel where N varies at the border."""
        assert isinstance(x, Leaf)
        attrs = graph.attributes(region.call)
        size, zero_point = attrs["pool_size"], x.grid.zero_point
        _check_pool(region.name, x, size)
        keep = {k: attrs[k] for k in ("strides", "padding", "pool_size")}
        total = ops.call("sum_pool2d", [self.integers[x.name]], **keep, pad_value=zero_point)
        count = np.asarray(size[0] * size[1], np.float64)
        if any(attrs["padding"]) and not attrs["count_include_pad"]:
            height, width = (int(extent) for extent in x.shape[1:3])
            image = np.ones((1, height, width, 1), np.int8)
            view = numerics.windows(image, size, attrs["strides"], attrs["padding"])
            count = view.sum(axis=(3, 4), dtype=np.float64)[0]  # (OH, OW, 1)
        ratio = np.asarray(x.grid.scale / (count * region.out.scale))
        return Term(emitter.emit(total, region.name), ratio, zero_point * size[0] * size[1])

    def _resized(self, emitter: Emitter, x: Leaf, region: Region) -> Term:
        """Copies of pixels, or sums of four; the ratio of those holds 1 / unit."""
        found, q, zero_point = resize_of(region.call), self.integers[x.name], x.grid.zero_point
        assert isinstance(found, Resize)  # or there were no region
        ratio = np.asarray(x.grid.scale / (found.unit * region.out.scale))
        if found.mode is None:
            call = ops.call("nearest2d", [q], up=found.up, down=found.down)
        else:
            call = ops.call("bilinear2d", [q], up=found.up, down=found.down, mode=found.mode)
        return Term(emitter.emit(call, region.name), ratio, zero_point * found.unit)

    # ---- results

    def _requantize(self, emitter: Emitter, region: Region, term: Term) -> Any:
        lo, hi = clamp(region)
        whole = (lo, hi) == numerics.limits(region.out.dtype)
        same = graph.dtype_of(term.var) == region.out.dtype and _is_one(term.ratio)
        if same and whole and term.zero_point == region.out.zero_point:
            return term.var
        call = ops.call(
            "requantize", [term.var, *dyadic(region.name, term.ratio)],
            dtype=region.out.dtype, lo=lo, hi=hi, rounding=self.rounding,
            zero_point_in=term.zero_point, zero_point=region.out.zero_point,
        )  # fmt: skip
        return emitter.emit(call, f"{region.name}.requantize")

    def _residual(self, emitter: Emitter, region: Region) -> Any:
        a, b = (self._term(emitter, operand, region) for operand in region.operands)
        lo, hi = clamp(region)
        call = ops.call(
            "add",
            [a.var, *dyadic(region.name, a.ratio), b.var, *dyadic(region.name, b.ratio)],
            dtype=region.out.dtype, lo=lo, hi=hi, rounding=self.rounding,
            zero_point_a=a.zero_point, zero_point_b=b.zero_point,
            zero_point=region.out.zero_point,
        )  # fmt: skip
        return emitter.emit(call, region.name)

    def _product(self, emitter: Emitter, region: Region) -> Any:
        a, b = (operand for operand in region.operands if isinstance(operand, Leaf))
        ratio = np.asarray(a.grid.scale * b.grid.scale / region.out.scale, np.float64)
        lo, hi = clamp(region)
        call = ops.call(
            "multiply",
            [self.integers[a.name], self.integers[b.name], *dyadic(region.name, ratio)],
            dtype=region.out.dtype, lo=lo, hi=hi, rounding=self.rounding,
            zero_point_a=a.grid.zero_point, zero_point_b=b.grid.zero_point,
            zero_point=region.out.zero_point,
        )  # fmt: skip
        return emitter.emit(call, region.name)

    def _concat(self, emitter: Emitter, region: Region) -> Any:
        """Every branch on the common grid, with the clamp behind the concat applied before it."""
        branches = []
        for index, operand in enumerate(region.operands):
            part = Region(f"{region.name}.{index}", None, (operand,), region.out,
                          lo=region.lo, hi=region.hi)  # fmt: skip
            branches.append(self._requantize(emitter, part, self._term(emitter, operand, part)))
        joined = relax.op.concat(branches, graph.attributes(region.call)["axis"])
        return emitter.emit(joined, region.name)


_SCALES = {"relax.multiply", "relax.divide"}


def _arrays(on: Grid) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    return np.asarray(on.scale, np.float32), np.asarray(on.zero_point, np.int32)


def clamp(region: Region) -> tuple[int, int]:
    """The clamps of a region as integers of its output grid."""
    out, limits = region.out, numerics.limits(region.out.dtype)

    def steps(bound: float) -> int:
        ratio = np.float32(bound) / np.float32(out.scale)
        return int(np.clip(float(np.rint(ratio)) + out.zero_point, *limits))

    return steps(region.lo), steps(region.hi)


def dyadic(name: str, ratio: NDArray[np.float64]) -> tuple[Any, Any]:
    """(multiplier, shift) constants.

    Raises:
        StageError: a ratio is too large for 31 bits.
    """
    if np.any(ratio >= numerics.MAX_RATIO):
        raise StageError(
            f"'{name}': one output step is {1 / np.max(ratio):.3g} of an input step, too little to "
            "requantize in integers. Calibrate on representative data, or keep the layer float "
            "(Recipe.keep_float)."
        )
    multiplier, shift = numerics.dyadic(ratio)
    return graph.constant(multiplier), graph.constant(shift)


def _is_one(ratio: NDArray[np.float64]) -> bool:
    return bool(np.all(np.abs(ratio - 1) < SAME_SCALE))


def _moved(name: str, call: Any, x: Any, leaf: Leaf) -> Any:
    """A reshape, permutation, padding or maximum, on integers."""
    op, attrs = graph.op_name(call), graph.attributes(call)
    if op == "relax.nn.max_pool2d":
        keep = {k: attrs[k] for k in ("pool_size", "strides", "padding", "dilation")}
        return ops.call("max_pool2d", [x], **keep)
    if op == "relax.nn.pad":
        zero = leaf.grid.zero_point
        if leaf.grid.dtype == "int1":
            raise StageError(
                f"'{name}': pads with zero, which signed activations of 1 bit do not have. Give "
                "the layers that read it 2 bits (Recipe.layers), or keep it float "
                "(Recipe.keep_float)."
            )
        return relax.op.nn.pad(x, list(attrs["pad_width"]), "constant", zero)
    return relax.Call(call.op, [x, *call.args[1:]], call.attrs)


def _prove(acc: Accumulators, rows: NDArray[np.int64], steps: NDArray[np.float64]) -> None:
    """Proves that no accumulator can leave int32, whatever the input.

    Raises:
        StageError: a channel's sum of |w|, times the largest |x|, plus |bias| reaches 2^31.
    """
    why = _overflow(acc, rows, steps)
    if why is not None:
        raise StageError(
            f"'{acc.name}': {why}. Keep the layer float (Recipe.keep_float) or split it."
        )


def overflow(acc: Accumulators) -> str | None:
    """How accumulators may leave int32, in words; None where they cannot."""
    rows, steps = accumulator_steps(acc)
    return _overflow(acc, rows, steps)


def accumulator_steps(acc: Accumulators) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(O, K) weights, and the (O,) bias in accumulator steps with the zero point folded in."""
    rows = acc.weights.reshape(len(acc.weights), -1).astype(np.int64)
    bias = np.rint(acc.bias / (acc.scale * acc.x.grid.scale))
    return rows, bias - acc.x.grid.zero_point * rows.sum(axis=1)


def _overflow(acc: Accumulators, rows: NDArray[np.int64], steps: NDArray[np.float64]) -> str | None:
    largest = max(map(abs, numerics.limits(acc.x.grid.dtype)))
    bound = np.abs(rows).sum(axis=1) * float(largest) + np.abs(steps)
    worst = int(bound.argmax())
    if bound[worst] < ACCUMULATOR_LIMIT:
        return None
    return (
        f"channel {worst} may reach {bound[worst]:.4g}, beyond the 32 bits of its accumulators "
        f"({rows.shape[1]} products, bias {acc.bias[worst]:.4g})"
    )


def _check_pool(name: str, x: Leaf, size: tuple[int, int]) -> None:
    largest = max(map(abs, numerics.limits(x.grid.dtype)))
    if size[0] * size[1] * largest >= ACCUMULATOR_LIMIT:
        raise StageError(f"'{name}': a window of {size} overflows 32 bits. Keep the layer float.")
