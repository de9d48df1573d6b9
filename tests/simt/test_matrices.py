"""Tensor-core instructions alone, each beside a plain statement of the PTX ISA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm.script import tirx as T

from nybble import simt
from nybble.simt.matrices import a_fragment, b_fragment, c_fragment

Array = NDArray[Any]
WIDTH = {"s8": 8, "u8": 8, "s4": 4, "u4": 4, "b1": 1, "f16": 16, "bf16": 16}
RANGE = {"s8": (-128, 128), "u8": (0, 256), "s4": (-8, 8), "u4": (0, 16), "b1": (0, 2)}

INTEGER = (
    "m8n8k16.row.col.s32.s8.s8.s32",
    "m8n8k16.row.col.s32.u8.s8.s32",
    "m16n8k16.row.col.s32.s8.u8.s32",
    "m16n8k32.row.col.s32.s8.s8.s32",
    "m16n8k32.row.col.s32.u8.u8.s32",
    "m8n8k32.row.col.s32.s4.s4.s32",
    "m16n8k32.row.col.s32.u4.s4.s32",
    "m16n8k64.row.col.s32.s4.u4.s32",
    "m8n8k128.row.col.s32.b1.b1.s32.xor.popc",
    "m16n8k128.row.col.s32.b1.b1.s32.and.popc",
    "m16n8k256.row.col.s32.b1.b1.s32.and.popc",
    "m16n8k256.row.col.s32.b1.b1.s32.xor.popc",
)


def one_instruction(text: str, counts: tuple[int, int, int], dtype: str) -> Any:
    """A kernel of one warp: registers from a row each, ``mma``, registers to a row."""
    na, nb, nc = counts

    @T.prim_func
    def main(
        a_rows: T.Buffer((32, na), "uint32"),
        b_rows: T.Buffer((32, nb), "uint32"),
        c_rows: T.Buffer((32, nc), dtype),
        out: T.Buffer((32, nc), dtype),
    ):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([32])
        a = T.alloc_local([na], "uint32")
        b = T.alloc_local([nb], "uint32")
        c = T.alloc_local([nc], dtype)
        d = T.alloc_local([nc], dtype)
        for i in T.unroll(na):
            a[i] = a_rows[tx, i]
        for i in T.unroll(nb):
            b[i] = b_rows[tx, i]
        for i in T.unroll(nc):
            c[i] = c_rows[tx, i]
        T.ptx[text](
            *[d[i] for i in range(nc)],
            *[a[i] for i in range(na)],
            *[b[i] for i in range(nb)],
            *[c[i] for i in range(nc)],
        )
        for i in T.unroll(nc):
            out[tx, i] = d[i]

    return main


def dimensions(text: str) -> tuple[int, int, int]:
    shape = next(part for part in text.split(".") if part.startswith("m") and part[1].isdigit())
    m, rest = shape[1:].split("n")
    n, k = rest.split("k")
    return int(m), int(n), int(k)


def codes(values: Array, kind: str) -> Array:
    """The bits of each element."""
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16).astype(np.int64)
    if kind == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.int64)
    return values.astype(np.int64) & ((1 << WIDTH[kind]) - 1)


def fill_a(a: Array, kind: str) -> Array:
    """Registers of all lanes, in the words of the ISA: groupID = lane / 4, its threads lane % 4."""
    m, k = a.shape
    per = 32 // WIDTH[kind]
    registers = np.zeros((32, m * k // 32 // per), np.uint32)
    bits = codes(a, kind)
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(registers.shape[1] * per):
            register = i // per
            low_row = m == 8 or register % 2 == 0
            row = group if low_row else group + 8
            ahead = register // 2 if m == 16 else register
            column = thread * per + i % per + ahead * 4 * per
            registers[lane, register] |= np.uint32(
                int(bits[row, column]) << (i % per * WIDTH[kind])
            )
    return registers


def fill_b(b: Array, kind: str) -> Array:
    """The same of B, (k, 8)."""
    per = 32 // WIDTH[kind]
    registers = np.zeros((32, b.size // 32 // per), np.uint32)
    bits = codes(b, kind)
    for lane in range(32):
        for i in range(registers.shape[1] * per):
            row = lane % 4 * per + i % per + i // per * 4 * per
            code = int(bits[row, lane // 4]) << (i % per * WIDTH[kind])
            registers[lane, i // per] |= np.uint32(code)
    return registers


def fill_c(c: Array) -> Array:
    """The same of C, (m, 8)."""
    rows = np.zeros((32, c.size // 32), c.dtype)
    for lane in range(32):
        for i in range(rows.shape[1]):
            rows[lane, i] = c[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2]
    return rows


@pytest.mark.parametrize("text", INTEGER)
def test_integer_product(text: str) -> None:
    rng = np.random.default_rng(0)
    m, n, k = dimensions(text)
    kinds = text.split(".")[4:6]
    a = rng.integers(*RANGE[kinds[0]], (m, k))
    b = rng.integers(*RANGE[kinds[1]], (k, n))
    a[0], b[:, 0] = RANGE[kinds[0]][0], RANGE[kinds[1]][0]  # extremes
    c = rng.integers(-(2**31), 2**31, (m, n))
    products = (a[:, :, None] ^ b[None]).sum(1) if text.endswith("xor.popc") else a @ b
    want = (c + products).astype(np.int32)  # wraps
    operands = fill_a(a, kinds[0]), fill_b(b, kinds[1]), fill_c(c.astype(np.int32)).view(np.uint32)
    kernel = one_instruction(
        f"mma.sync.aligned.{text}", tuple(x.shape[1] for x in operands), "uint32"
    )
    out = np.zeros_like(operands[2])
    report = simt.run(kernel, [*operands, out])
    np.testing.assert_array_equal(out.view(np.int32), fill_c(want))
    assert report.count("mma") == 1


def test_saturating_sums_stay_at_the_limits() -> None:
    text = "m16n8k32.row.col.satfinite.s32.s8.s8.s32"
    a, b = np.full((16, 32), 127), np.full((32, 8), 127)
    c = np.full((16, 8), 2**31 - 5)
    operands = fill_a(a, "s8"), fill_b(b, "s8"), fill_c(c.astype(np.int32)).view(np.uint32)
    out = np.zeros((32, 4), np.uint32)
    simt.run(one_instruction(f"mma.sync.aligned.{text}", (4, 2, 4), "uint32"), [*operands, out])
    assert (out == 2**31 - 1).all()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("k", [8, 16])
def test_half_product_in_single(kind: str, k: int) -> None:
    rng = np.random.default_rng(k)
    a, b = rng.integers(-8, 8, (16, k)), rng.integers(-8, 8, (k, 8))  # exact in any order
    c = rng.integers(-99, 99, (16, 8)).astype(np.float32)
    operands = fill_a(a, kind), fill_b(b, kind), fill_c(c)
    text = f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32"
    out = np.zeros_like(operands[2])
    simt.run(
        one_instruction(text, tuple(x.shape[1] for x in operands), "float32"), [*operands, out]
    )
    np.testing.assert_array_equal(out, fill_c(c + a @ b))


def test_half_product_in_half() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-8, 8, (16, 16)), rng.integers(-8, 8, (16, 8))
    c = rng.integers(-99, 99, (16, 8)).astype(np.float16)
    held = np.ascontiguousarray(fill_c(c)).view(np.uint32)
    text = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"
    out = np.zeros_like(held)
    kernel = one_instruction(text, (4, 2, 2), "uint32")
    simt.run(kernel, [fill_a(a, "f16"), fill_b(b, "f16"), held, out])
    np.testing.assert_array_equal(out.view(np.float16), fill_c((c + a @ b).astype(np.float16)))


def test_fragments_as_the_isa_draws_them() -> None:
    """Some corners of the figures for .s8 m16n8k32, .f16 m16n8k16 and .b1 m16n8k256."""
    s8 = a_fragment(16, 32, 8)  # lane · 16 + register · 4 + byte
    assert s8[0, 0] == 0  # T0: a0
    assert s8[0, 3] == 3  # T0: a3
    assert s8[0, 4] == 16  # T1: a0
    assert s8[8, 0] == 4  # T0: a4, the second register
    assert s8[0, 16] == 8  # T0: a8, the third
    assert s8[15, 31] == 31 * 16 + 15  # T31: a15
    f16 = a_fragment(16, 16, 16)  # lane · 8 + register · 2 + half
    assert f16[1, 0] == 4 * 8  # T4: a0
    assert f16[9, 11] == 5 * 8 + 7  # T5: a7
    assert b_fragment(32, 8)[16, 0] == 4  # T0: b4
    assert b_fragment(32, 8)[31, 7] == 31 * 8 + 7  # T31: b7
    assert b_fragment(256, 1)[32, 2] == 9 * 64  # T9: b0
    assert c_fragment(16)[0, 1] == 1  # T0: c1
    assert c_fragment(16)[8, 0] == 2  # T0: c2
    assert c_fragment(16)[15, 7] == 31 * 4 + 3  # T31: c3
    for table in (s8, f16, b_fragment(64, 4), c_fragment(16, 64)):
        np.testing.assert_array_equal(np.sort(table.ravel()), np.arange(table.size))


def loads_matrices(num: int, trans: bool) -> Any:
    text = f"ldmatrix.sync.aligned.m8n8.x{num}{'.trans' * trans}.shared.b16"

    @T.prim_func
    def main(source: T.Buffer((32, 8), "uint16"), out: T.Buffer((32, num), "uint32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([32])
        tile = T.alloc_buffer((32 * 8,), "uint16", scope="shared", align=16)
        r = T.alloc_local([num], "uint32")
        for i in T.vectorized(8):
            tile[tx * 8 + i] = source[tx, i]
        T.cuda.cta_sync()
        T.ptx[text](*[r[i] for i in range(num)], T.address_of(tile[tx * 8]))
        for i in T.unroll(num):
            out[tx, i] = r[i]

    return main


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("num", [1, 2, 4])
def test_ldmatrix(num: int, trans: bool) -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 1 << 16, (32, 8)).astype(np.uint16)
    out = np.zeros((32, num), np.uint32)
    report = simt.run(loads_matrices(num, trans), [source, out])
    for j in range(num):
        matrix = source[8 * j : 8 * j + 8]
        matrix = matrix.T if trans else matrix
        for lane in range(32):
            low, high = (int(matrix[lane // 4, lane % 4 * 2 + i]) for i in range(2))
            assert out[lane, j] == high << 16 | low
    assert report.conflicts == 0


def stores_matrices() -> Any:
    @T.prim_func
    def main(source: T.Buffer((32, 4), "uint32"), out: T.Buffer((32, 8), "uint16")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([32])
        tile = T.alloc_buffer((32 * 8,), "uint16", scope="shared", align=16)
        r = T.alloc_local([4], "uint32")
        for i in T.unroll(4):
            r[i] = source[tx, i]
        T.ptx["stmatrix.sync.aligned.m8n8.x4.shared.b16"](
            T.address_of(tile[tx * 8]), r[0], r[1], r[2], r[3]
        )
        T.cuda.cta_sync()
        for i in T.vectorized(8):
            out[tx, i] = tile[tx * 8 + i]

    return main


def test_stmatrix_reverses_ldmatrix() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 1 << 16, (32, 8)).astype(np.uint16)
    held, back = np.zeros((32, 4), np.uint32), np.zeros_like(rows)
    simt.run(loads_matrices(4, trans=False), [rows, held])
    simt.run(stores_matrices(), [held, back], target="cuda:sm_90")
    np.testing.assert_array_equal(back, rows)
