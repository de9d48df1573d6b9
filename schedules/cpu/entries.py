"""A table behind the epilogue: `nybble.ir.numerics.table` of what was just rescaled.

Up to sixteen entries are looked up by one ``vpshufb`` in the packed bytes. More would take as many
instructions here as in `nybble.schedules.cpu.lookup`'s own pass, whose vectors are longer: gathers
and ``vpermi2b`` were measured at 0.5 to 1.1 times its speed, so `pays` says no. Machines other than
x86 load lane by lane, as their pass over the tensor would, and save that pass.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.kernel import FEW_ENTRIES, Problem
from nybble.schedules.target import Target

_SHUFFLES = {
    16: "llvm.x86.ssse3.pshuf.b.128",
    32: "llvm.x86.avx2.pshuf.b",
    64: "llvm.x86.avx512.pshuf.b.512",
}


def pays(index: str, target: Target) -> bool:
    """Whether a table of integers of dtype ``index`` is better fused than a pass of its own."""
    return _is_short(index) or not target.has("avx2")


def takes_bytes(problem: Problem) -> bool:
    """Whether x86 looks up packed bytes; else 32-bit lanes before they are packed."""
    return _is_short(problem.rescaled)


def _is_short(index: str) -> bool:
    low, high = numerics.limits(index)
    return high - low < FEW_ENTRIES


def of_bytes(entries: Any, index: Any) -> Any:
    """The entries of a short table for a vector of uint8 on x86, in the output's storage dtype."""
    index, count = T.Bind(index), int(index.ty.dtype.lanes)
    wide = max(count, FEW_ENTRIES)
    if wide > count:
        index = T.Shuffle([index] * (wide // count), list(range(wide)))
    dtype = f"{entries.dtype}x{wide}"
    table = entries.vload([0], dtype)
    found = T.call_llvm_pure_intrin(dtype, _SHUFFLES[wide], table, index)
    return T.Shuffle([found], list(range(count))) if wide > count else found


def of_lanes(entries: Any, index: Any) -> Any:
    """The entries for lanes of int32, as int32."""
    return T.Cast(f"int32x{index.ty.dtype.lanes}", entries[index])
