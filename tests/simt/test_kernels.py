"""Whole kernels as people write them: grids, tails, symbolic extents, schedules, half precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import s_tir
from tvm.script import tirx as T

from nybble import simt


def test_three_dimensions_and_a_last_warp_that_is_not_full() -> None:
    @T.prim_func
    def main(a: T.Buffer((2, 3, 4, 40), "int32"), out: T.Buffer((2, 3, 4, 40), "int32")):
        T.device_entry()
        bx, by, bz = T.cta_id([4, 3, 2])
        tx = T.thread_id([40])
        tile = T.alloc_buffer((40,), "int32", scope="shared")
        tile[tx] = a[bz, by, bx, tx]
        T.cuda.cta_sync()
        out[bz, by, bx, tx] = tile[39 - tx]

    a = np.arange(960, dtype=np.int32).reshape(2, 3, 4, 40)
    out = np.zeros_like(a)
    report = simt.run(main, [a, out])
    np.testing.assert_array_equal(out, a[..., ::-1])
    assert report.count("cta_sync") == 24 * 2  # blocks, warps


def scale(unit: int) -> Any:
    """Doubles n numbers, ``unit`` a thread, with a guard for the tail."""

    @T.prim_func
    def main(left: T.handle, right: T.handle):
        n = T.int32()
        a = T.match_buffer(left, (n,), dtype="int32", align=16)
        out = T.match_buffer(right, (n,), dtype="int32", align=16)
        T.device_entry()
        bx = T.cta_id([(n + 64 * unit - 1) // (64 * unit)])
        tx = T.thread_id([64])
        for i in T.unroll(unit):
            at = T.meta_var(bx * 64 * unit + i * 64 + tx)
            if at < n:
                out[at] = a[at] * 2

    return main


@pytest.mark.parametrize("n", [1, 64, 200])
def test_symbolic_extents_come_from_the_arrays(n: int) -> None:
    a, out = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
    report = simt.run(scale(2), [a, out])
    np.testing.assert_array_equal(out, 2 * a)
    assert report.global_read == report.global_written == 4 * n


def test_arguments_are_checked() -> None:
    a, out = np.arange(8, dtype=np.int32), np.zeros(8, np.int32)
    with pytest.raises(simt.SimtError, match="2 parameters"):
        simt.run(scale(1), [out])
    with pytest.raises(simt.SimtError, match="int32 is wanted, not of int64"):
        simt.run(scale(1), [a.astype(np.int64), out])
    with pytest.raises(simt.SimtError, match="C order"):
        simt.run(scale(1), [a[::2], out])
    with pytest.raises(simt.SimtError, match="no GPU"):
        simt.run(scale(1), [a, out], target="x86-64-v3")


def summed() -> Any:
    """Row sums by a schedule of TVM's: a reduction across threads."""

    @T.prim_func(s_tir=True)
    def main(a: T.Buffer((8, 96), "int32"), out: T.Buffer((8,), "int32")):
        for i, k in T.grid(8, 96):
            with T.sblock("sum"):
                vi, vk = T.axis.remap("SR", [i, k])
                with T.init():
                    out[vi] = 0
                out[vi] = out[vi] + a[vi, vk]

    sch = s_tir.Schedule(main)
    i, k = sch.get_loops(sch.get_sblock("sum"))
    _, inner = sch.split(k, [None, 64])
    sch.bind(i, "blockIdx.x")
    sch.bind(inner, "threadIdx.x")
    return sch.mod["main"]


def test_a_scheduled_reduction_across_threads() -> None:
    rng = np.random.default_rng(0)
    a, out = rng.integers(-99, 99, (8, 96)).astype(np.int32), np.zeros(8, np.int32)
    simt.run(summed(), [a, out], trial=simt.Trial(unset=True))
    np.testing.assert_array_equal(out, a.sum(1))


def gemv(n: int, k: int, group: int) -> Any:
    """Y = W·x with 4-bit weights, a warp a row: codes to halves by ``lop3``, sums by HFMA2."""
    rounds = k // 1024

    @T.prim_func
    def main(
        w: T.Buffer((n, k // 8), "uint32"),
        scale: T.Buffer((n, k // group), "float16"),
        x: T.Buffer((k // 2,), "uint32"),
        y: T.Buffer((n,), "float32"),
    ):
        T.device_entry()
        bx = T.cta_id([n // 4])
        tx = T.thread_id([128])
        row = T.meta_var(bx * 4 + tx // 32)
        lane = T.meta_var(tx % 32)
        word = T.alloc_local([4], "uint32")
        half = T.alloc_local([4], "uint32")
        part = T.alloc_local([2], "float16")
        total = T.alloc_local([1], "float32")
        pair = T.decl_buffer((1,), "uint32", data=part.data)
        total[0] = T.float32(0)
        for it in T.serial(rounds):
            for v in T.vectorized(4):
                word[v] = w[row, it * 128 + lane * 4 + v]
            pair[0] = T.uint32(0)
            for j in T.unroll(4):
                for p in T.unroll(4):
                    shifted = T.meta_var(word[j] >> T.uint32(4 * p))
                    T.ptx.lop3.b32(
                        half[p], shifted, T.uint32(0x000F000F), T.uint32(0x64006400), 0xEA
                    )
                    T.ptx.sub.f16x2(half[p], half[p], T.uint32(0x64086408))
                    T.ptx.fma.rn.f16x2(
                        pair[0], half[p], x[it * 512 + lane * 16 + j * 4 + p], pair[0]
                    )
            total[0] = total[0] + (
                T.Cast("float32", part[0]) + T.Cast("float32", part[1])
            ) * T.Cast("float32", scale[row, (it * 1024 + lane * 32) // group])
        total[0] = T.cuda.warp_sum(total[0])
        if lane == 0:
            y[row] = total[0]

    return main


def test_weight_only_product_of_a_vector() -> None:
    n, k, group = 8, 2048, 128
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (n, k // 8, 4, 2))  # pairs: nibbles p and p + 4
    shifts = np.array([[4 * p, 4 * (p + 4)] for p in range(4)])
    words = (codes << shifts).sum(axis=(2, 3)).astype(np.uint32)
    scale = np.exp2(rng.integers(-3, 1, (n, k // group))).astype(np.float16)
    x = rng.integers(-4, 5, k).astype(np.float16)  # all sums exact in half precision
    y = np.zeros(n, np.float32)
    report = simt.run(gemv(n, k, group), [words, scale, x.view(np.uint32), y])
    weights = (codes.reshape(n, k) - 8) * np.repeat(scale.astype(float), group, axis=1)
    np.testing.assert_array_equal(y, weights @ x.astype(float))
    assert report.count("ld.global.b128") == 2 * n  # 16 bytes a lane: rounds, warps
    assert report.instructions["fma.rn.f16x2"] == n * 2 * 16
