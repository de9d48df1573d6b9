"""Dot products of x86: what one vector instruction (or a short sequence) adds to accumulators.

A `Dot` is all that separates int8 from float32 and AVX2 from AVX-512 in the blocked template of
`nybble.schedules.cpu.conv`. Each one is exact for every operand of its dtypes:

    vnni      acc[l] += Σ_4 u8·s8      vpdpbusd; signed activations enter as x + 128
    pairs     sum[l] += Σ_2 u8·s8      vpmaddubsw in windows that fit 16 bits, then vpmaddwd by ones
    madd      acc[l] += Σ_2 s16·s16    vpmaddwd on widened operands, |pair| <= 2·255·128
    fma       acc[l] += f32·f32

On AVX2 `madd` does as many multiply-adds per instruction as the sign trick (psignb, maddubs,
maddwd, add for 32) but puts a third less work on the two multiplier ports, and it admits a weight
of -128.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu.epilogue import Scaling
from nybble.schedules.cpu.loops import stored


@dataclass(frozen=True)
class Dot:
    """One way to multiply and accumulate a vector of output channels.

    Attributes:
        name: of the instruction set, as in the kernel's name: ``vnni``, ``avx512``, ``avx2``.
        features: CPU features that the code needs.
        lanes: output channels in one vector.
        depth: multiply-adds that one accumulator takes from one application.
        x: dtype of the activations in memory when they are read.
        w: dtype of the packed weights, stored as ``[…][lanes][depth]``.
        acc: dtype of the accumulators.
        registers: vector registers of the machine.
        spare: registers that one application needs besides acc, x and w.
        cost: cycles of one application on a core with two multiplier ports.
        latency: applications that must be in flight for that rate.
        apply: (acc, x broadcast, w) -> acc.
        sums: dtype of a vector of sums that come before acc; empty where there are none.
    """

    name: str
    features: tuple[str, ...]
    lanes: int
    depth: int
    x: str
    w: str
    acc: str
    registers: int
    spare: int
    cost: float
    latency: int
    apply: Callable[[Dot, Any, Any, Any], Any]
    sums: str = ""

    @property
    def arch(self) -> str:
        """Of the machines that have it."""
        return "x86_64"

    @property
    def pixels(self) -> int:
        """Pixels that one application takes: 2 for AArch64's matrix products."""
        return 1

    @property
    def scaling(self) -> Scaling | None:
        """How the epilogue scales, where not as on x86."""
        return None

    @property
    def vector(self) -> str:
        """Dtype of one vector of accumulators."""
        return f"{self.acc}x{self.lanes}"

    def paced(self, flush: int) -> Dot:
        """This dot at the pace of windows of ``flush`` steps (`nybble.schedules.cpu.headroom`)."""
        if not self.sums:
            return self
        if flush <= 2:  # one more register holds the ones that widen
            return replace(self, cost=(3.0, 2.5)[flush - 1] / 3, spare=2)
        return replace(self, cost=(2 + 1.7 / flush) / 3)

    def products(self, x: Any, w: Any) -> Any:
        """Sums of two neighbouring products, for dots with ``sums``."""
        intrin = "avx2.pmadd.ub.sw" if self.lanes == 8 else "avx512.pmaddubs.w.512"
        wide = f"int8x{4 * self.lanes}"
        return T.call_llvm_pure_intrin(self.sums, f"llvm.x86.{intrin}", T.reinterpret(wide, x), w)

    def widened(self, sums: Any) -> Any:
        """``sums`` as int32, two neighbours added."""
        ones = T.broadcast(tirx.const(1, "int16"), 2 * self.lanes)
        return T.call_llvm_pure_intrin(self.vector, _madd_name(self.lanes), sums, ones)

    def offset(self, dtype: str) -> int:
        """What staging adds to activations of ``dtype``; the bias takes it back at pack time."""
        signed, bits = numerics.width(dtype) if self.x == "uint8" else (False, 8)
        return 1 << bits - 1 if signed else 0

    def convert(self, value: Any, dtype: str) -> Any:
        """A vector of activations of ``dtype`` as this dot reads them."""
        offset = self.offset(dtype)
        if offset:
            unsigned = T.reinterpret(self.like(value), value)
            return unsigned + tirx.const(offset, self.like(value))
        return value if stored(dtype) == self.x else T.Cast(self.like(value), value)

    def like(self, value: Any) -> str:
        """The dtype of activations with as many lanes as ``value``."""
        lanes = value.ty.dtype.lanes
        return f"{self.x}x{lanes}" if lanes > 1 else self.x

    def broadcast(self, flat: Any, index: Any) -> Any:
        """``depth`` consecutive activations from a flat buffer, repeated in every lane."""
        if self.depth == 1:
            return T.broadcast(flat[index], self.lanes)
        few = flat.vload([index], f"{self.x}x{self.depth}")
        return T.broadcast(T.reinterpret("int32", few), self.lanes)


def _vnni(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    quads = T.reinterpret(f"int8x{4 * dot.lanes}", x)
    name = f"llvm.x86.avx512.vpdpbusd.{32 * dot.lanes}"
    return T.call_llvm_pure_intrin(dot.vector, name, acc, quads, w)


def _pairs(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    return acc + dot.widened(dot.products(x, w))


def _madd_name(lanes: int) -> str:
    return "llvm.x86.avx2.pmadd.wd" if lanes == 8 else "llvm.x86.avx512.pmaddw.d.512"


def _madd(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    intrin = _madd_name(dot.lanes)
    wide = f"int16x{2 * dot.lanes}"
    pairs = T.call_llvm_pure_intrin(dot.vector, intrin, T.reinterpret(wide, x), T.Cast(wide, w))
    return acc + pairs


def _fma(dot: Dot, acc: Any, x: Any, w: Any) -> Any:
    return T.call_llvm_pure_intrin(dot.vector, "llvm.fma", x, w, acc)


AVX2 = ("avx2", "fma")
AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")

VNNI = Dot("vnni", (*AVX512, "avx512_vnni"), 16, 4, "uint8", "int8", "int32", 32, 0, 0.5, 5, _vnni)
AVX_VNNI = Dot("avxvnni", (*AVX2, "avx_vnni"), 8, 4, "uint8", "int8", "int32", 16, 0, 0.5, 5, _vnni)
PAIRS_AVX512 = Dot(
    "avx512.pairs", AVX512, 16, 4, "uint8", "int8", "int32", 32, 1, 1.0, 2, _pairs, "int16x32"
)
PAIRS_AVX2 = Dot(
    "avx2.pairs", AVX2, 8, 4, "uint8", "int8", "int32", 16, 1, 1.0, 2, _pairs, "int16x16"
)
MADD_AVX512 = Dot("avx512", AVX512, 16, 2, "int16", "int8", "int32", 32, 1, 1.0, 2, _madd)
MADD_AVX2 = Dot("avx2", AVX2, 8, 2, "int16", "int8", "int32", 16, 1, 0.67, 2, _madd)
FMA_AVX512 = Dot("avx512", AVX512, 16, 1, "float32", "float32", "float32", 32, 0, 0.5, 4, _fma)
FMA_AVX2 = Dot("avx2", AVX2, 8, 1, "float32", "float32", "float32", 16, 0, 0.5, 4, _fma)
