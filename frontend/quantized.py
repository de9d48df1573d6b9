"""Quantize and dequantize as importers emit them: integers of the source model keep their meaning.

An activation of integers is a ``relax.Var`` of an integer dtype; a constant of integers is a NumPy
array until something dequantizes it, a `Stored` afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from nybble.frontend import extents
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused
from nybble.frontend.stored import Affine, Stored, affine, integer_type, stored
from nybble.ir import graph, numerics, ops

ACCUMULATORS = "int32"
UNSCALED = affine(np.float32(1))  # integers as the floats of the same value


def is_integer(value: Value) -> bool:
    """Whether a value is an activation of integers."""
    return isinstance(value, relax.Var) and graph.dtype_of(value).startswith(("int", "uint"))


def dequantize(build: Builder, q: Value, on: Affine, name: str) -> Value:
    """The floats that integers stand for: of constants a `Stored`, of activations a variable."""
    if not isinstance(q, relax.Var):
        return stored(q, on)
    if not is_integer(q):
        raise Refused(f"dequantizes {graph.dtype_of(q)}")
    if on.block:
        return _in_blocks(build, q, on, name, lambda rows, of: dequantize(build, rows, of, name))
    return build.emit(ops.call("dequantize", [q, *_constants(q, on)], axis=on.axis), name)


def quantize(build: Builder, x: Value, on: Affine, dtype: str, name: str) -> Value:
    """Floats as integers of ``dtype``: of constants an array, of activations a variable."""
    if not isinstance(x, relax.Var):
        if on.block:
            raise Refused("quantizes a constant in blocks; store it as integers")
        law = ops.VOCABULARY["quantize"].law
        return law(np.asarray(x), on.scale, on.zero_point, dtype=dtype, axis=on.axis)
    if on.block:
        step = lambda rows, of: quantize(build, rows, of, dtype, name)  # noqa: E731
        return _in_blocks(build, x, on, name, step)
    call = ops.call("quantize", [x, *_constants(x, on)], dtype=dtype, axis=on.axis)
    return build.emit(call, name)


def _constants(x: Any, on: Affine) -> list[Any]:
    sizes = extents.shape(x)
    if not (on.scale > 0).all():
        raise Refused("a scale of its activations is not positive")
    if not on.is_single:
        if not -len(sizes) <= on.axis < len(sizes):
            raise Refused(f"its axis {on.axis} is none of {extents.words(sizes)}")
        if sizes[on.axis] != len(on.scale):
            raise Refused(f"{len(on.scale)} scales along axis {on.axis} of {extents.words(sizes)}")
    return [graph.constant(on.scale, "float32"), graph.constant(on.zero_point, "int32")]


def _in_blocks(build: Builder, x: Any, on: Affine, name: str, step: Any) -> Value:
    """A border with a scale for every block: the blocks become rows, each with its own scale.

    before: x (…, n·block, …), scale (…, n, …)
    --->
    after: x as (rows, block) with the scales as a vector along the rows, and back
    """
    sizes = extents.shape(x)
    axis, block = on.axis % len(sizes), on.block
    if any(not isinstance(size, int) for size in sizes):
        raise Refused("needs a static shape for its blocks")
    if sizes[axis] % block or on.scale.shape != _blocked(sizes, axis, block):
        raise Refused(f"blocks of {block} do not fit {extents.words(sizes)}")
    split = [*sizes[: axis + 1], block, *sizes[axis + 1 :]]
    split[axis] = sizes[axis] // block
    order = [a for a in range(len(split)) if a != axis + 1] + [axis + 1]
    apart = build.transpose(build.reshape(x, split, f"{name}.blocks"), order, f"{name}.order")
    rows = build.reshape(apart, [prod(on.scale.shape), block], f"{name}.rows")
    made = step(rows, Affine(on.scale.reshape(-1), on.zero_point.reshape(-1), axis=0))
    back = build.reshape(made, [split[a] for a in order], f"{name}.apart")
    there = build.transpose(back, np.argsort(order).tolist(), f"{name}.back")
    return build.reshape(there, sizes, f"{name}.whole")


def _blocked(sizes: Sequence[Any], axis: int, block: int) -> tuple[Any, ...]:
    return (*sizes[:axis], sizes[axis] // block, *sizes[axis + 1 :])


def raw(build: Builder, q: Value, name: str, zero: int = 0) -> Value:
    """Integers as floats that are ``zero`` less, exactly: what moves them moves these."""
    return dequantize(build, q, affine(np.float32(1), np.int32(zero)), name)


def raw_back(build: Builder, x: Value, dtype: str, name: str, zero: int = 0) -> Value:
    """Inverse of `raw`."""
    return quantize(build, x, affine(np.float32(1), np.int32(zero)), dtype, name)


def type_of(value: Value) -> str:
    """The integer dtype of an activation or of an array of a file.

    Raises:
        Refused: it holds no integers.
    """
    if isinstance(value, Stored):
        raise Refused("holds floats where integers are needed")
    if not isinstance(value, relax.Var):
        return integer_type(np.asarray(value))
    dtype = graph.dtype_of(value)
    if not is_integer(value):
        raise Refused(f"holds {dtype} where integers are needed")
    return dtype


def held_in(dtype: str) -> str:
    """The dtype in which callers see a tensor: integers below 8 bits lie one in a byte."""
    return str(numerics.storage(dtype)) if dtype.startswith(("int", "uint")) else dtype


def check_width(dtype: str) -> str:
    """The dtype, if activations may have it: 1 to 16 bits, or accumulators of 32.

    Raises:
        Refused: another one.
    """
    if not dtype.startswith(("int", "uint")):
        raise Refused(f"quantizes to {dtype}; only integers have an integer form")
    if numerics.width(dtype)[1] > 16 and dtype != ACCUMULATORS:
        raise Refused(f"quantizes to {dtype}; activations have at most 16 bits")
    return dtype


# ---------------------------------------------------------------- scales that the network computes


def quantize_by(build: Builder, operands: Sequence[Value], dtype: str, name: str) -> Value:
    """Float operators of x / scale + zero_point: where no constant tells the grid.

    Args:
        build: where it is emitted.
        operands: x, scale and zero point (or None); one scale for the whole tensor.
        dtype: of the result.
        name: of the result.
    """
    x, scale, zero_point = operands
    lo, hi = numerics.limits(dtype)
    steps = build.binary("divide", x, _scalar(scale), f"{name}.steps")
    q = build.emit(relax.op.round(steps), f"{name}.round")
    if zero_point is not None:
        zero = build.cast(_scalar(zero_point), "float32", f"{name}.zero_point")
        q = build.binary("add", q, zero, f"{name}.shifted")
    return build.cast(build.clip(q, lo, hi, f"{name}.clip"), dtype, name)


def dequantize_by(build: Builder, operands: Sequence[Value], name: str) -> Value:
    """(q - zero_point) · scale in float operators, as `quantize_by`."""
    q, scale, zero_point = operands
    centred = build.cast(q, "float32", f"{name}.float")
    if zero_point is not None:
        zero = build.cast(_scalar(zero_point), "float32", f"{name}.zero_point")
        centred = build.binary("subtract", centred, zero, f"{name}.centred")
    return build.binary("multiply", centred, _scalar(scale), name)


def _scalar(value: Value) -> Value:
    if any(size != 1 for size in extents.shape(value)):
        raise Refused("computes a scale for every channel; only one for the whole tensor is known")
    return value
