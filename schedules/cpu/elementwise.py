"""The law's scalar arithmetic as expressions, and the element-wise ops: requantize, add, borders.

Products and shifts are done in int64 throughout: 32-bit overflow is undefined in generated code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from nybble.ir import numerics
from nybble.schedules.cpu import loops
from nybble.schedules.kernel import Constants, Epilogue, Extent, Kernel, Problem

NAME = "cpu.generic"


def i64(value: int) -> Any:
    """An int64 constant."""
    return tirx.const(value, "int64")


def clamp(value: Any, lo: Any, hi: Any) -> Any:
    """min(max(value, lo), hi) in the value's dtype."""
    dtype = str(value.ty.dtype)
    low, high = tirx.const(lo, dtype), tirx.const(hi, dtype)
    return tirx.min(tirx.max(value, low), high)


def settled(value: Any, lo: int, hi: int, dtype: str) -> Any:
    """`nybble.ir.numerics.settle`: clamped and stored as ``dtype``; in ``int1``, 0 becomes +1."""
    kept = clamp(value, lo, hi)
    if dtype == "int1":
        kept = (kept >> (value.ty.dtype.bits - 1)) | tirx.const(1, str(value.ty.dtype))
    return kept.astype(loops.stored(dtype))


def scaled(x: Any, multiplier: Any, shift: Any, rounding: str) -> Any:
    """`nybble.ir.numerics.scaled` on int64 expressions.

    Every intermediate is used at most twice, since an expression is a tree: the law's own form of
    ``tflite`` would repeat the product twelve times.
    """
    if rounding == "tflite":
        return _tflite(x, multiplier, shift)
    product, half = x * multiplier, i64(1) << (shift - 1)
    if rounding == "half_even":  # a tie goes up only if the floor is odd
        return (product + (half - 1) + ((product >> shift) & 1)) >> shift
    return (product + half) >> shift


def _tflite(x: Any, multiplier: Any, shift: Any) -> Any:
    left, right = tirx.max(31 - shift, i64(0)), tirx.max(shift - 31, i64(0))
    product = clamp(x << left, -(2**31), 2**31 - 1) * multiplier
    # gemmlowp nudges by 2^30 or 1 - 2^30 and divides as C does; for negative products truncation
    # adds 2^31 - 1 before the arithmetic shift, which makes the nudge 2^30 again.
    high = (product + i64(1 << 30)) >> 31
    half = (i64(1) << right) >> 1  # 0 where nothing is shifted out
    away = (high >> 63) & tirx.min(half, i64(1))  # 1 for negatives: their ties go down
    return (high + half - away) >> right


Read = Callable[[str], Any]


def branch(value: Any, zero_point: int, scale: Sequence[Any], rounding: str) -> Any:
    """One requantized branch in int64: scaled(value - zero_point); scale = multiplier, shift."""
    centred = value.astype("int64") - i64(zero_point) if zero_point else value.astype("int64")
    multiplier, shift = (s.astype("int64") for s in scale)
    return scaled(centred, multiplier, shift, rounding)


def epilogue(problem: Problem, acc: Any, other: Any, read: Read, entries: Any = None) -> Any:
    """What is stored for one accumulator, in the output's storage dtype.

    Args:
        problem: the layer; its epilogue's kind is not ``none``.
        acc: the accumulator, bias included.
        other: the second branch's value, None without one.
        read: gives the named constant at the accumulator's channel.
        entries: the table behind the epilogue, None without one.
    """
    fused = problem.epilogue
    if fused.kind == "float":
        total = acc if other is None else acc + other
        low = total if fused.lo == -np.inf else tirx.max(total, tirx.const(fused.lo, "float32"))
        return low if fused.hi == np.inf else tirx.min(low, tirx.const(fused.hi, "float32"))
    multiplier, shift, *second = [read(name) for name in epilogue_names(fused)]
    total = branch(acc, 0, (multiplier, shift), fused.rounding)
    if fused.kind == "add":
        total = total + branch(other, fused.zero_point_other, second, fused.rounding)
    total = total + i64(fused.zero_point)
    total = settled(total, int(fused.lo), int(fused.hi), problem.rescaled)
    if entries is None:
        return total
    found = entries[total.astype("int32") - numerics.limits(problem.rescaled)[0]]
    return found.astype(loops.stored(problem.output.dtype))


