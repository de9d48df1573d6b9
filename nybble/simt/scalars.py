"""PTX's arithmetic on registers of one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nybble.simt.functions import dot4, leading_zeros, popcount
from nybble.simt.issue import Array, Issue
from nybble.simt.strand import Strand
from nybble.simt.values import Mask, cast, fma

Handler = Callable[[Issue, Strand, Mask], None]
_BASE = {"s": "i", "u": "u", "b": "u", "f": "f"}


def dtype_of(kind: str) -> np.dtype[Any]:
    """NumPy's dtype of a PTX type; of one element where it is packed: float16 for ``f16x2``."""
    one = kind.partition("x")[0]
    return np.dtype(f"{_BASE[one[0]]}{int(one[1:]) // 8}")


def typed(array: Array, kind: str) -> Array:
    """Registers, ``(lanes,)``, as values of a PTX type: ``(lanes, elements)``."""
    return np.ascontiguousarray(array)[:, None].view(dtype_of(kind))


def _each(operation: Callable[..., Array], names: str = "ab") -> Handler:
    """An instruction that does the same to every element, of the type in its text."""

    def do(issue: Issue, s: Strand, m: Mask) -> None:
        kind = issue.mods["type"]
        if kind.startswith("bf") or any(issue.mods.get(key) for key in ("sat", "srctype", "oob")):
            raise issue.scope.refuse(issue.text)
        if issue.mods.get("rnd", "rn") not in ("", "rn"):
            raise issue.scope.refuse(issue.text)
        values = [typed(issue.one(name, s, m), kind) for name in names]
        result = operation(*values).astype(values[0].dtype)
        if issue.mods.get("relu"):
            result = np.maximum(result, 0)
        issue.write("d", s, m, result.view(f"u{result.dtype.itemsize * result.shape[1]}"))

    return do


def _shift(operation: Callable[[Array, Array], Array], fill: bool) -> Handler:
    """Shifts: by more than the width as by the width (PTX ISA, "shl", "shr")."""

    def do(issue: Issue, s: Strand, m: Mask) -> None:
        a = typed(issue.one("a", s, m), issue.mods["type"])
        count = issue.one("b", s, m).astype(np.uint32)[:, None]
        bits = a.dtype.itemsize * 8
        kept = operation(a, np.minimum(count, bits - 1).astype(a.dtype))
        over = operation(kept, np.ones_like(a)) if fill else np.zeros_like(a)
        issue.write("d", s, m, np.where(count < bits, kept, over).view(f"u{a.dtype.itemsize}"))

    return do


def _lop3(issue: Issue, s: Strand, m: Mask) -> None:
    """Any function of three bits: bit ``4a + 2b + c`` of the table (PTX ISA, "lop3")."""
    a, b, c = (issue.one(name, s, m).view(np.uint32) for name in "abc")
    table, result = issue.number("immLut", s), np.zeros(s.lanes, np.uint32)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    issue.write("d", s, m, result)


def _prmt(issue: Issue, s: Strand, m: Mask) -> None:
    """Bytes of two registers by four selectors; bit 3 spreads the sign (PTX ISA, "prmt")."""
    if issue.mods["mode"]:
        raise issue.scope.refuse(issue.text)
    a, b, c = (issue.one(name, s, m).view(np.uint32) for name in "abc")
    pool = np.stack([a, b], axis=1).view(np.uint8)
    select = c[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)
    picked = np.take_along_axis(pool, (select & 7).astype(np.int64), axis=1)
    signs = np.where(picked > 127, 255, 0).astype(np.uint8)
    issue.write("d", s, m, np.where(select & 8, signs, picked).astype(np.uint8).view(np.uint32))


def _popc(issue: Issue, s: Strand, m: Mask) -> None:
    issue.write("d", s, m, popcount(issue.one("a", s, m)).astype(np.uint32))


def _clz(issue: Issue, s: Strand, m: Mask) -> None:
    issue.write("d", s, m, leading_zeros(issue.one("a", s, m)).astype(np.uint32))


def _dp4a(issue: Issue, s: Strand, m: Mask) -> None:
    a, b, c = (issue.one(name, s, m) for name in "abc")
    signed = (issue.mods["atype"] == "s32", issue.mods["btype"] == "s32")
    issue.write("d", s, m, dot4(a, b, c, signed))


