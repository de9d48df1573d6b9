"""Every defect that is planted is found and named; the repaired kernel passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm.script import tirx as T

from nybble import simt
from tests.simt.gemm import gemm
from tests.simt.words import run_words


def product(defect: str, k: int = 192) -> simt.Report:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (128, k)).astype(np.int8) for _ in range(2))
    out = np.zeros((128, 128), np.int32)
    report = simt.run(gemm(128, 128, k, defect), [a, b, out])
    np.testing.assert_array_equal(out, a.astype(int) @ b.astype(int).T)
    return report


def test_a_right_kernel_passes_without_conflicts() -> None:
    report = product("")
    assert report.conflicts == 0
    # blocks, warps, steps of 32, tiles of 8 columns
    assert report.count("mma") == 4 * 4 * 6 * 8
    assert report.global_written == 128 * 128 * 4
    assert report.shared_bytes == 2 * 2 * 64 * 64


def test_conflicts_are_counted() -> None:
    report = product("no swizzle", k=64)
    assert report.conflicts == report.conflict_sites["tile, read"]
    assert report.conflicts > report.wavefronts / 2


@pytest.mark.parametrize(
    ("defect", "error", "text"),
    [
        ("no wait", simt.InFlightError, r"tile: read of byte \d+ .*before the wait for its copy"),
        ("no barrier", simt.RaceError, r"tile: read of byte .*thread \d+ has written"),
        ("late barrier", simt.RaceError, r"tile: write to byte .*warp \d+ has read"),
        ("overrun", simt.OutOfBoundsError, r"right: 16 bytes at byte 24576 of 24576"),
    ],
)
def test_defects_of_a_pipeline(defect: str, error: type[simt.SimtError], text: str) -> None:
    with pytest.raises(error, match=text) as found:
        product(defect)
    assert "main_kernel" in str(found.value)
    assert "by thread (" in str(found.value)


@pytest.mark.parametrize(
    "call",
    [
        ("cta_sync", 0),
        ("cta_sync", 1),
        ("cp_async_commit_group", 0),
        ("cp_async_wait_group", 0),
        ("cp_async_cg", 3),
        ("ldmatrix", 4),
    ],
)
def test_nothing_can_be_left_out(call: tuple[str, int]) -> None:
    a, out = np.ones((64, 192), np.int8), np.zeros((64, 64), np.int32)
    with pytest.raises(simt.SimtError):
        simt.run(gemm(64, 64, 192), [a, a, out], trial=simt.Trial(without=call))


def test_what_is_left_out_exists() -> None:
    a, out = np.ones((64, 64), np.int8), np.zeros((64, 64), np.int32)
    with pytest.raises(LookupError, match="main_kernel has 2 cta_sync"):
        simt.run(gemm(64, 64, 64), [a, a, out], trial=simt.Trial(without=("cta_sync", 2)))


# ---------------------------------------------------------------- one defect a kernel


def exchange(barrier: str) -> Any:
    """Each thread stores a word and loads its neighbour's, with a barrier or without."""
    sync = {"block": T.cuda.cta_sync, "warp": T.cuda.warp_sync, "": lambda: T.evaluate(0)}[barrier]

    @T.prim_func
    def main(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        tile = T.alloc_buffer((64,), "int32", scope="shared")
        tile[tx] = a[tx]
        sync()
        out[tx] = tile[tx ^ 33]

    return main


def within_a_warp(barrier: bool) -> Any:
    @T.prim_func
    def main(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        tile = T.alloc_buffer((64,), "int32", scope="shared")
        tile[tx] = a[tx]
        if barrier:
            T.cuda.warp_sync()
        out[tx] = tile[tx ^ 1]

    return main


def test_races_between_warps() -> None:
    np.testing.assert_array_equal(run_words(exchange("block")), np.arange(64) ^ 33)
    for barrier in ("warp", ""):
        with pytest.raises(
            simt.RaceError, match=r"tile: read of byte 132 .* thread 33 .*\(0,0,0\)"
        ):
            run_words(exchange(barrier))


def test_races_within_a_warp() -> None:
    np.testing.assert_array_equal(run_words(within_a_warp(barrier=True)), np.arange(64) ^ 1)
    with pytest.raises(simt.RaceError, match="thread 1 has written"):
        run_words(within_a_warp(barrier=False))


def same_word(column: int) -> Any:
    @T.prim_func
    def main(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        tile = T.alloc_buffer((64,), "int32", scope="shared")
        tile[tx // column] = a[tx]
        T.cuda.cta_sync()
        out[tx] = tile[tx // column]

    return main


def test_two_threads_that_store_to_one_place() -> None:
    np.testing.assert_array_equal(run_words(same_word(1)), np.arange(64))
    with pytest.raises(simt.RaceError, match="tile: write to byte 0"):
        run_words(same_word(2))


def places(extent: int, offset: int, width: int = 1) -> Any:
    """Stores to shared memory and registers of ``extent`` words, from ``offset`` on."""

    @T.prim_func
    def main(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64 // width])
        tile = T.alloc_buffer((extent,), "int32", scope="shared")
        spare = T.alloc_buffer((256,), "int32", scope="shared")
        spare[tx] = 0
        for i in T.vectorized(width):
            tile[tx * width + offset + i] = a[tx * width + i]
        T.cuda.cta_sync()
        for i in T.vectorized(width):
            out[tx * width + i] = tile[tx * width + offset + i]

    return main


def test_bounds_of_each_allocation() -> None:
    np.testing.assert_array_equal(run_words(places(66, 2)), np.arange(64))
    with pytest.raises(
        simt.OutOfBoundsError, match=r"tile: 4 bytes at byte 256 of 256.*\(62,0,0\)"
    ):
        run_words(places(64, 2))
    with pytest.raises(simt.OutOfBoundsError, match=r"tile: 4 bytes at byte -4 of 256.*\(0,0,0\)"):
        run_words(places(64, -1))


def test_vectors_are_aligned() -> None:
    np.testing.assert_array_equal(run_words(places(68, 4, width=4)), np.arange(64))
    with pytest.raises(simt.MisalignedError, match=r"tile: 16 bytes at once at byte 8"):
        run_words(places(68, 2, width=4))


def registers(first: int, apart: bool) -> Any:
    """Sets four registers but the first ones; each thread uses another, or all the first."""

    @T.prim_func
    def main(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        r = T.alloc_local([4], "int32")
        for i in T.unroll(4 - first):
            r[first + i] = a[tx] + i
        out[tx] = r[(tx + 1) % 4 * apart]

    return main


def test_registers_are_set_before_use() -> None:
    np.testing.assert_array_equal(run_words(registers(0, apart=False)), np.arange(64))
    with pytest.raises(simt.UninitializedError, match=r"register r\[0\] used before set"):
        run_words(registers(1, apart=False))
    with pytest.raises(simt.UninitializedError, match=r"register r\[0\].*thread \(3,0,0\)"):
        run_words(registers(1, apart=True))


def half_stored(limit: int) -> Any:
    @T.prim_func
    def main(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        tile = T.alloc_buffer((64,), "int32", scope="shared")
        if tx < limit:
            tile[tx] = a[tx]
        T.cuda.cta_sync()
        out[tx] = tile[tx]

    return main


def test_shared_memory_is_written_before_use() -> None:
    np.testing.assert_array_equal(run_words(half_stored(64)), np.arange(64))
    with pytest.raises(simt.UninitializedError, match=r"tile: read of byte 160 .*\(40,0,0\)"):
        run_words(half_stored(40))


def outputs(count: int, stride: int) -> Any:
    @T.prim_func
    def main(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        bx = T.cta_id([2])
        tx = T.thread_id([32])
        if bx * 32 + tx < count:
            out[(bx * 32 + tx) // stride] = a[bx * 32 + tx]

    return main


def test_outputs_are_written_once_and_whole() -> None:
    np.testing.assert_array_equal(run_words(outputs(64, 1)), np.arange(64))
    with pytest.raises(simt.UninitializedError, match=r"out\[50\] is never written.*14 in all"):
        run_words(outputs(50, 1))
    with pytest.raises(simt.RaceError, match=r"out: byte 0 written twice with different values"):
        run_words(outputs(64, 2))


def misuse(kind: str) -> Any:
    @T.prim_func
    def reads_output(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        out[tx] = out[tx] + a[tx]

    @T.prim_func
    def writes_input(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([64])
        a[tx] = 0
        out[tx] = 0

    @T.prim_func
    def beyond(a: T.Buffer((64,), "int32"), out: T.Buffer((64,), "int32")):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([65])
        out[tx] = a[tx]

    return {"reads output": reads_output, "writes input": writes_input, "beyond": beyond}[kind]


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("reads output", simt.UninitializedError, "out: byte 0 read and never written"),
        ("writes input", simt.SimtError, "a: byte 0 written, but it is an input"),
        ("beyond", simt.OutOfBoundsError, r"a: 4 bytes at byte 256 of 256, by thread \(64,0,0\)"),
    ],
)
def test_global_memory(kind: str, error: type[simt.SimtError], text: str) -> None:
    with pytest.raises(error, match=text):
        run_words(misuse(kind))
