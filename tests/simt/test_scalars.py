"""Arithmetic of one thread, shuffles and injected functions, each beside a statement in Python."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm.script import tirx as T

from nybble import simt
from nybble.simt.values import cast, fma

Array = NDArray[Any]
LANES = 64


def kernel(text: str, count: int, dtype: str, immediate: int | None) -> Any:
    """One instruction on ``count`` registers, which lie side by side in memory."""
    tail = () if immediate is None else (immediate,)

    @T.prim_func
    def main(source: T.Buffer((LANES, count), dtype), out: T.Buffer((LANES,), dtype)):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([LANES])
        r = T.alloc_local([count], dtype)
        d = T.alloc_local([1], dtype)
        for i in T.unroll(count):
            r[i] = source[tx, i]
        T.ptx[text](d[0], *[r[i] for i in range(count)], *tail)
        out[tx] = d[0]

    return main


def apply(text: str, *operands: Array, immediate: int | None = None) -> Array:
    """What the instruction gives for each lane's operands."""
    source = np.stack(operands, axis=1)
    out = np.zeros(LANES, source.dtype)
    simt.run(kernel(text, len(operands), str(source.dtype), immediate), [source, out])
    return out


def words(seed: int, *extremes: int) -> Array:
    """Random bits, and some values that one has to try."""
    found = np.random.default_rng(seed).integers(0, 1 << 32, LANES).astype(np.uint32)
    found[: len(extremes)] = np.array(extremes, np.int64).astype(np.uint32)
    return found


def signed(value: int, bits: int = 32) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def byte(value: int, i: int) -> int:
    return value >> (8 * i) & 255


def prmt(a: int, b: int, c: int) -> int:
    result = 0
    for i in range(4):
        select = c >> (4 * i) & 15
        one = byte(b << 32 | a, select & 7)
        if select & 8:
            one = 255 if one >> 7 else 0
        result |= one << (8 * i)
    return result