def _wide(a: Array) -> Array:
    return a.astype(np.int64 if a.dtype.kind == "i" else np.uint64)


def _product(issue: Issue, s: Strand, m: Mask) -> None:
    """``mul`` and ``mad`` of integers: low or high half, or the whole product."""
    kind, mode = issue.mods["type"], issue.mods["mode"]
    a, b = (_wide(typed(issue.one(name, s, m), kind)[:, 0]) for name in "ab")
    size = dtype_of(kind).itemsize
    if size == 8 and mode == "hi":
        raise issue.scope.refuse(issue.text)
    result = a * b
    if mode == "hi":
        result >>= np.asarray(8 * size).astype(result.dtype)
    if issue.has("c"):
        c = issue.one("c", s, m)
        result = result + _wide(
            c.view(c.dtype.str.replace("u" if a.dtype.kind == "i" else "i", a.dtype.kind))
        )
    out = 2 * size if mode == "wide" else size
    issue.write("d", s, m, result.astype(f"{a.dtype.kind}{out}").view(f"u{out}"))


def _funnel(issue: Issue, s: Strand, m: Mask) -> None:
    """``shf``: 32 bits out of two registers (PTX ISA, "shf")."""
    a, b = (issue.one(name, s, m).view(np.uint32).astype(np.uint64) for name in "ab")
    count = issue.one("c", s, m).astype(np.uint64)
    count = (
        count & np.uint64(31) if issue.mods["mode"] == "wrap" else np.minimum(count, np.uint64(32))
    )
    both = b << np.uint64(32) | a
    left = issue.mods["dir"] == "l"
    result = both << count >> np.uint64(32) if left else both >> count
    issue.write("d", s, m, result.astype(np.uint32))


def _bit_field(issue: Issue, s: Strand, m: Mask) -> None:
    """``bfe`` of 32 bits: ``c`` bits from bit ``b`` on (PTX ISA, "bfe")."""
    if issue.mods["type"] not in ("u32", "s32"):
        raise issue.scope.refuse(issue.text)
    signed = issue.mods["type"] == "s32"
    a = issue.one("a", s, m).view(np.int32 if signed else np.uint32).astype(np.int64)
    start, count = (issue.one(name, s, m).astype(np.int64) & 255 for name in "bc")
    field = np.where(start > 63, np.where(a < 0, -1, 0), a >> np.minimum(start, 63))
    bits = np.minimum(count, 32)
    field &= (np.int64(1) << bits) - 1
    if signed:
        top = np.int64(1) << np.maximum(bits - 1, 0)
        field = np.where(bits > 0, (field ^ top) - top, 0)
    issue.write("d", s, m, field.astype(np.int32).view(np.uint32))


def _move(issue: Issue, s: Strand, m: Mask) -> None:
    """``mov``, also from or to several registers: the bits stay in order."""
    a = np.ascontiguousarray(issue.read("a", s, m))
    _, _, count = issue.destination("d", s, m)
    width = a.shape[1] * a.dtype.itemsize // count
    issue.write("d", s, m, a.view(f"u{width}"))


def _convert_pair(issue: Issue, s: Strand, m: Mask) -> None:
    """``cvt.rn.f16x2.f32 d, a, b``: a becomes the upper half (PTX ISA, "cvt")."""
    if issue.mods["rnd"] != "rn" or issue.mods["dtype"] != "f16x2" or issue.mods["satfinite"]:
        raise issue.scope.refuse(issue.text)
    pair = np.stack([issue.one("b", s, m), issue.one("a", s, m)], axis=1).astype(np.float16)
    if issue.mods["relu"]:
        pair = np.maximum(pair, 0)
    issue.write("d", s, m, pair.view(np.uint32)[:, 0])


_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _compare(issue: Issue, s: Strand, m: Mask) -> None:
    """``setp``: a predicate, which is 0 or 1 in a 32-bit register here."""
    compare = _COMPARE.get(issue.mods["cmp"])
    if compare is None:
        raise issue.scope.refuse(issue.text)
    a, b = (typed(issue.one(name, s, m), issue.mods["type"])[:, 0] for name in "ab")
    issue.write("p", s, m, compare(a, b).astype(np.uint32))