def epilogue_names(fused: Epilogue) -> tuple[str, ...]:
    """The constants that an epilogue reads, in the order of the kernel's parameters."""
    return _SCALES.get(fused.kind, ())


_SCALES: dict[str, tuple[str, ...]] = {
    "requantize": ("multiplier", "shift"),
    "add": ("multiplier_a", "shift_a", "multiplier_b", "shift_b"),
}


# ---------------------------------------------------------------- requantize, add


def _broadcast(tensor: te.Tensor, index: tuple[Any, ...]) -> Any:
    """The element of a tensor that NumPy's broadcasting pairs with ``index``."""
    tail = index[len(index) - len(tensor.shape) :]
    at = [0 if _is_one(d) else i for d, i in zip(tensor.shape, tail, strict=True)]
    return tensor(*at)


def _is_one(extent: Any) -> bool:
    return isinstance(extent, int | tirx.IntImm) and int(extent) == 1


def _vector(length: Extent, name: str, dtype: str) -> te.Tensor:
    return te.placeholder((length if isinstance(length, int) else 1,), dtype, name)


def vectors(names: tuple[str, ...], length: Extent, dtypes: Mapping[str, str]) -> dict[str, Any]:
    """Parameters for per-channel constants; a symbolic length means one value for all."""
    return {name: _vector(length, name, dtypes.get(name, "int32")) for name in names}


def reader(constants: Mapping[str, te.Tensor], channel: Any) -> Read:
    """Reads per-channel constants at ``channel``, and single values at 0."""

    def read(name: str) -> Any:
        tensor = constants[name]
        return tensor[0] if _is_one(tensor.shape[0]) else tensor[channel]

    return read


def _swept(define: Callable[[Problem], Any], problem: Problem, *_others: Any) -> Any:
    """The function of a definition, row by row."""
    sch = define(problem)
    reads = len(problem.inputs) * loops.static_size(problem.output.shape)
    lanes = 1 if problem.op == "table" else None
    loops.rows(sch, sch.get_sblock("out"), reads, lanes)
    return sch.mod["main"]


def define_rescaled(problem: Problem) -> Any:
    """``requantize`` and ``add``, unscheduled: each input is one branch."""
    symbols, attrs = loops.Symbols(), dict(problem.attrs)
    names = _rescaled_names(problem)
    inputs = [symbols.tensor(spec, f"x{i}") for i, spec in enumerate(problem.inputs)]
    shape = symbols.extents(problem.output.shape)
    constants = vectors(names, problem.output.shape[-1], {})
    if problem.op == "requantize":
        zeros = [attrs["zero_point_in"]]
    else:
        zeros = [attrs["zero_point_a"], attrs["zero_point_b"]]

    def value(*index: Any) -> Any:
        read, total = reader(constants, index[-1]), i64(attrs["zero_point"])
        for i, (x, zero) in enumerate(zip(inputs, zeros, strict=True)):
            scale = read(names[2 * i]), read(names[2 * i + 1])
            total = total + branch(_broadcast(x, index), zero, scale, attrs["rounding"])
        return settled(total, attrs["lo"], attrs["hi"], problem.output.dtype)

    out = te.compute(shape, value, "out")
    return loops.function([*inputs, *constants.values(), out])


def _rescaled_names(problem: Problem) -> tuple[str, ...]:
    return _SCALES[problem.op]


