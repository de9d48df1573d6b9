"""TMA, ``mbarrier`` and ``wgmma``: layouts as documented, and what goes wrong without a wait."""

from __future__ import annotations

import numpy as np
import pytest

from nybble import simt
from nybble.simt.swizzles import Descriptor, encode, swizzled
from tests.simt.hopper import from_registers, gemm
from tests.simt.test_matrices import fill_a, fill_c


def product(defect: str = "", m: int = 64, n: int = 64, k: int = 384) -> simt.Report:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (rows, k)).astype(np.int8) for rows in (m, n))
    out = np.zeros((m, n), np.int32)
    report = simt.run(gemm(m, n, k, defect), [a, b, out], target="cuda:sm_90")
    np.testing.assert_array_equal(out, a.astype(int) @ b.astype(int).T)
    return report


def test_pipeline_of_copies_and_products() -> None:
    report = product()
    assert report.count("wgmma.mma_async") == 4 * 3 * 4  # warps, stages, steps
    assert report.count("cp.async.bulk.tensor") == 2 * 3


def test_boxes_beyond_the_tensor_are_zeros() -> None:
    report = product(m=100, n=72, k=208)
    assert report.global_read == 208 * (2 * 100 + 2 * 72)  # not what is outside


@pytest.mark.parametrize(
    ("defect", "error", "text"),
    [
        ("no barrier", simt.RaceError, r"full: read of byte .* thread 0 has written"),
        (
            "no fence of barriers",
            simt.RaceError,
            "full as an mbarrier .*fence.proxy.async is missing",
        ),
        ("no wait for full", simt.SimtError, "a_desc: read of byte 0 of shared memory"),
        ("no wait for empty", simt.SimtError, "a_tile: write to byte 0 of shared memory"),
        ("no wait for product", simt.SimtError, "a_tile: write to byte 0 of shared memory"),
        ("no fence of registers", simt.RaceError, r"register acc\[0\] written after the last"),
        ("wrong bytes", simt.DeadlockError, "warp 0: phase of parity 0 of mbarrier full"),
    ],
)
def test_defects_of_the_pipeline(defect: str, error: type[simt.SimtError], text: str) -> None:
    with pytest.raises(error, match=text):
        product(defect)


@pytest.mark.parametrize(
    "call",
    [
        ("cta_sync", 0),
        ("fence_proxy", 0),
        ("mbarrier_init", 1),
        ("mbarrier_wait", 0),
        ("mbarrier_wait", 1),
        ("mbarrier_arrive_expect_tx", 0),
        ("mbarrier_arrive_nocount", 0),
        ("wgmma_commit_group", 0),
        ("wgmma_wait_group", 0),
    ],
)
def test_nothing_can_be_left_out(call: tuple[str, int]) -> None:
    a, out = np.ones((64, 384), np.int8), np.zeros((64, 64), np.int32)
    with pytest.raises(simt.SimtError):
        simt.run(
            gemm(64, 64, 384), [a, a, out], target="cuda:sm_90", trial=simt.Trial(without=call)
        )


def registers_product(defect: str = "") -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (64, 64)) for _ in range(2))
    held = [
        np.concatenate(
            [fill_a(a[16 * w : 16 * w + 16, 32 * s : 32 * s + 32], "s8") for w in range(4)]
        )
        for s in range(2)
    ]
    out = np.zeros((128, 32), np.uint32)
    arguments = [np.stack(held), b.astype(np.int8), out]
    simt.run(from_registers(defect), arguments, target="cuda:sm_90")
    want = (a @ b.T).astype(np.int32)
    for warp in range(4):
        blocks = [fill_c(want[16 * warp : 16 * warp + 16, 8 * i : 8 * i + 8]) for i in range(8)]
        np.testing.assert_array_equal(
            out.view(np.int32)[32 * warp : 32 * warp + 32], np.concatenate(blocks, axis=1)
        )


def test_operands_in_registers() -> None:
    registers_product()


@pytest.mark.parametrize(
    ("defect", "error", "text"),
    [
        ("no fence of memory", simt.RaceError, "b_desc: byte 0 .*fence.proxy.async is missing"),
        ("operand overwritten", simt.InFlightError, r"register w\[0\] written before the wait"),
    ],
)
def test_defects_with_registers(defect: str, error: type[simt.SimtError], text: str) -> None:
    with pytest.raises(error, match=text):
        registers_product(defect)


# ---------------------------------------------------------------- layouts


def test_swizzles_exchange_pieces_by_the_line() -> None:
    """The figures of the ISA: 16-byte pieces of eight lines."""
    line = np.arange(8)
    of_128 = [list(swizzled(128 * row + 16 * line, 128) // 16 % 8) for row in range(8)]
    assert of_128[0] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert of_128[1] == [1, 0, 3, 2, 5, 4, 7, 6]
    assert of_128[7] == [7, 6, 5, 4, 3, 2, 1, 0]
    piece = np.arange(4)
    of_64 = [list(swizzled(64 * row + 16 * piece, 64) // 16 % 4) for row in range(8)]
    assert of_64 == [
        [0, 1, 2, 3], [0, 1, 2, 3], [1, 0, 3, 2], [1, 0, 3, 2],
        [2, 3, 0, 1], [2, 3, 0, 1], [3, 2, 1, 0], [3, 2, 1, 0],
    ]  # fmt: skip
    assert list(swizzled(np.array([0, 128, 128 + 16]), 32)) == [0, 128 + 16, 128]


def test_descriptors() -> None:
    bits = int(encode(0x12340, 1, 64, 3))
    assert Descriptor.of(bits) == Descriptor(0x12340, 16, 1024, 128)
    assert bits >> 62 == 1  # 128 bytes
    plain = Descriptor(0, leading=128, stride=256, span=16).addresses(16, 32)
    assert plain[0].tolist() == [0, 128]  # the next 16 bytes of depth: the next core matrix
    assert plain[1, 0] == 16  # the next row: the next line of the core matrix
    assert plain[8, 0] == 256
    swapped = Descriptor(1024 + 32, leading=16, stride=1024, span=128).addresses(16, 32)
    assert swapped[0].tolist() == [1024 + 32, 1024 + 48]
    assert swapped[1].tolist() == [1024 + 128 + 48, 1024 + 128 + 32]
    assert swapped[8, 0] == 2048 + 32


def test_descriptors_of_matrices_that_lie_across() -> None:
    """CuTe's ``Layout_MN_SW128``: 64 halves side by side, eight lines of depth to a block."""
    at = Descriptor(0, leading=8192, stride=1024, span=128).transposed(128, 16)
    assert at[0, :3].tolist() == [0, 16, 32]
    assert at[1, :2].tolist() == [128 + 16, 128]  # swizzled
    assert at[8, 0] == 1024
    assert at[0, 8] == 8192
