"""A table behind the epilogue: `nybble.ir.numerics.table` of what was just rescaled.

Packed bytes are looked up in up to sixteen entries by one ``vpshufb``, in more by two ``vpermi2b``
where VBMI is there. Without it a vector of 32-bit lanes is gathered, which was measured to cost
more than a pass over the tensor by `nybble.schedules.cpu.lookup`: `pays` says no. Machines other
than x86 load lane by lane, as their pass over the tensor would, and save that pass.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.kernel import FEW_ENTRIES, Problem
from nybble.schedules.target import CpuTarget

HALF = 128
WIDEST = 64
_SHUFFLES = {
    16: "llvm.x86.ssse3.pshuf.b.128",
    32: "llvm.x86.avx2.pshuf.b",
    64: "llvm.x86.avx512.pshuf.b.512",
}


def pays(index: str, target: CpuTarget) -> bool:
    """Whether a table of integers of dtype ``index`` is better fused than a pass of its own."""
    low, high = numerics.limits(index)
    return high - low < FEW_ENTRIES or permutes(target) or not target.has("avx2")


def permutes(target: CpuTarget) -> bool:
    """Whether the machine has ``vpermi2b``: `nybble.schedules.kernel.Epilogue.permutes`."""
    return target.has("avx512vbmi")


def takes_bytes(problem: Problem) -> bool:
    """Whether x86 looks up packed bytes; else 32-bit lanes before they are packed."""
    low, high = numerics.limits(problem.rescaled)
    return high - low < FEW_ENTRIES or problem.epilogue.permutes


def of_bytes(problem: Problem, entries: Any, index: Any) -> Any:
    """The entries for a vector of uint8 on x86, in the output's storage dtype."""
    low, high = numerics.limits(problem.rescaled)
    few, count = high - low < FEW_ENTRIES, int(index.ty.dtype.lanes)
    wide = max(count, 16) if few else WIDEST
    if wide > count:
        index = T.Bind(index)
        index = T.Shuffle([index] * (wide // count), list(range(wide)))
    found = (_shuffled if few else _permuted)(entries, T.Bind(index), f"{entries.dtype}x{wide}")
    return T.Shuffle([found], list(range(count))) if wide > count else found


def _shuffled(entries: Any, index: Any, dtype: str) -> Any:
    name = _SHUFFLES[int(index.ty.dtype.lanes)]
    return T.call_llvm_pure_intrin(dtype, name, entries.vload([0], dtype), index)


def _permuted(entries: Any, index: Any, dtype: str) -> Any:
    """Two look-ups of 128 entries; bit 7 of the index tells which one counts."""
    rows = [entries.vload([WIDEST * i], dtype) for i in range(4)]
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    halves = [T.call_llvm_pure_intrin(dtype, name, rows[i], index, rows[i + 1]) for i in (0, 2)]
    return T.Select(index < T.broadcast(tirx.const(HALF, "uint8"), WIDEST), *halves)


def of_lanes(entries: Any, index: Any, is_x86: bool) -> Any:
    """The entries for lanes of int32, as int32; ``is_x86`` means AVX2 or AVX-512."""
    lanes = int(index.ty.dtype.lanes)
    if not is_x86:
        return T.Cast(f"int32x{lanes}", entries[index])
    found = T.Bind(_gathered(entries, T.Bind(index), lanes))
    if str(entries.dtype) == "uint8":  # the entry is the lowest of the four bytes
        return found & T.broadcast(tirx.const(255, "int32"), lanes)
    up = T.broadcast(tirx.const(24, "int32"), lanes)
    return T.shift_right(T.shift_left(found, up), up)


def _gathered(entries: Any, index: Any, lanes: int) -> Any:
    """Four bytes from each index on."""
    dtype, start = f"int32x{lanes}", T.address_of(entries[0])
    nothing = T.broadcast(tirx.const(0, "int32"), lanes)
    if lanes > 8:
        every = T.broadcast(tirx.const(1, "bool"), lanes)
        name, size = "llvm.x86.avx512.mask.gather.dpi.512", tirx.const(1, "int32")
    else:
        every = T.broadcast(tirx.const(-1, "int32"), lanes)
        name, size = "llvm.x86.avx2.gather.d.d.256", tirx.const(1, "int8")
    return T.call_llvm_pure_intrin(dtype, name, nothing, start, index, every, size)
