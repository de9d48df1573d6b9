"""What one vector of codes adds to the accumulators of a vector of output channels.

    vnni     acc[l] += Σ_4 u8·s8                        vpdpbusd, exact
    maddubs  short[2l..] += pairs of u8·s8 in s16       vpmaddubsw, vpaddw; the shorts are widened
             acc[l] += Σ_2 short, before they overflow   (vpmaddwd by ones) every ``flush`` steps
    maddwd   acc[l] += Σ_2 s16·s16                      8-bit weights, whose pairs exceed s16

Codes c of B bits and activations |x| <= X give pairs of at most 2·(2^B - 1)·X, so that
floor(32767 / pair) of them fit 16 bits: 8 for 4 bits, 18 for 3, 43 for 2 (X = 127).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.dot import AVX2, AVX512


@dataclass(frozen=True)
class Multiply:
    """One way to multiply codes and activations.

    Attributes:
        name: of the instruction set, as in the kernel's name.
        features: CPU features that the code needs.
        lanes: output channels in a vector.
        depth: activations that one lane takes in a step.
        x: dtype of the staged activations.
        form: ``vnni``, ``maddubs`` or ``maddwd``.
    """

    name: str
    features: tuple[str, ...]
    lanes: int
    depth: int
    x: str
    form: str

    @property
    def bytes(self) -> int:
        """Bytes of a stored vector: a code each."""
        return self.lanes * self.depth

    @property
    def total(self) -> str:
        """Dtype of a vector of 32-bit accumulators."""
        return f"int32x{self.lanes}"

    @property
    def short(self) -> str:
        """Dtype of a vector of 16-bit accumulators."""
        return f"int16x{2 * self.lanes}"

    @property
    def centre(self) -> int:
        """What is subtracted from a code of 8 bits before it is stored."""
        return 128 if self.form == "maddwd" else 0

    def flush(self, bits: int, most: int) -> int:
        """Steps after which 16-bit accumulators are widened; 0 where there are none.

        Args:
            bits: of the codes.
            most: largest magnitude of an activation.
        """
        return 32767 // (2 * ((1 << bits) - 1) * most) if self.form == "maddubs" else 0

    def codes(self, stored: Any) -> Any:
        """A vector of codes, once taken apart, as `product` reads it."""
        if self.form != "maddwd":
            return stored
        return T.Cast(self.short, T.reinterpret(f"int8x{self.bytes}", stored))

    def broadcast(self, flat: Any, index: Any) -> Any:
        """``depth`` consecutive activations, repeated in every lane."""
        few = flat.vload([index], f"{self.x}x{self.depth}")
        return T.broadcast(T.reinterpret("int32", few), self.lanes)

    def product(self, codes: Any, x: Any) -> Any:
        """Pairs of products: a vector of shorts for ``maddubs``, of int32 for ``maddwd``."""
        wide = self.lanes == 16
        if self.form == "maddubs":
            name = "llvm.x86.avx512.pmaddubs.w.512" if wide else "llvm.x86.avx2.pmadd.ub.sw"
            bytes_ = T.reinterpret(f"int8x{self.bytes}", x)
            return T.call_llvm_pure_intrin(self.short, name, codes, bytes_)
        return self._pairs(codes, T.reinterpret(self.short, x))

    def add(self, acc: Any, codes: Any, x: Any) -> Any:
        """The accumulators (shorts for ``maddubs``) after one step."""
        if self.form != "vnni":
            return acc + self.product(codes, x)
        bytes_, name = T.reinterpret(f"int8x{self.bytes}", x), "llvm.x86.avx512.vpdpbusd.512"
        return T.call_llvm_pure_intrin(self.total, name, acc, codes, bytes_)

    def widened(self, shorts: Any) -> Any:
        """Sums of pairs of shorts."""
        return self._pairs(shorts, T.broadcast(tirx.const(1, "int16"), 2 * self.lanes))

    def _pairs(self, a: Any, b: Any) -> Any:
        wide = self.lanes == 16
        name = "llvm.x86.avx512.pmaddw.d.512" if wide else "llvm.x86.avx2.pmadd.wd"
        return T.call_llvm_pure_intrin(self.total, name, a, b)


def multiply(isa: str, bits: int) -> Multiply:
    """How an instruction set multiplies codes of a width."""
    if isa == "vnni":
        return Multiply(isa, (*AVX512, "avx512_vnni"), 16, 4, "int8", "vnni")
    features, lanes = (AVX2, 8) if isa == "avx2" else (AVX512, 16)
    if bits == 8:
        return Multiply(isa, features, lanes, 2, "int16", "maddwd")
    return Multiply(isa, features, lanes, 4, "int8", "maddubs")


INSTRUCTION_SETS = ("vnni", "avx512", "avx2")
"""By preference."""
