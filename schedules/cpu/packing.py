"""Vectors of 32-bit lanes narrowed to bytes with saturation: ``packssdw``, ``packuswb``.

A cast and a clamp cost four instructions a vector; packing two vectors at once costs four for both,
and the saturation does most of the clamping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu import loops
from nybble.schedules.cpu.entries import of_bytes, takes_bytes
from nybble.schedules.kernel import Epilogue, Problem

_DW = {8: "llvm.x86.avx2.packssdw", 16: "llvm.x86.avx512.packssdw.512"}
_WB = {
    ("uint8", 8): "llvm.x86.avx2.packuswb",
    ("int8", 8): "llvm.x86.avx2.packsswb",
    ("uint8", 16): "llvm.x86.avx512.packuswb.512",
    ("int8", 16): "llvm.x86.avx512.packsswb.512",
}


def pending(problem: Problem) -> tuple[Epilogue, str]:
    """Zero point, clamp and dtype of the bytes that `epilogue.Column.steps` leaves to be packed."""
    epilogue, dtype = problem.epilogue, problem.output.dtype
    if epilogue.table is None:
        return epilogue, dtype
    if not takes_bytes(problem):
        return Epilogue("requantize", *numerics.limits(dtype)), dtype
    low = numerics.limits(problem.rescaled)[0]
    zero, bounds = epilogue.zero_point - low, (epilogue.lo - low, epilogue.hi - low)
    return Epilogue("requantize", *bounds, zero_point=zero), "uint8"


def packed(problem: Problem, entries: Any, halves: Sequence[Any], natural: bool = False) -> Any:
    """What x86 stores for two vectors of `epilogue.Column.steps`: packed, and looked up.

    Args:
        problem: the layer.
        entries: the table behind the epilogue, None without one.
        halves: the vectors.
        natural: see `block`.
    """
    low, high = halves
    value = block(low, high, *pending(problem), natural)
    if entries is None or not takes_bytes(problem):
        return value
    return of_bytes(entries, value)


def block(low: Any, high: Any, epilogue: Epilogue, dtype: str, natural: bool = False) -> Any:
    """As many stored values as two vectors of 32-bit steps hold: zero point, clamp, bytes.

    Args:
        low: the first vector.
        high: the second one.
        epilogue: gives zero point and bounds.
        dtype: of the output, of at most 8 bits.
        natural: ``low`` is the first half of the values; else they are in `quads.lane_order`.
    """
    lanes, stored = int(low.ty.dtype.lanes), loops.stored(dtype)
    value = T.call_llvm_pure_intrin(f"int16x{2 * lanes}", _DW[lanes], low, high)
    if epilogue.zero_point:
        zero = T.broadcast(tirx.const(epilogue.zero_point, "int16"), 2 * lanes)
        value = T.call_llvm_pure_intrin(f"int16x{2 * lanes}", "llvm.sadd.sat", value, zero)
    value = T.Bind(value)
    packed = T.call_llvm_pure_intrin(f"{stored}x{4 * lanes}", _WB[stored, lanes], value, value)
    quads = T.reinterpret(f"int32x{lanes}", packed)
    # Each 128-bit lane now holds four values of low, four of high, and both again.
    order = [lane + half for lane in range(0, lanes, 4) for half in (0, 1)]
    kept = T.Shuffle([quads], order[::2] + order[1::2] if natural else order)
    return clamped(T.reinterpret(f"{stored}x{2 * lanes}", kept), epilogue, dtype)


def clamped(value: Any, epilogue: Epilogue, dtype: str) -> Any:
    """Bytes within the epilogue's bounds, where these are tighter than what saturation gives."""
    stored = loops.stored(dtype)
    low, high = numerics.limits(stored)
    lanes = value.ty.dtype.lanes
    if epilogue.lo > low:
        value = tirx.max(value, T.broadcast(tirx.const(int(epilogue.lo), stored), lanes))
    if epilogue.hi < high:
        value = tirx.min(value, T.broadcast(tirx.const(int(epilogue.hi), stored), lanes))
    if dtype == "int1":  # the sign, 0 counts as +1
        ones = T.broadcast(tirx.const(1, stored), lanes)
        value = T.shift_right(value, T.broadcast(tirx.const(7, stored), lanes)) | ones
    return value
