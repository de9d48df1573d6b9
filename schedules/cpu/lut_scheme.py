"""Tables of sums: what a look-up returns, how it fits bytes, and how tables are made.

Four activations x0…x3 of one pixel make a group; its table holds 16 sums, one for every set of four
weight bits, so that one ``vpshufb`` or ``tbl`` finds a group's sum for 32 output channels at once:

    and    T[i] = Σ of the x_j whose bit j of i is set: planes of two's complement weights,
           w = Σ 2^p·b_p - 2^(B-1)·b_(B-1)
    whole  T[i] = c0·x0 + c1·x1: two activations and both bits of two weights, i = c1·4 + c0;
           half as much per look-up, but a single sum instead of two planes
    sign   T[i] = Σ ±x_j, minus where the bit is set: weights of -1 and +1 in a single plane

Entries are stored minus their least value, so they are unsigned bytes that can be summed as bytes
``flush`` times; where they do not fit a byte, or would fill it at once, they are split into two
tables (low bits, high bits), each summed by itself. Everything is exact.

Sources: T-MAC (arXiv 2407.00088) and bitnet.cpp (arXiv 2502.11880) for tables over bit planes;
unlike theirs these are never rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics

BITS = 4  # of an index
ENTRIES = 16
_NO_BYTE = 0x80  # an index from which every machine's look-up makes 0
Lookup = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Scheme:
    """How weights of one dtype meet activations of another through tables.

    Attributes:
        signs: whether entries are Σ ±x, else sums over the set bits.
        coefs: the factor of each weight plane.
        factors: by which the bits of an index multiply their activations.
        group: activations of a table.
        low: the least entry; what is stored is entry - low.
        split: bits of the low table; 0 where one table suffices.
        flush: groups that may be summed in a byte, even.
        signed: whether activations are signed.
    """

    signs: bool
    coefs: tuple[int, ...]
    factors: tuple[int, ...]
    group: int
    low: int
    split: int
    flush: int
    signed: bool

    @property
    def planes(self) -> int:
        """Bit planes of the weights."""
        return len(self.coefs)

    @property
    def field(self) -> int:
        """Bits of an index that belong to one activation."""
        return BITS // self.group

    @property
    def tables(self) -> int:
        """Byte tables of one group."""
        return 2 if self.split else 1

    @property
    def bytes(self) -> int:
        """Bytes of all tables of one group."""
        return ENTRIES * self.tables

    def offset(self, groups: int) -> int:
        """What has to be added to the sum of ``groups`` look-ups in all planes."""
        return groups * self.low * sum(self.coefs)

    def codes(self, weights: NDArray[Any]) -> NDArray[np.uint8]:
        """Every weight's bits of an index: (…) -> (…, planes)."""
        if self.signs:
            return (weights < 0).astype(np.uint8)[..., None]
        shifts, kept = np.arange(self.planes), (1 << self.field) - 1
        return ((weights.astype(np.int64)[..., None] >> shifts) & kept).astype(np.uint8)

    def table(self, group: Sequence[int]) -> NDArray[np.uint8]:
        """The tables of one group of activations, as `emit_tables` makes them."""
        bits = (np.arange(ENTRIES)[:, None] >> np.arange(BITS)) & 1
        factors = 1 - 2 * bits if self.signs else bits * np.array(self.factors)
        sums = factors @ np.repeat(np.asarray(group, np.int64), self.field) - self.low
        if not self.split:
            return sums.astype(np.uint8)
        halves = [sums & ((1 << self.split) - 1), sums >> self.split]
        return np.concatenate(halves).astype(np.uint8)


def scheme_of(weights: str, activations: str, products: bool = False) -> Scheme:
    """The scheme for integer dtypes of at most 8 bits.

    Args:
        weights: dtype of the weights.
        activations: dtype of the activations.
        products: whole weights of two bits are looked up, not their planes.

    The number of additions decides: with a flush distance of n, n look-ups cost n ``vpshufb``,
    n - 1 additions and three instructions to widen.
    """
    signs, coefs = weights == "int1", _coefs(weights)
    factors, planes = (coefs * 2, (1,)) if products else ((1,) * BITS, coefs)
    lo, hi = numerics.limits(activations)
    multiples = numerics.limits(weights) if products else (-1, 1) if signs else (0, 1)
    each = np.multiply.outer(multiples, (min(lo, 0), hi))  # absent channels count as 0
    group = 2 if products else BITS
    low, span = group * int(each.min()), group * int(np.ptp(each))
    ways = [(_flush(span), 0), *((_flush(_widest(span, s)), s) for s in range(1, 8))]
    costs = {way: (2 if way[1] else 1) * (2 + 2 / way[0]) for way in ways if way[0] >= 2}
    flush, split = min(costs, key=lambda way: costs[way])
    return Scheme(signs, planes, factors, group, low, split, flush, lo < 0)


def _widest(span: int, split: int) -> int:
    return max((1 << split) - 1, span >> split)


def _flush(span: int) -> int:
    """How many entries of 0…span fit a byte when summed; even."""
    return 255 // span // 2 * 2


def _coefs(weights: str) -> tuple[int, ...]:
    signed, bits = numerics.width(weights)
    if weights == "int1":
        return (1,)
    return tuple(-(1 << p) if signed and p == bits - 1 else 1 << p for p in range(bits))


# ---------------------------------------------------------------- making tables at run time


