"""Bit planes of activations, and what products of planes add up to.

Σ w·x = Σ_ij ±2^(i+j)·popcount(w_i & x_j) for planes of unsigned and two's complement integers. The
values -1 and +1 of ``int1`` are a sign plane (bit = minus), v = 1 - 2·b, which leaves

    weights of signs           Σ w·x = Σ x - 2·Σ_j c_j·popcount(b & x_j)
    activations of signs       Σ w·x = Σ w - 2·Σ_i c_i·popcount(w_i & b)
    both                       Σ w·x = K - 2·popcount(b ^ b')

Σ w and K are constants of the layer, Σ x a popcount of the activations.

Source: ABQ-LLM (arXiv 2408.08554) for the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu.geometry import Geometry
from nybble.schedules.cpu.lut_rows import emit_rows

WORD = 32  # channels of one word of a plane


@dataclass(frozen=True)
class Planes:
    """The planes of an integer dtype.

    Attributes:
        dtype: of up to 8 bits.
    """

    dtype: str

    @property
    def signs(self) -> bool:
        """Whether the only plane is the sign of -1 and +1."""
        return self.dtype == "int1"

    @property
    def coefs(self) -> tuple[int, ...]:
        """The factor of each plane."""
        signed, bits = numerics.width(self.dtype)
        top = -1 if signed and not self.signs else 1
        return tuple((top if p == bits - 1 else 1) << p for p in range(bits))

    def split(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """(…) values -> (…, planes) bits."""
        if self.signs:
            return (values < 0).astype(np.uint8)[..., None]
        shifts = np.arange(len(self.coefs))
        return ((values.astype(np.int64)[..., None] >> shifts) & 1).astype(np.uint8)


@dataclass(frozen=True)
class BitStaging:
    """The bit planes of one layer's input rows: per pixel and 32 channels a word for each plane.

    The bytes of a word are reversed, in activations as in weights. What comes straight from
    ``vpmovmskb`` LLVM would keep in AVX-512's mask registers, and mixes up when those run out.

    Attributes:
        geometry: of the layer; groups of at least 32 channels.
        planes: of the activations.
        stored: whether they are planes in memory already; the bytes then stay in their order.
    """

    geometry: Geometry
    planes: Planes
    stored: bool = False

    @property
    def dtype(self) -> str:
        """Of the copy."""
        return "uint32"

    @property
    def inside(self) -> int:
        """Channels of one pixel in one group."""
        return self.geometry.c // self.geometry.groups

    @property
    def per_channels(self) -> int:
        """Words of one pixel in one group of channels, per plane."""
        return ceil(self.inside / WORD)

    @property
    def per_pixel(self) -> int:
        """Words of one pixel, per plane."""
        return self.geometry.groups * self.per_channels

    @property
    def run(self) -> int:
        """Words that one run of taps reads, per plane."""
        return self.geometry.run // self.inside * self.per_channels

    @property
    def pitch(self) -> int:
        """Words between two input rows, per plane."""
        return self.geometry.reach * self.per_pixel

    def size(self, rows: int) -> int:
        """Words of the planes that ``rows`` output rows read."""
        return self.geometry.rows_read(rows) * self.pitch * len(self.planes.coefs)

    def emit(self, source: Any, scratch: Any, rows: int, where: tuple[Any, Any]) -> None:
        """Emits the copy (see `nybble.schedules.cpu.lut_template.Staged`)."""
        read = self._words if self.stored else self._pixels
        visit = partial(self._pad, scratch), partial(read, source, scratch)
        emit_rows(self.geometry, self.per_pixel, rows, where, visit)

    def _pad(self, scratch: Any, word: Any, pixels: int) -> None:
        """Planes of pixels in the padding, which are constants."""
        bits = self.planes.split(np.array(self.geometry.pad_value))
        with T.serial(pixels * self.geometry.groups) as p, T.serial(self.per_channels) as g:
            live = self._live(g)
            for plane, bit in enumerate(bits.tolist()):
                to = (word + p * self.per_channels + g) * len(bits) + plane
                T.buffer_store(scratch, live if bit else tirx.const(0, "uint32"), [to])

    def _live(self, g: Any) -> Any:
        """The bits of word ``g`` of a pixel that stand for channels."""
        rest = self.inside % WORD
        full = tirx.const(2**32 - 1, "uint32")
        if not rest:
            return full
        last = tirx.const(int(np.uint32((1 << rest) - 1).byteswap()), "uint32")
        return tirx.Select(g == self.per_channels - 1, last, full)

    def _words(self, source: Any, scratch: Any, from_: Any, word: Any, pixels: int) -> None:
        """Planes of consecutive pixels, which lie one behind the other, as words side by side."""
        count, line = len(self.planes.coefs), self.per_pixel
        begin = T.Bind(tirx.floordiv(from_, 8) * count)
        with T.serial(pixels) as p, T.serial(line) as g:
            for plane in range(count):
                at = begin + ((p * count + plane) * line + g) * 4
                found = T.reinterpret("uint32", source.vload([at], "uint8x4"))
                T.buffer_store(scratch, found, [(word + p * line + g) * count + plane])

    def _pixels(self, source: Any, scratch: Any, from_: Any, word: Any, pixels: int) -> None:
        """Planes of consecutive pixels; a last word that is not full reads what precedes it."""
        rest, dtype = self.inside % WORD, f"{source.dtype}x{WORD}"
        whole = self.inside // WORD
        with T.serial(pixels * self.geometry.groups) as p:
            there, to = T.Bind(from_ + p * self.inside), T.Bind(word + p * self.per_channels)
            with T.serial(whole) as g:
                self._store(scratch, to + g, source.vload([there + g * WORD], dtype), 0)
            if rest:
                last = source.vload([there + (self.inside - WORD)], dtype)
                self._store(scratch, to + whole, last, WORD - rest)

    def _store(self, scratch: Any, word: Any, values: Any, drop: int) -> None:
        """The planes of 32 activations, of which the first ``drop`` do not count."""
        count = len(self.planes.coefs)
        wide = T.Bind(T.reinterpret("uint16x16", values))
        for plane in range(count):
            up = 0 if self.planes.signs else 7 - plane
            moved = T.shift_left(wide, tirx.const(up, "uint16x16")) if up else wide
            tops = T.call_llvm_pure_intrin(
                "int32", "llvm.x86.avx2.pmovmskb", T.reinterpret("int8x32", moved)
            )
            bits = T.reinterpret("uint32", tops)
            bits = T.shift_right(bits, tirx.const(drop, "uint32")) if drop else bits
            turned = T.call_llvm_pure_intrin("uint32", "llvm.bswap", bits)
            T.buffer_store(scratch, turned, [word * count + plane])


def store(planes: Planes, buffer: Any, where: tuple[Any, int], channel: Any, value: Any) -> None:
    """Stores a vector of eight or sixteen channels in planes.

    Args:
        planes: of the tensor.
        buffer: the tensor, flat.
        where: (its pixel, channels of a pixel).
        channel: the first channel of the vector, a multiple of 8.
        value: what is stored, as int32.
    """
    (pixel, channels), count = where, len(planes.coefs)
    lanes, bytes_ = int(value.ty.dtype.lanes), channels // 8
    value = T.Bind(value if lanes == 8 else T.Cast(f"int8x{lanes}", value))
    for plane in range(count):
        bits = _tops(value, None if planes.signs else plane)
        at = (pixel * count + plane) * bytes_ + tirx.floordiv(channel, 8)
        if lanes == 8:
            T.buffer_store(buffer, T.Cast("uint8", bits), [at])
        else:
            both = T.reinterpret("uint8x2", T.Cast("uint16", bits))
            T.buffer_store(buffer, both, [T.ramp(at, 1, 2)])


def _tops(value: Any, plane: int | None) -> Any:
    """Bit ``plane`` of eight int32 or sixteen int8, None the sign, as bits of an int32."""
    wide = int(value.ty.dtype.lanes) == 8
    words = value if wide else T.reinterpret("int16x8", value)
    if plane is not None:
        kind, up = str(words.ty.dtype), (31 if wide else 7) - plane
        words = T.shift_left(words, T.broadcast(tirx.const(up, kind.partition("x")[0]), 8))
    name = "llvm.x86.avx.movmsk.ps.256" if wide else "llvm.x86.sse2.pmovmskb.128"
    kind = "float32x8" if wide else "int8x16"
    return T.call_llvm_pure_intrin("int32", name, T.reinterpret(kind, words))