def lop3(table: int) -> Callable[[int, int, int], int]:
    def word(a: int, b: int, c: int) -> int:
        rows = (((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) for i in range(32))
        return sum((table >> row & 1) << i for i, row in enumerate(rows))

    return word


def dp4a(a: int, b: int, c: int) -> int:
    return c + sum(signed(byte(a, i), 8) * signed(byte(b, i), 8) for i in range(4))


STATEMENTS: dict[str, tuple[int, Callable[..., int]]] = {
    "prmt.b32": (3, prmt),
    "dp4a.u32.u32": (3, lambda a, b, c: c + sum(byte(a, i) * byte(b, i) for i in range(4))),
    "popc.b32": (1, lambda a: a.bit_count()),
    "clz.b32": (1, lambda a: 32 - a.bit_length()),
    "not.b32": (1, lambda a: ~a),
    "and.b32": (2, lambda a, b: a & b),
    "xor.b32": (2, lambda a, b: a ^ b),
    "add.u32": (2, lambda a, b: a + b),
    "sub.u32": (2, lambda a, b: a - b),
    "mul.lo.u32": (2, lambda a, b: a * b),
    "mul.hi.u32": (2, lambda a, b: a * b >> 32),
    "mad.lo.u32": (3, lambda a, b, c: a * b + c),
    "mad.hi.u32": (3, lambda a, b, c: (a * b >> 32) + c),
    "shl.b32": (2, lambda a, b: a << b if b < 32 else 0),
    "shr.u32": (2, lambda a, b: a >> b if b < 32 else 0),
    "shf.l.wrap.b32": (3, lambda a, b, c: (b << 32 | a) << (c & 31) >> 32),
    "shf.r.wrap.b32": (3, lambda a, b, c: (b << 32 | a) >> (c & 31)),
    "shf.r.clamp.b32": (3, lambda a, b, c: (b << 32 | a) >> min(c, 32)),
    "bfe.u32": (3, lambda a, b, c: (a >> (b & 255)) & ((1 << min(c & 255, 32)) - 1)),
}


@pytest.mark.parametrize("text", STATEMENTS)
def test_integers(text: str) -> None:
    count, statement = STATEMENTS[text]
    operands = [words(0, 0, 1 << 31, -1, 5), words(1, 31, 32, 4, -1), words(2, 0, 33, 8, 7)][:count]
    got = apply(text, *operands)
    want = [statement(*map(int, row)) & 0xFFFFFFFF for row in zip(*operands, strict=True)]
    np.testing.assert_array_equal(got, np.array(want, np.uint32))


SIGNED: dict[str, Callable[..., int]] = {
    "dp4a.s32.s32": dp4a,
    "mul.hi.s32": lambda a, b: a * b >> 32,
    "max.s32": max,
    "min.s32": min,
}


@pytest.mark.parametrize("text", SIGNED)
def test_signed_integers(text: str) -> None:
    a, b, c = words(0, 1 << 31, 1 << 31, -7, 5), words(1, 1 << 31, 4, 1, -1), words(2)
    operands = [v.view(np.int32) for v in ([a, b, c] if text.startswith("dp4a") else [a, b])]
    want = [signed(SIGNED[text](*map(int, row))) for row in zip(*operands, strict=True)]
    np.testing.assert_array_equal(apply(text, *operands), np.array(want, np.int32))


@pytest.mark.parametrize("table", [0xEA, 0x6A, 0x96, 0x01])
def test_lop3(table: int) -> None:
    operands = words(0), words(1), words(2)
    want = [lop3(table)(*map(int, row)) for row in zip(*operands, strict=True)]
    got = apply("lop3.b32", *operands, immediate=table)
    np.testing.assert_array_equal(got, np.array(want, np.uint32))


# ---------------------------------------------------------------- floats


def rounded(exact: Fraction, dtype: Any) -> Any:
    """The nearest number of a dtype; ties to even. For finite results without subnormals."""
    bits = {np.float16: 11, np.float32: 24}[dtype]
    exponent = 0
    while abs(exact) >= Fraction(2) ** (exponent + bits):
        exponent += 1
    while exact and abs(exact) < Fraction(2) ** (exponent + bits - 1):
        exponent -= 1
    return dtype(float(round(exact / Fraction(2) ** exponent) * Fraction(2) ** exponent))


def test_fma_rounds_once() -> None:
    tie = np.float32(1 + 2.0**-12)  # its square is half-way between two numbers
    a = np.array([tie, tie, 3, -0.1], np.float32)
    b = np.array([tie, tie, 1 / 3, 10], np.float32)
    c = np.array([2.0**-60, -(2.0**-60), -1, 1], np.float32)
    want = [
        rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), np.float32)
        for x, y, z in zip(a, b, c, strict=True)
    ]
    np.testing.assert_array_equal(fma(a, b, c), np.array(want))
    assert want[0] != want[1]  # rounding the product first would lose this


def pairs(seed: int) -> Array:
    values = np.random.default_rng(seed).normal(size=(LANES, 2)).astype(np.float16)
    return values.view(np.uint32)[:, 0]


@pytest.mark.parametrize("text", ["add.f16x2", "sub.f16x2", "mul.f16x2", "fma.rn.f16x2"])
def test_half_pairs(text: str) -> None:
    operands = [pairs(i) for i in range(3 if "fma" in text else 2)]
    halves = [op.view(np.float16).reshape(LANES, 2) for op in operands]
    exact = [[[Fraction(float(x)) for x in row] for row in half] for half in halves]
    meaning: dict[str, Callable[..., Fraction]] = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "fma": lambda x, y, z: x * y + z,
    }
    want = [
        [rounded(meaning[text[:3]](*cell), np.float16) for cell in zip(*rows, strict=True)]
        for rows in zip(*exact, strict=True)
    ]
    got = apply(text, *operands).view(np.float16).reshape(LANES, 2)
    np.testing.assert_array_equal(got, np.array(want, np.float16))


def test_pack_of_two_singles() -> None:
    a, b = (np.random.default_rng(i).normal(size=LANES).astype(np.float32) for i in range(2))

    @T.prim_func
    def main(
        low: T.Buffer((LANES,), "float32"),
        high: T.Buffer((LANES,), "float32"),
        out: T.Buffer((LANES,), "uint32"),
    ):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([LANES])
        r = T.alloc_local([1], "uint32")
        T.ptx["cvt.rn.f16x2.f32"](r[0], high[tx], low[tx])
        out[tx] = r[0]

    out = np.zeros(LANES, np.uint32)
    simt.run(main, [a, b, out])
    want = np.stack([a, b], axis=1).astype(np.float16).view(np.uint32)[:, 0]
    np.testing.assert_array_equal(out, want)


