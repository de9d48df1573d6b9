"""A table behind the epilogue: `nybble.ir.numerics.table` of a vector of 32-bit lanes.

Entries are int32, at least sixteen. Up to sixteen are permuted in registers; more are gathered,
which costs as much as the shuffles of `nybble.schedules.cpu.lookup` and saves a pass over the
tensor. Other machines load lane by lane.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.kernel import LEAST_ENTRIES

EIGHT = 8


def look_up(entries: Any, index: Any, is_x86: bool) -> Any:
    """entries[index] in every lane.

    Args:
        entries: the table as a buffer.
        index: int32 lanes, 0 and more.
        is_x86: whether the machine has AVX2 (8 lanes) or AVX-512 (16 lanes).
    """
    if not is_x86:
        return entries[index]
    lanes, index = int(index.ty.dtype.lanes), T.Bind(index)
    dtype = f"int32x{lanes}"
    if int(entries.shape[0]) > LEAST_ENTRIES:
        return _gathered(entries, index, lanes)
    halves = [entries.vload([at], dtype) for at in range(0, LEAST_ENTRIES, lanes)]
    if lanes > EIGHT:
        return T.call_llvm_pure_intrin(dtype, "llvm.x86.avx512.permvar.si.512", *halves, index)
    low, high = (T.call_llvm_pure_intrin(dtype, "llvm.x86.avx2.permd", h, index) for h in halves)
    return tirx.Select(index < T.broadcast(tirx.const(EIGHT, "int32"), lanes), low, high)


def _gathered(entries: Any, index: Any, lanes: int) -> Any:
    """One gather of int32 entries."""
    dtype, start = f"int32x{lanes}", T.address_of(entries[0])
    nothing = T.broadcast(tirx.const(0, "int32"), lanes)
    if lanes > EIGHT:
        every = T.broadcast(tirx.const(1, "bool"), lanes)
        name, size = "llvm.x86.avx512.mask.gather.dpi.512", tirx.const(4, "int32")
    else:
        every = T.broadcast(tirx.const(-1, "int32"), lanes)
        name, size = "llvm.x86.avx2.gather.d.d.256", tirx.const(4, "int8")
    return T.call_llvm_pure_intrin(dtype, name, nothing, start, index, every, size)