def _select(issue: Issue, s: Strand, m: Mask) -> None:
    """``selp``: a where the predicate holds, else b."""
    a, b = issue.one("a", s, m), issue.one("b", s, m)
    issue.write("d", s, m, np.where(issue.one("c", s, m) != 0, a, b))


def _insert(issue: Issue, s: Strand, m: Mask) -> None:
    """``bfi`` of 32 bits: ``d`` bits of a into b, from bit ``c`` on (PTX ISA, "bfi")."""
    if issue.mods["type"] != "b32":
        raise issue.scope.refuse(issue.text)
    a, b = (issue.one(name, s, m).view(np.uint32).astype(np.uint64) for name in "ab")
    start, count = (issue.one(name, s, m).astype(np.uint64) & np.uint64(255) for name in "cd")
    room = np.minimum(start, np.uint64(32))
    field = (np.uint64(1) << np.minimum(count, np.uint64(32))) - np.uint64(1)
    result = b & ~(field << room) | (a & field) << room
    issue.write("f", s, m, result.astype(np.uint32))


def _convert(issue: Issue, s: Strand, m: Mask) -> None:
    """``cvt`` between integers, and between integers and floats (PTX ISA, "cvt")."""
    mods = issue.mods
    if mods["relu"] or mods["satfinite"] or mods["rnd"] not in ("", "rn", "rni", "rzi"):
        raise issue.scope.refuse(issue.text)
    source, target = dtype_of(mods["atype"]), dtype_of(mods["dtype"])
    value = typed(issue.one("a", s, m), mods["atype"])[:, 0]
    if target.kind != "f" and source.kind == "f":
        value = cast(np.rint(value) if mods["rnd"] == "rni" else value, target)
    elif target.kind != "f" and mods["sat"]:
        limits = np.iinfo(target)
        value = np.clip(value.astype(np.int64), limits.min, limits.max).astype(target)
    else:
        value = value.astype(target)
        if mods["sat"]:
            value = np.clip(np.nan_to_num(value, nan=0.0), 0, 1)
    register, _, _ = issue.destination("d", s, m)
    width = register.memory.item
    if target.kind != "f" and width > target.itemsize:
        value = value.astype(f"{target.kind}{width}")  # extended by its sign
    issue.write("d", s, m, value.view(f"u{value.dtype.itemsize}"))


INSTRUCTIONS: dict[str, Handler] = {
    "lop3": _lop3,
    "prmt": _prmt,
    "popc": _popc,
    "clz": _clz,
    "dp4a": _dp4a,
    "mul_int": _product,
    "mul_wide": _product,
    "mad_int": _product,
    "mad_wide": _product,
    "shf": _funnel,
    "bfe": _bit_field,
    "shl": _shift(np.left_shift, fill=False),
    "shr": _shift(np.right_shift, fill=True),
    "and": _each(np.bitwise_and),
    "or": _each(np.bitwise_or),
    "xor": _each(np.bitwise_xor),
    "not": _each(np.invert, "a"),
    "add_int": _each(np.add),
    "sub_int": _each(np.subtract),
    "add": _each(np.add),
    "sub": _each(np.subtract),
    "mul": _each(np.multiply),
    "add_half": _each(np.add),
    "sub_half": _each(np.subtract),
    "mul_half": _each(np.multiply),
    "fma": _each(fma, "abc"),
    "fma_half": _each(fma, "abc"),
    "min": _each(np.fmin),
    "max": _each(np.fmax),
    "min_int": _each(np.minimum),
    "max_int": _each(np.maximum),
    "neg_int": _each(np.negative, "a"),
    "neg": _each(np.negative, "a"),
    "neg_half": _each(np.negative, "a"),
    "setp": _compare,
    "selp": _select,
    "bfi": _insert,
    "cvt": _convert,
    "cvt_f16x2_f32": _convert_pair,
    "mov": _move,
    "mov_pack_b16x2": _move,
    "mov_unpack_b16x2": _move,
    "mov_pack_b32x2": _move,
    "mov_unpack_b32x2": _move,
    "mov_pack_b16x4": _move,
    "mov_unpack_b16x4": _move,
}
