"""Emits products of two tensors, softmax and norms in integers: numbers only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from nybble.errors import StageError
from nybble.ir import graph, numerics, ops, rows
from nybble.ir.graph import Emitter
from nybble.passes import rows as kinds
from nybble.passes.fold_batch_norm import affine
from nybble.passes.grids import Grid, share_grid
from nybble.passes.integer_emitters import ACCUMULATOR_LIMIT, Lowering, Term, clamp, dyadic
from nybble.passes.regions import Leaf, Products, Region
from nybble.passes.row_regions import MaskedRegion

FINER = 12  # bits of a constant that is added, below the result's steps
FACTOR_LIMIT = 2**14 - 1  # products with 16 bits stay within 32
FINEST = 14  # fractional bits of a norm's affine step
OFFSET_LIMIT = 2.0**29
EPSILON_LIMIT = 2.0**59


class RowLowering(Lowering):
    """Emits the regions of `nybble.passes.row_regions` too."""

    def region(self, emitter: Emitter, region: Region) -> Any:
        """The integer variable that equals the region's quantize."""
        op = graph.op_name(region.call)
        if op == kinds.LOOKUP and graph.is_constant(region.call.args[0]):
            return self._lookup(emitter, region)
        operand = region.operands[0]
        if op in (kinds.SOFTMAX, *kinds.NORMS) and not region.steps:
            emit = self._softmax if op == kinds.SOFTMAX else self._norm
            return emit(emitter, region)
        if isinstance(operand, Products):
            acc = self._matmul(emitter, operand)
            ratio = np.asarray(step_of(operand) / region.out.scale, np.float64)
            return self._requantize(emitter, region, Term(acc, ratio, 0))
        shift = None if region.call is None or region.steps else kinds.shift_of(region.call)
        if shift is not None and isinstance(operand, Leaf) and len(region.operands) == 1:
            return self._shift(emitter, region, shift)
        if (
            kinds.factors_of(region.call) is not None
            and not region.steps
            and affine(region.call) is None
        ):
            return self._factors(emitter, region)
        return super().region(emitter, region)

    def _matmul(self, emitter: Emitter, products: Products) -> Any:
        """The accumulators; both zero points are taken off."""
        a, b, k = products.a, products.b, products.a.shape[-1]
        reach = float(k) * _reach(a.grid) * _reach(b.grid)
        if reach >= ACCUMULATOR_LIMIT:
            raise StageError(
                f"'{products.name}': a sum of {k} products may reach {reach:.4g}, beyond the 32 "
                "bits of its accumulators. Keep the layer float (Recipe.keep_float)."
            )
        operands = [self.integers[a.name], self.integers[b.name]]
        zeros = {"zero_point_a": a.grid.zero_point, "zero_point_b": b.grid.zero_point}
        return emitter.emit(ops.call("matmul", operands, **zeros), products.name)

    def _softmax(self, emitter: Emitter, region: Region) -> Any:
        (operand,) = region.operands
        if isinstance(operand, Products):
            x, step = self._matmul(emitter, operand), step_of(operand)
        else:
            assert isinstance(operand, Leaf)
            x, step = self.integers[operand.name], operand.grid.scale
        ratio = np.asarray(step * np.log2(np.e) * 2**rows.OCTAVE_BITS, np.float64)
        scale = dyadic(region.name, ratio)
        shares = share_grid(numerics.width(region.out.dtype)[1])
        whole = clamp(region) == numerics.limits(region.out.dtype)
        is_natural = region.out == shares and whole
        shares = shares if is_natural else share_grid()
        call = ops.call("softmax", [x, *scale], dtype=shares.dtype)
        if isinstance(region, MaskedRegion) and region.mask is not None:
            operands = [x, graph.constant(region.mask), *scale]
            call = ops.call("masked_softmax", operands, dtype=shares.dtype)
        found = emitter.emit(call, region.name)
        if is_natural:
            return found
        ratio = np.asarray(shares.scale / region.out.scale, np.float64)
        return self._requantize(emitter, region, Term(found, ratio, 0))

    def _lookup(self, emitter: Emitter, region: Region) -> Any:
        """Rows of a table that was rounded once."""
        out, (table, numbers) = region.out, region.call.args
        scale, zero = np.asarray(out.scale, np.float32), np.asarray(out.zero_point, np.int32)
        steps = numerics.quantize(graph.numpy_of(table), scale, zero, out.dtype)
        clamped = numerics.settle(steps, *clamp(region), out.dtype)
        integers = graph.constant(clamped, out.dtype)
        return emitter.emit(relax.Call(region.call.op, [integers, numbers], region.call.attrs),
                            region.name)  # fmt: skip

    def _shift(self, emitter: Emitter, region: Region, shift: NDArray[np.float64]) -> Any:
        """A sum with a constant, whose integers are finer than the result's steps."""
        (x,) = region.operands
        assert isinstance(x, Leaf)
        steps = np.rint(shift / region.out.scale * 2.0**FINER)
        limit = 2.0**30
        integers = graph.constant(np.clip(steps, -limit, limit).astype(np.int32))
        ratio = np.asarray(x.grid.scale / region.out.scale, np.float64)
        lo, hi = clamp(region)
        scales = dyadic(region.name, ratio), dyadic(region.name, np.asarray(2.0**-FINER))
        call = ops.call(
            "add", [self.integers[x.name], *scales[0], integers, *scales[1]],
            dtype=region.out.dtype, lo=lo, hi=hi, rounding=self.rounding,
            zero_point_a=x.grid.zero_point, zero_point=region.out.zero_point,
        )  # fmt: skip
        return emitter.emit(call, region.name)

    def _factors(self, emitter: Emitter, region: Region) -> Any:
        """A product with a constant, which is rounded to 15 bits."""
        (x,), factors = region.operands, kinds.factors_of(region.call)
        assert isinstance(x, Leaf)
        assert factors is not None
        step = float(np.abs(factors).max()) / FACTOR_LIMIT
        shape = (*[1] * (len(x.shape) - factors.ndim), *factors.shape)
        integers = graph.constant(np.rint(factors / step).astype(np.int16).reshape(shape))
        ratio = np.asarray(x.grid.scale * step / region.out.scale, np.float64)
        lo, hi = clamp(region)
        call = ops.call(
            "multiply", [self.integers[x.name], integers, *dyadic(region.name, ratio)],
            dtype=region.out.dtype, lo=lo, hi=hi, rounding=self.rounding,
            zero_point_a=x.grid.zero_point, zero_point=region.out.zero_point,
        )  # fmt: skip
        return emitter.emit(call, region.name)

    def _norm(self, emitter: Emitter, region: Region) -> Any:
        (x,) = region.operands
        assert isinstance(x, Leaf)
        attrs, k = graph.attributes(region.call), int(x.shape[-1])
        if k * _reach(x.grid) >= ACCUMULATOR_LIMIT / 2:
            raise StageError(
                f"'{region.name}': {k} channels of {x.grid.dtype} may leave 32 bits. Keep the "
                "layer float (Recipe.keep_float)."
            )
        epsilon = min(round(attrs["epsilon"] * (k / x.grid.scale) ** 2), EPSILON_LIMIT)
        multiplier, offset, shift = affine_steps(region, k)
        constants = [graph.constant(c) for c in (multiplier, offset, np.int64(epsilon))]
        lo, hi = clamp(region)
        more = {"shift": shift, "dtype": region.out.dtype, "lo": lo, "hi": hi}
        op = graph.op_name(region.call).rpartition(".")[2]
        if op == "rms_norm":
            more["zero_point_in"] = x.grid.zero_point
        call = ops.call(
            op, [self.integers[x.name], *constants], **more, zero_point=region.out.zero_point
        )
        return emitter.emit(call, region.name)


