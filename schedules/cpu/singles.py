"""Rescaling in float32, where that is proven to give the law's integers.

The law is (acc·m + 2^(c-1)) >> c. One fused multiply-add rounds acc·s + 1.5·2^23 to an integer, at
once and without an error before it, and that integer stands in the lowest bits:

    y = bits(fma(float(acc), s, 1.5·2^23)) - bits(1.5·2^23)

That is three instructions instead of seven, but s has 24 bits where m has 31. Both sides grow with
acc, so they agree for every acc, after the clamp, if they agree on both sides of each step of the
law between the bounds. For 8 bits these are 256 steps; s may be chosen, and there is one for most
layers with 4-bit weights or activations, not for most of 8 by 8 bits.

The second branch of a residual add has at most 256 values, and all of them are looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.kernel import Constants, Problem

Column = NDArray[np.int64]  # a value for each channel
Scales = NDArray[np.float64]

MAGIC = 1.5 * 2.0**23  # its float32 neighbours are the integers beside it
BITS = 0x4B400000  # of MAGIC
REACH = 1 << 21  # either branch stays below; so does half of what fits between 2^23 and 2^24
EXACT = 1 << 24  # larger integers are rounded when they become float32


def is_exact(problem: Problem, constants: Constants) -> bool:
    """Whether a layer can be rescaled in float32: `Epilogue.singles`."""
    if numerics.width(problem.rescaled)[1] > 8:  # no kernel rescales to more in float32
        return False
    return rows(problem, constants, int(constants["w"].shape[0])) is not None


def rows(problem: Problem, constants: Constants, channels: int) -> list[Column] | None:
    """The bits of float32 scales: of the accumulators, then of the second branch if there is one.

    Args:
        problem: a layer with weights, behind which stands ``requantize`` or ``add``.
        constants: of the layer.
        channels: length of the rows.

    Returns:
        None where no float32 gives what the law says.
    """
    epilogue = problem.epilogue
    least, most, scales = 0, 0, list[Scales | None]()
    if epilogue.other is not None:
        ends = np.array(numerics.limits(epilogue.other.dtype)) - epilogue.zero_point_other
        values = np.arange(ends[0], ends[1] + 1)[None]
        m, c = _ratio(constants, "_b", channels)
        scaled = _law(values, m, c)
        least, most = int(scaled.min()), int(scaled.max())
        scales.append(_scale(values, scaled, np.abs(ends).max()))
    bounds = (epilogue.lo - epilogue.zero_point - most, epilogue.hi - epilogue.zero_point - least)
    m, c = _ratio(constants, "" if epilogue.kind == "requantize" else "_a", channels)
    if epilogue.rounding != "half_up" or m.min() <= 0 or max(-least, most) >= REACH:
        return None
    scales.insert(0, _first(m, c, bounds, _reach(problem, constants)))
    if any(scale is None for scale in scales):
        return None
    found = [s[:, 0].astype(np.float32) for s in scales if s is not None]
    return [scale.view(np.int32).astype(np.int64) for scale in found]


def _ratio(constants: Constants, suffix: str, channels: int) -> tuple[Column, Column]:
    """(multiplier, shift) of a branch."""
    m, c = (constants[name + suffix].reshape(-1, 1) for name in ("multiplier", "shift"))
    shape = (channels, 1)
    return np.broadcast_to(m, shape).astype(np.int64), np.broadcast_to(c, shape).astype(np.int64)


def _law(x: NDArray[np.int64], m: Column, c: Column) -> NDArray[np.int64]:
    return numerics.scaled(x, m, c, "half_up")


def _reach(problem: Problem, constants: Constants) -> Column:
    """Largest magnitude of the accumulators."""
    weights, bias = np.asarray(constants["w"]), constants["bias"].reshape(-1, 1)
    most = max(abs(limit) for limit in numerics.limits(problem.inputs[0].dtype))
    sums: Column = np.abs(weights.reshape(len(weights), -1).astype(np.int64)).sum(1, keepdims=True)
    return sums * most + np.abs(bias.astype(np.int64))


def _first(m: Column, c: Column, bounds: tuple[float, float], reach: Column) -> Scales | None:
    """Scales for accumulators up to ``reach`` whose results are clamped to ``bounds``."""
    steps = np.arange(bounds[0] + 1, bounds[1] + 1, dtype=np.int64)[None]
    guess = np.ceil((steps - 0.5) / (m / 2.0**c))  # the smallest acc that gives at least a step
    acc = np.clip(guess, -2 * EXACT, 2 * EXACT).astype(np.int64)
    product = acc * m + (np.int64(1) << (c - 1))
    for step, wrong in ((1, (product >> c) < steps), (-1, ((product - m) >> c) >= steps)):
        acc, product = acc + step * wrong, product + step * wrong * m
    at, before = product >> c, (product - m) >> c
    reached = np.abs(acc) <= reach + 1
    proven = (at >= steps) & (before < steps) & (np.abs(acc) < EXACT)
    if not np.all(proven | ~reached) or not steps.size:
        return None
    points = np.concatenate([acc, acc - 1], axis=1) * np.tile(reached, 2)
    return _scale(points, np.concatenate([at, before], axis=1), reach)


def _scale(points: NDArray[np.int64], values: NDArray[np.int64], reach: Any) -> Scales | None:
    """float32 whose products with ``points`` round to ``values`` without a tie, in each row.

    Points of 0 say nothing.
    """
    x, y = points.astype(np.float64), values.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / x
        ends, half = y * inverse, np.abs(inverse) / 2
        low = np.where(x == 0, -np.inf, ends - half).max(axis=1, keepdims=True)
        high = np.where(x == 0, np.inf, ends + half).min(axis=1, keepdims=True)
        middle = ((low + high) / 2).astype(np.float32).astype(np.float64)
        exact = np.abs(middle * x - y) < 0.5  # no product has more than 48 bits
    exact |= points == 0
    return middle if np.all(exact) and np.all(middle * reach < REACH) else None


# ---------------------------------------------------------------- emit


def steps(acc: Any, other: Any, scales: list[Any]) -> Any:
    """``requantize``, or ``add`` with a second branch, before zero point and clamp: int32.

    Args:
        acc: int32 accumulators.
        other: the second branch as int32 without its zero point, or None.
        scales: the rows.
    """
    value = _rounded(acc, scales[0])
    return value if other is None else value + _rounded(other, scales[1])


def _rounded(value: Any, scale: Any) -> Any:
    """value·scale as an integer; LLVM subtracts the bits of both branches at once."""
    lanes = value.ty.dtype.lanes
    kind, magic = f"float32x{lanes}", T.broadcast(tirx.const(MAGIC, "float32"), lanes)
    factors = T.Cast(kind, value), T.reinterpret(kind, scale)
    near = T.call_llvm_pure_intrin(kind, "llvm.fma", *factors, magic)
    bits = T.broadcast(tirx.const(BITS, "int32"), lanes)
    return T.reinterpret(f"int32x{lanes}", near) - bits