def pack_rescaled(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Multiplier and shift of each branch."""
    return [constants[name] for name in _rescaled_names(problem)]


# ---------------------------------------------------------------- multiply


def pack_product(_problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Multiplier and shift."""
    return [constants["multiplier"], constants["shift"]]


def define_product(problem: Problem) -> Any:
    """``multiply``, unscheduled."""
    symbols, attrs = loops.Symbols(), dict(problem.attrs)
    a, b = (symbols.tensor(spec, name) for spec, name in zip(problem.inputs, "ab", strict=True))
    shape = symbols.extents(problem.output.shape)
    constants = vectors(("multiplier", "shift"), problem.output.shape[-1], {})

    def value(*index: Any) -> Any:
        read = reader(constants, index[-1])
        steps = [
            _broadcast(x, index).astype("int32") - tirx.const(zero, "int32")
            for x, zero in ((a, attrs["zero_point_a"]), (b, attrs["zero_point_b"]))
        ]
        scale = read("multiplier"), read("shift")
        total = branch(steps[0] * steps[1], 0, scale, attrs["rounding"]) + i64(attrs["zero_point"])
        return settled(total, attrs["lo"], attrs["hi"], problem.output.dtype)

    out = te.compute(shape, value, "out")
    return loops.function([a, b, *constants.values(), out])


# ---------------------------------------------------------------- table


def pack_table(_problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """The entries."""
    return [constants["values"]]


def define_table(problem: Problem) -> Any:
    """``table``, unscheduled."""
    symbols, spec = loops.Symbols(), problem.inputs[0]
    x = symbols.tensor(spec, "x")
    shape = symbols.extents(problem.output.shape)
    low, high = numerics.limits(spec.dtype)
    values = te.placeholder((high - low + 1,), loops.stored(problem.output.dtype), "values")
    out = te.compute(shape, lambda *index: values(x(*index).astype("int32") - low), "out")
    return loops.function([x, values, out])


# ---------------------------------------------------------------- quantize, dequantize


def quantized(x: Any, scale: Any, zero_point: Any, dtype: str) -> Any:
    """`nybble.ir.numerics.quantize` of one float32 expression, in the storage dtype."""
    lo, hi = numerics.limits(dtype)
    # TVM simplifies x != x to false, so NaN is told by its bits.
    magnitude = tirx.reinterpret("int32", x) & tirx.const(0x7FFFFFFF, "int32")
    is_nan = magnitude > tirx.const(0x7F800000, "int32")
    ratio = tirx.Select(is_nan, tirx.const(0.0, "float32"), x) / scale
    steps = tirx.nearbyint(clamp(ratio, -(2.0**24), 2.0**24)).astype("int32")
    return settled(steps + zero_point, lo, hi, dtype)


def dequantized(q: Any, scale: Any, zero_point: Any) -> Any:
    """`nybble.ir.numerics.dequantize` of one integer expression."""
    if str(q.ty.dtype) == "int32":  # the law wraps, which 32-bit code must not do by itself
        centred = (q.astype("int64") - zero_point.astype("int64")).astype("int32")
    else:
        centred = q.astype("int32") - zero_point
    return centred.astype("float32") * scale


def axes_of(problem: Problem) -> tuple[int, ...]:
    """The permutation that is fused in front of a border op (output axis -> input axis)."""
    identity = tuple(range(len(problem.output.shape)))
    return tuple(dict(problem.attrs).get("axes", identity))


def define_border(problem: Problem) -> Any:
    """``quantize`` and ``dequantize``, unscheduled."""
    symbols, axes = loops.Symbols(), axes_of(problem)
    x = symbols.tensor(problem.inputs[0], "x")
    shape = symbols.extents(problem.output.shape)
    axis = problem.attr("axis") % len(shape)
    names = ("scale", "zero_point")
    constants = vectors(names, problem.output.shape[axis], {"scale": "float32"})

    def value(*index: Any) -> Any:
        read = reader(constants, index[axis])
        source = [index[axes.index(d)] for d in range(len(shape))]
        if problem.op == "quantize":
            return quantized(x(*source), read("scale"), read("zero_point"), problem.output.dtype)
        return dequantized(x(*source), read("scale"), read("zero_point"))

    out = te.compute(shape, value, "out")
    return loops.function([x, *constants.values(), out])


def pack_border(_problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Scale and zero point."""
    return [constants["scale"], constants["zero_point"]]


def _always(_problem: Problem, _target: Any) -> str | None:
    return None


_build_rescaled, _build_border = partial(_swept, define_rescaled), partial(_swept, define_border)
REQUANTIZE = Kernel(NAME, "requantize", _always, pack_rescaled, _build_rescaled)
MULTIPLY = Kernel(NAME, "multiply", _always, pack_product, partial(_swept, define_product))
TABLE = Kernel(NAME, "table", _always, pack_table, partial(_swept, define_table))
ADD = Kernel(NAME, "add", _always, pack_rescaled, _build_rescaled)
QUANTIZE = Kernel(NAME, "quantize", _always, pack_border, _build_border)
DEQUANTIZE = Kernel(NAME, "dequantize", _always, pack_border, _build_border)
