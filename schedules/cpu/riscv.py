"""Convolution and linear on RISC-V with vectors, from the blocked template.

    rvv       acc[l] += s16·s16        vwmacc.vx: a scalar activation times eight channels
    fma       acc[l] += f32·f32        vfmacc.vf

Vectors are of eight lanes, two registers of the shortest kind (128 bits); LLVM chooses the same
code for longer ones. Activations are staged as s16 and weights widened as they are read, which is
exact for every operand. Scaling multiplies in 64 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import conv, depthwise
from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.epilogue import Scaling

LANES = 8
REGISTERS = 15  # pairs of vector registers, but the one that holds weights


@dataclass(frozen=True)
class RiscvDot(Dot):
    """A dot product of RISC-V's vector extension."""

    @property
    def arch(self) -> str:
        """Of the machines that have it."""
        return "riscv64"

    @property
    def scaling(self) -> Scaling | None:
        """The epilogue's scaling."""
        return scaled


def scaled(value: Any, multiplier: Any, rounding: Any, right: Any) -> Any:
    """(high(value·multiplier) + rounding) >> right."""
    long, words = f"int64x{LANES}", f"int32x{LANES}"
    product = T.Cast(long, value) * T.Cast(long, multiplier)
    high = T.Cast(words, T.shift_right(product, T.broadcast(tirx.const(32, "int64"), LANES)))
    return T.shift_right(high + rounding, right)


def _wmacc(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    return acc + T.Cast(dot.vector, x) * T.Cast(dot.vector, w)


def _fma(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    return T.call_llvm_pure_intrin(dot.vector, "llvm.fma", x, w, acc)


WMACC = RiscvDot("rvv", ("v",), LANES, 1, "int16", "int8", "int32", REGISTERS, 1, 1.0, 2, _wmacc)
FMA = RiscvDot("rvv", ("v",), LANES, 1, "float32", "float32", "float32", REGISTERS, 0, 1.0, 4, _fma)

KERNELS = (
    *depthwise.families((replace(WMACC, w="int16"), FMA)),
    *conv.families((WMACC, FMA)),
)