def emit_tables(scheme: Scheme, lookup: Lookup, quads: Any, count: int) -> list[Any]:
    """Vectors uint8x32 that hold the tables of groups, one behind the other.

    Args:
        scheme: what an entry is.
        lookup: the machine's.
        quads: uint8x32: the ``count`` groups of activations, over and over.
        count: 1 or 2 groups; a single group of a scheme with one table fills half of the vector.
    """
    if not scheme.split:
        return [_narrow(scheme, lookup, quads, count)]
    return [_split(scheme, lookup, quads, (group, count)) for group in range(count)]


def _narrow(scheme: Scheme, lookup: Lookup, quads: Any, count: int) -> Any:
    """One table for each group: all arithmetic modulo 256."""

    def pick(half: int, entry: int, j: int) -> int:
        there = scheme.group * (half % count) + j // scheme.field
        return there if entry >> j & 1 else _NO_BYTE

    terms = [
        _times(
            lookup(quads, bytes_of([pick(h, e, j) for h in range(2) for e in range(ENTRIES)])),
            scheme.factors[j],
        )
        for j in range(BITS)
    ]
    sums = T.Bind((terms[0] + terms[1]) + (terms[2] + terms[3]))
    if scheme.signs:  # Σ over clear bits - Σ over set bits
        turned = [ENTRIES - 1 - e for e in range(ENTRIES)] * 2
        sums = lookup(sums, bytes_of(turned)) - sums
    return sums + tirx.const(-scheme.low % 256, "uint8x32") if scheme.low else sums


def _split(scheme: Scheme, lookup: Lookup, quads: Any, which: tuple[int, int]) -> Any:
    """Both tables of one group (of so many), from sums of 16 bits."""
    start = scheme.group * (which[0] % which[1])
    shift = 128 if scheme.signed else 0  # so that widening by zeros is right

    def pick(entry: int, j: int) -> list[int]:
        return [start + j // scheme.field if entry >> j & 1 else _NO_BYTE, _NO_BYTE]

    if shift:
        quads = T.Bind(quads ^ tirx.const(shift, "uint8x32"))
    terms = [
        _times(
            words(lookup(quads, bytes_of([b for e in range(ENTRIES) for b in pick(e, j)]))),
            scheme.factors[j],
        )
        for j in range(BITS)
    ]
    sums = T.Bind((terms[0] + terms[1]) + (terms[2] + terms[3]))
    members = [sum(f for j, f in enumerate(scheme.factors) if e >> j & 1) for e in range(ENTRIES)]
    if scheme.signs:
        pairs = T.reinterpret("uint64x4", sums)
        swapped = words(T.Shuffle([pairs], [2, 3, 0, 1]))
        turned = [b for e in reversed(range(8)) for b in (2 * e, 2 * e + 1)] * 2
        sums = words(lookup(T.reinterpret("uint8x32", swapped), bytes_of(turned))) - sums
        members = [BITS - 2 * m for m in members]
    level = [(-scheme.low - shift * m) % 65536 for m in members]
    sums = T.Bind(sums + vector_of(level, "uint16"))
    low = sums & tirx.const((1 << scheme.split) - 1, "uint16x16")
    high = T.shift_right(sums, tirx.const(scheme.split, "uint16x16"))
    if lookup is not pshufb:
        return T.Shuffle([T.Cast("uint8x16", low), T.Cast("uint8x16", high)], list(range(32)))
    packed = T.call_llvm_pure_intrin(
        "uint8x32", "llvm.x86.avx2.packuswb",
        T.reinterpret("int16x16", low), T.reinterpret("int16x16", high),
    )  # fmt: skip
    ordered = T.Shuffle([T.reinterpret("uint64x4", packed)], [0, 2, 1, 3])
    return T.reinterpret("uint8x32", ordered)


def _times(vector: Any, factor: int) -> Any:
    """A multiple by ±2^n, modulo the lanes' width."""
    for _ in range(abs(factor).bit_length() - 1):
        vector = T.Bind(vector)
        vector = vector + vector
    return tirx.const(0, str(vector.ty.dtype)) - vector if factor < 0 else vector


def pshufb(table: Any, index: Any) -> Any:
    """x86: looks up in each 16 bytes of ``table``; 0 for indices from 128 on."""
    lanes = index.ty.dtype.lanes
    name = {32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}[lanes]
    return T.call_llvm_pure_intrin(f"uint8x{lanes}", name, table, index)


def tbl(table: Any, index: Any) -> Any:
    """AArch64, likewise, 16 bytes at a time; 0 for indices from 16 on."""
    lanes = int(index.ty.dtype.lanes)
    parts = [list(range(at, at + ENTRIES)) for at in range(0, lanes, ENTRIES)]
    found = [
        T.call_llvm_pure_intrin(
            f"uint8x{ENTRIES}", "llvm.aarch64.neon.tbl1",
            T.Shuffle([table], part), T.Shuffle([index], part),
        )
        for part in parts
    ]  # fmt: skip
    return found[0] if len(found) == 1 else T.Shuffle(found, list(range(lanes)))


def words(vector: Any) -> Any:
    """The same bits as unsigned 16-bit lanes."""
    bits = vector.ty.dtype.lanes * vector.ty.dtype.bits
    return T.reinterpret(f"uint16x{bits // 16}", vector)


def bytes_of(values: Sequence[int]) -> Any:
    """A constant vector of bytes."""
    return vector_of(values, "uint8")


def vector_of(values: Sequence[int], dtype: str) -> Any:
    """A constant vector."""
    return T.Shuffle([tirx.const(v, dtype) for v in values], list(range(len(values))))