def step_of(products: Products) -> float:
    """What one accumulator is worth."""
    return products.a.grid.scale * products.b.grid.scale * products.factor


def affine_steps(region: Region, channels: int) -> tuple[NDArray[Any], NDArray[Any], int]:
    """(multiplier, offset, shift) of a norm: scale and shift in steps of the result.

    Raises:
        StageError: a scale or shift is too large for 32 bits.
    """
    gamma, *beta = (graph.numpy_of(arg).astype(np.float64) for arg in region.call.args[1:])
    ratio = np.broadcast_to(gamma, (channels,)) / region.out.scale
    shifted = np.broadcast_to(beta[0] if beta else 0.0, (channels,)) / region.out.scale
    room = np.log2(max(np.abs(ratio).max(), 2.0**-60))
    beyond = np.log2(max(np.abs(shifted).max(), 2.0**-60) / OFFSET_LIMIT)
    shift = min(FINEST, int(np.floor(30.9 - rows.NORM_BITS - room)), int(np.floor(-beyond)))
    if shift < 1:
        raise StageError(
            f"'{region.name}': one output step is too small beside the layer's scale or shift. "
            "Calibrate on representative data, or keep the layer float (Recipe.keep_float)."
        )
    multiplier = np.rint(ratio * 2.0 ** (shift + rows.NORM_BITS)).astype(np.int32)
    offset = np.rint(shifted * 2.0**shift) + 2.0 ** (shift - 1)
    return multiplier, offset.astype(np.int32), shift


def _reach(grid: Grid) -> int:
    return max(abs(bound - grid.zero_point) for bound in numerics.limits(grid.dtype))
