"""Threads that part, wait for nobody, or compute what C leaves open are found and named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm.script import tirx as T

from nybble import simt
from nybble.simt.values import fma
from tests.simt.words import run_words


def divergent(kind: str) -> Any:
    @T.prim_func
    def barrier(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        if tx < 32:
            T.cuda.cta_sync()
        out[tx] = a[tx]

    @T.prim_func
    def shuffle(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        out[tx] = a[tx]
        if tx % 2 == 0:
            out[tx] = T.cuda.__shfl_xor_sync(T.uint32(0x55555555), a[tx], 1, 32)

    @T.prim_func
    def named_members(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        out[tx] = a[tx]
        if tx % 2 == 0:
            out[tx] = T.cuda.__shfl_xor_sync(T.uint32(0xFFFFFFFF), a[tx], 2, 32)

    return {"barrier": barrier, "shuffle": shuffle, "members": named_members}[kind]


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("barrier", simt.DivergenceError, r"cta_sync: only 32 of 64 threads.*\(32,0,0\)"),
        ("shuffle", simt.UninitializedError, "shuffle from lane 1, which is not active"),
        ("members", simt.DivergenceError, "shfl_xor_sync: its member mask is not what gets here"),
    ],
)
def test_divergence(kind: str, error: type[simt.SimtError], text: str) -> None:
    with pytest.raises(error, match=text):
        run_words(divergent(kind))


def two_roles(third: bool) -> Any:
    """One warp stores, another loads; they meet at barrier 1, and a third if it is told to."""

    @T.prim_func
    def main(a: T.Buffer((96,), "int32"), out: T.Buffer((96,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([96])
        tile = T.alloc_buffer((32,), "int32", scope="shared")
        if tx < 32:
            tile[tx] = a[tx]
            T.ptx.bar.sync(T.uint32(1), T.uint32(96 if third else 64))
            out[tx] = a[tx]
        elif tx < 64:
            T.ptx.bar.sync(T.uint32(1), T.uint32(96 if third else 64))
            out[tx] = tile[(tx + 1) % 32]
        else:
            out[tx] = a[tx]

    return main


def test_named_barriers_and_deadlocks() -> None:
    lane = np.arange(96)
    want = np.where((lane >= 32) & (lane < 64), (lane + 1) % 32, lane)
    np.testing.assert_array_equal(run_words(two_roles(third=False), 96), want)
    with pytest.raises(simt.DeadlockError, match="warp 0: barrier 1; warp 1: barrier 1"):
        run_words(two_roles(third=True), 96)


def arithmetic(kind: str) -> Any:
    @T.prim_func
    def divides(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        out[tx] = T.truncdiv(7, a[tx])

    @T.prim_func
    def guarded(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        out[tx] = T.if_then_else(a[tx] > 0, T.truncdiv(7, a[tx]), 0)

    @T.prim_func
    def shifts(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        out[tx] = 1 << a[tx]

    @T.prim_func
    def widens(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        out[tx] = T.Cast("int32", T.Cast("int8", a[tx]) + T.Cast("int8", 100))

    return {"divides": divides, "guarded": guarded, "shifts": shifts, "widens": widens}[kind]


def test_arithmetic_that_c_leaves_open() -> None:
    np.testing.assert_array_equal(run_words(arithmetic("guarded"))[:4], [0, 7, 3, 2])
    with pytest.raises(simt.SimtError, match=r"division by zero, by thread \(0,0,0\)"):
        run_words(arithmetic("divides"))
    with pytest.raises(simt.SimtError, match=r"shift by the width or more, by thread \(32,0,0\)"):
        run_words(arithmetic("shifts"))
    with pytest.raises(simt.SimtError, match=r"leaves int8: C computes.*thread \(28,0,0\)"):
        run_words(arithmetic("widens"))


def test_products_and_sums_of_float64_have_no_meaning() -> None:
    one = np.ones(2)
    with pytest.raises(simt.SimtError, match="fma of float64 is not modelled"):
        fma(one, one, one)