def test_casts_cut_and_saturate() -> None:
    floats = np.array([1.9, -1.9, 300, -300, np.nan, np.inf, 2.0**40], np.float32)
    np.testing.assert_array_equal(cast(floats, np.dtype(np.int8)), [1, -1, 127, -128, 0, 127, 127])
    assert cast(floats, np.dtype(np.int32))[-1] == 2**31 - 1
    assert cast(np.array([300], np.int32), np.dtype(np.uint8))[0] == 44  # integers wrap


# ---------------------------------------------------------------- TensorIR


def test_integers_wrap_and_divide_as_in_c() -> None:
    @T.prim_func
    def main(
        a: T.Buffer((32,), "int32"),
        b: T.Buffer((32,), "int32"),
        out: T.Buffer((32, 6), "int32"),
    ):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([32])
        out[tx, 0] = a[tx] * b[tx] + a[tx]
        out[tx, 1] = T.truncdiv(a[tx], b[tx])
        out[tx, 2] = T.truncmod(a[tx], b[tx])
        out[tx, 3] = T.floordiv(a[tx], 7)
        out[tx, 4] = T.Cast("int32", (T.Cast("int64", a[tx]) * T.Cast("int64", b[tx])) >> 32)
        out[tx, 5] = T.popcount(a[tx])

    rng = np.random.default_rng(0)
    a = rng.integers(-(2**31), 2**31, 32).astype(np.int32)
    b = rng.integers(1, 99, 32).astype(np.int32) * np.where(np.arange(32) % 2, -1, 1)
    b = b.astype(np.int32)
    out = np.zeros((32, 6), np.int32)
    simt.run(main, [a, b, out])
    for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        want = [
            signed(x * y + x),
            quotient,
            x - quotient * y,
            x // 7,
            x * y >> 32,
            (x & 0xFFFFFFFF).bit_count(),
        ]
        assert out[i].tolist() == want


def shuffled(kind: str, offset: int, width: int) -> Array:
    shuffle = getattr(T.cuda, kind)

    @T.prim_func
    def main(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        out[tx] = shuffle(T.uint32(0xFFFFFFFF), a[tx], offset, width)

    out = np.zeros(64, np.int32)
    simt.run(main, [np.arange(64, dtype=np.int32), out])
    return out


def test_shuffles() -> None:
    lane = np.arange(64)
    np.testing.assert_array_equal(shuffled("__shfl_xor_sync", 5, 32), lane ^ 5)
    np.testing.assert_array_equal(shuffled("__shfl_sync", 3, 8), lane // 8 * 8 + 3)
    up = np.where(lane % 16 >= 2, lane - 2, lane)
    np.testing.assert_array_equal(shuffled("__shfl_up_sync", 2, 16), up)
    down = np.where(lane % 32 < 31, lane + 1, lane)
    np.testing.assert_array_equal(shuffled("__shfl_down_sync", 1, 32), down)


SOURCE = """
__device__ __forceinline__ void swap_halves(uint q, uint* o) {
  o[0] = q >> 16; o[1] = q & 0xffff;
}
"""


def injected() -> Any:
    @T.prim_func
    def main(a: T.Buffer((32,), "uint32"), out: T.Buffer((32, 2), "uint32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([32])
        r = T.alloc_local([2], "uint32")
        T.cuda.func_call("swap_halves", a[tx], T.address_of(r[0]), source_code=SOURCE)
        for i in T.unroll(2):
            out[tx, i] = r[i]

    return main


def test_injected_functions_have_the_meaning_they_are_given() -> None:
    def swap_halves(q: Array, o: Any) -> None:
        o[0], o[1] = q >> np.uint32(16), q & np.uint32(0xFFFF)

    a, out = words(0)[:32], np.zeros((32, 2), np.uint32)
    report = simt.run(injected(), [a, out], functions={"swap_halves": swap_halves})
    np.testing.assert_array_equal(out, np.stack([a >> 16, a & 0xFFFF], axis=1))
    assert report.count("swap_halves") == 1
    with pytest.raises(simt.UnsupportedError, match="swap_halves has no meaning"):
        simt.run(injected(), [a, out])
