"""Dot products of AArch64, for the blocked template: vectors of four int32 lanes.

    usmmla    Σ_8 u8·s8 of two pixels by two channels  (i8mm; `nybble.schedules.cpu.mmla`)
    smmla     Σ_8 s8·s8 likewise
    usdot     acc[l] += Σ_4 u8·s8      i8mm
    sdot      acc[l] += Σ_4 s8·s8      dotprod; uint8 activations enter as x - 128
    neon      acc[l] += Σ_2 s8·s8      smull, sadalp; |pair| <= 2·128·128
    mlal      acc[l] += s16·s16        smlal, for depthwise layers: any operand of 8 bits
    fma       acc[l] += f32·f32

All are exact for every operand. Scaling takes two instructions: ``sqdmulh`` gives
floor(acc·m / 2^31), which saturates for no positive m, and ``srshl`` by 31 - c rounds half up:

    floor((floor(acc·m / 2^31) + 2^(c-32)) / 2^(c-31)) = floor((acc·m + 2^(c-1)) / 2^c)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu.dot import Dot
from nybble.schedules.cpu.epilogue import Scaling

LANES = 4
REGISTERS = 30  # of 32: LLVM loads activations ahead and would spill accumulators for them


@dataclass(frozen=True)
class ArmDot(Dot):
    """A dot product of AArch64."""

    @property
    def arch(self) -> str:
        """Of the machines that have it."""
        return "aarch64"

    @property
    def scaling(self) -> Scaling | None:
        """The epilogue's scaling in two instructions."""
        return scaled

    def offset(self, dtype: str) -> int:
        """What staging adds to activations of ``dtype``; the bias takes it back at pack time."""
        if self.x == "int8":
            return -128 if numerics.limits(dtype)[1] > 127 else 0
        return super().offset(dtype)

    def broadcast(self, flat: Any, index: Any) -> Any:
        """``depth`` consecutive activations from a flat buffer, repeated in every lane."""
        if self.depth == 1:
            return T.broadcast(flat[index], self.lanes)
        few = flat.vload([index], f"{self.x}x{self.depth}")
        return T.broadcast(T.reinterpret(f"int{8 * self.depth}", few), self.lanes)


@dataclass(frozen=True)
class MatrixDot(ArmDot):
    """A matrix product of two pixels by two channels."""

    @property
    def pixels(self) -> int:
        """Pixels that one application takes."""
        return 2


def scaled(value: Any, multiplier: Any, _rounding: Any, right: Any) -> Any:
    """(high(value·multiplier) + 2^(right-1)) >> right, for vectors of four int32."""
    words = f"int32x{LANES}"
    high = T.call_llvm_pure_intrin(words, "llvm.aarch64.neon.sqdmulh", value, multiplier)
    left = right ^ T.broadcast(tirx.const(-1, "int32"), LANES)  # ~right = -(right + 1)
    return T.call_llvm_pure_intrin(words, "llvm.aarch64.neon.srshl", high, left)


def _sdot(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    return T.call_llvm_pure_intrin(dot.vector, "llvm.aarch64.neon.sdot", acc, w, _bytes(x, 16))


def _usdot(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    return T.call_llvm_pure_intrin(dot.vector, "llvm.aarch64.neon.usdot", acc, _bytes(x, 16), w)


def _usmmla(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    return T.call_llvm_pure_intrin(dot.vector, "llvm.aarch64.neon.usmmla", acc, x, w)


def _smmla(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    return T.call_llvm_pure_intrin(dot.vector, "llvm.aarch64.neon.smmla", acc, x, w)


def _mull(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    products = T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.smull", _bytes(x, 8), w)
    return acc + T.call_llvm_pure_intrin(dot.vector, "llvm.aarch64.neon.saddlp", products)


def _mlal(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    return acc + T.call_llvm_pure_intrin(dot.vector, "llvm.aarch64.neon.smull", x, w)


def _fma(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    return T.call_llvm_pure_intrin(dot.vector, "llvm.fma", x, w, acc)


def _bytes(vector: Any, count: int) -> Any:
    return T.reinterpret(f"int8x{count}", vector)


NEON = ("asimd",)
DOTPROD = (*NEON, "asimddp")
I8MM = (*DOTPROD, "i8mm")

USMMLA = MatrixDot(
    "usmmla", I8MM, LANES, 8, "uint8", "int8", "int32", REGISTERS, 2, 0.5, 4, _usmmla
)
SMMLA = MatrixDot("smmla", I8MM, LANES, 8, "int8", "int8", "int32", REGISTERS, 2, 0.5, 4, _smmla)
USDOT = ArmDot("usdot", I8MM, LANES, 4, "uint8", "int8", "int32", REGISTERS, 0, 0.5, 4, _usdot)
SDOT = ArmDot("sdot", DOTPROD, LANES, 4, "int8", "int8", "int32", REGISTERS, 0, 0.5, 4, _sdot)
MULL = ArmDot("neon", NEON, LANES, 2, "int8", "int8", "int32", REGISTERS, 1, 1.0, 2, _mull)
MLAL = ArmDot("neon", NEON, LANES, 1, "int16", "int16", "int32", REGISTERS, 0, 0.5, 4, _mlal)
FMA = ArmDot("neon", NEON, LANES, 1, "float32", "float32", "float32", REGISTERS, 0, 0.5, 4, _fma)
