"""Loads, stores, copies and exchanges that PTX spells out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm.script import tirx as T

from nybble import simt
from tests.simt.test_scalars import words

Array = NDArray[Any]
LANES = 64


def through_shared(load: str, store: str, pred: bool) -> Any:
    """Four words a thread: from global memory to shared memory and back, by PTX's own loads."""

    @T.prim_func
    def main(a: T.Buffer((LANES, 4), "uint32"), out: T.Buffer((LANES, 4), "uint32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([LANES])
        tile = T.alloc_buffer((LANES * 4,), "uint32", scope="shared", align=16)
        r = T.alloc_local([4], "uint32")
        T.ptx[load](r[0], r[1], r[2], r[3], T.address_of(a[tx, 0]))
        T.ptx[store](T.address_of(tile[tx * 4]), r[0], r[1], r[2], r[3])
        if pred:
            T.ptx["st.shared.b32"](T.address_of(tile[tx * 4]), T.uint32(7), pred=tx % 2 == 0)
        T.cuda.cta_sync()
        for i in T.unroll(4):
            out[tx, i] = tile[((tx + 1) % LANES) * 4 + i]

    return main


@pytest.mark.parametrize("pred", [False, True])
def test_loads_and_stores_of_vectors(pred: bool) -> None:
    a, out = np.stack([words(i) for i in range(4)], axis=1), np.zeros((LANES, 4), np.uint32)
    kernel = through_shared("ld.global.nc.v4.b32", "st.shared.v4.b32", pred)
    report = simt.run(kernel, [a, out])
    want = a.copy()
    if pred:
        want[::2, 0] = 7
    np.testing.assert_array_equal(out, np.roll(want, -1, axis=0))
    assert report.sectors == LANES * 16 * 2 // 32 + LANES * 16 // 32 * 3  # stores of one word each
    assert report.count("ld.global.nc") == 2


def test_coalescing_is_measured() -> None:
    def strided(step: int) -> Any:
        @T.prim_func
        def main(a: T.Buffer((LANES * step,), "int32"), out: T.Buffer((LANES,), "int32")):
            T.device_entry()
            T.cta_id([1])
            tx = T.thread_id([LANES])
            out[tx] = a[tx * step]

        return main

    for step, sectors in ((1, 8 + 8), (8, 64 + 8)):
        out = np.zeros(LANES, np.int32)
        report = simt.run(strided(step), [np.arange(LANES * step, dtype=np.int32), out])
        assert report.sectors == sectors
    assert report.coalescing < 0.25


def copies(rows: int, waiting: int) -> Any:
    """Rows of 16 bytes to shared memory; beyond the last one, zeros. Three groups of copies."""

    @T.prim_func
    def main(a: T.Buffer((rows, 16), "uint8"), out: T.Buffer((96, 16), "uint8")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([32])
        tile = T.alloc_buffer((96 * 16,), "uint8", scope="shared", align=16)
        for g in T.unroll(3):
            row = T.meta_var(g * 32 + tx)
            T.ptx["cp.async.cg.shared.global"](
                T.address_of(tile[row * 16]),
                T.address_of(a[T.min(row, rows - 1), 0]),
                16,
                T.if_then_else(row < rows, T.uint32(16), T.uint32(0)),
            )
            T.ptx["cp.async.commit_group"]()
        for g in T.unroll(3):
            if g == 0:
                T.ptx["cp.async.wait_group"](waiting)
            elif g == 1:
                T.ptx["cp.async.wait_group"](1)
            else:
                T.ptx["cp.async.wait_all"]()
            for i in T.vectorized(16):
                out[g * 32 + tx, i] = tile[(g * 32 + tx) * 16 + i]

    return main


def test_copies_fill_with_zeros_and_groups_end_in_order() -> None:
    a = np.random.default_rng(0).integers(1, 256, (70, 16)).astype(np.uint8)
    out = np.zeros((96, 16), np.uint8)
    report = simt.run(copies(70, waiting=2), [a, out])
    np.testing.assert_array_equal(out[:70], a)
    assert not out[70:].any()
    assert report.global_read == 70 * 16
    with pytest.raises(simt.InFlightError, match="tile: read of byte 0 of shared memory before"):
        simt.run(copies(70, waiting=3), [a, out])


def exchange(text: str, *tail: int) -> Any:
    @T.prim_func
    def main(a: T.Buffer((LANES,), "uint32"), out: T.Buffer((LANES,), "uint32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([LANES])
        r = T.alloc_local([1], "uint32")
        T.ptx[text](r[0], a[tx], *[T.uint32(one) for one in tail], T.uint32(0xFFFFFFFF))
        out[tx] = r[0]

    return main


def test_shuffles_and_reductions() -> None:
    a, out, lane = words(0), np.zeros(LANES, np.uint32), np.arange(LANES)
    simt.run(exchange("shfl_sync.bfly.b32", 4, 31), [a, out])
    np.testing.assert_array_equal(out, a[lane ^ 4])
    simt.run(exchange("shfl_sync.up.b32", 3, 0), [a, out])
    np.testing.assert_array_equal(out, a[np.where(lane % 32 < 3, lane, lane - 3)])
    simt.run(exchange("shfl_sync.idx.b32", 2, 24 << 8 | 31), [a, out])  # segments of 8
    np.testing.assert_array_equal(out, a[lane // 8 * 8 + 2])
    simt.run(exchange("redux_sync.add.u32"), [a, out])
    sums = a.reshape(2, 32).sum(axis=1, dtype=np.uint64) & 0xFFFFFFFF
    np.testing.assert_array_equal(out, np.repeat(sums, 32))


def test_conversions_saturate() -> None:
    @T.prim_func
    def main(
        a: T.Buffer((LANES,), "int32"),
        b: T.Buffer((LANES,), "float32"),
        out: T.Buffer((LANES, 2), "int32"),
    ):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([LANES])
        low = T.alloc_local([1], "int8")
        near = T.alloc_local([1], "int32")
        T.ptx["cvt.sat.s8.s32"](low[0], a[tx])
        T.ptx["cvt.rni.s32.f32"](near[0], b[tx])
        out[tx, 0] = T.Cast("int32", low[0])
        out[tx, 1] = near[0]

    a = np.arange(-320, 320, 10, dtype=np.int32)
    b = np.linspace(-3, 3, LANES, dtype=np.float32)
    b[:3] = [2.5, -1e20, np.nan]
    out = np.zeros((LANES, 2), np.int32)
    simt.run(main, [a, b, out])
    np.testing.assert_array_equal(out[:, 0], np.clip(a, -128, 127))
    assert out[:3, 1].tolist() == [2, -(2**31), 0]
    np.testing.assert_array_equal(out[3:, 1], np.rint(b[3:]))
