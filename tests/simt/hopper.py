# ruff: noqa: C901, F821, PLR0912, PLR0915 (kernels, in TVM's script, whose names are declared)
"""An s8 product as kernels for Hopper are written: TMA, ``mbarrier``, ``wgmma``.

    C (M, N) int32 = A (M, K) int8 · B (N, K) int8, transposed; 64 x 64 of C a block

One warp orders the copies into a ring of two stages, four multiply. Each defect that the
interpreter has to find can be planted.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

TMA = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
WGMMA = "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8"
STAGES, SPAN = 2, 128


def gemm(m: int, n: int, k: int, defect: str = "") -> Any:
    """The kernel; rows and columns beyond m and n come as zeros and are not stored."""
    steps = -(-k // SPAN)
    bytes_ = 2 * 64 * SPAN + (16 if defect == "wrong bytes" else 0)

    @T.prim_func
    def main(left: T.handle, right: T.handle, result: T.handle):
        a = T.match_buffer(left, (m, k), dtype="int8", align=16)
        b = T.match_buffer(right, (n, k), dtype="int8", align=16)
        c = T.match_buffer(result, (m, n), dtype="int32", align=16)
        a_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        T.call_packed(
            "runtime.cuTensorMapEncodeTiled",
            a_map, "int8", 2, a.data, k, m, k, SPAN, 64, 1, 1, 0, 3, 0, 0,
        )  # fmt: skip
        b_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        T.call_packed(
            "runtime.cuTensorMapEncodeTiled",
            b_map, "int8", 2, b.data, k, n, k, SPAN, 64, 1, 1, 0, 3, 0, 0,
        )  # fmt: skip
        T.device_entry()
        bx, by = T.cta_id([(n + 63) // 64, (m + 63) // 64])
        tx = T.thread_id([128 + 32])
        pool = T.SMEMPool()
        a_tile = pool.alloc((STAGES, 64, SPAN), "int8", align=1024)
        b_tile = pool.alloc((STAGES, 64, SPAN), "int8", align=1024)
        full = pool.alloc((STAGES,), "uint64", align=8)
        empty = pool.alloc((STAGES,), "uint64", align=8)
        pool.commit()
        da: T.uint64
        db: T.uint64
        acc = T.alloc_local([32], "uint32")
        if tx == 0:
            for s in T.unroll(STAGES):
                T.ptx.mbarrier.init.shared.b64(T.address_of(full[s]), T.uint32(1))
                T.ptx.mbarrier.init.shared.b64(T.address_of(empty[s]), T.uint32(1))
        if defect != "no fence of barriers":
            T.ptx.fence.proxy.async_.shared__cta()
        if defect != "no barrier":
            T.cuda.cta_sync()
        if tx >= 128:
            if tx == 128:
                for ko in T.serial(steps):
                    if defect != "no wait for empty":
                        T.cuda.mbarrier_wait(
                            T.address_of(empty[ko % STAGES]), ((ko // STAGES) & 1) ^ 1
                        )
                    T.ptx.mbarrier.arrive.expect_tx.shared.b64(
                        T.address_of(full[ko % STAGES]), T.uint32(bytes_)
                    )
                    T.ptx[TMA](
                        T.address_of(a_tile[ko % STAGES, 0, 0]), T.address_of(a_map),
                        ko * SPAN, by * 64, T.address_of(full[ko % STAGES]),
                    )  # fmt: skip
                    T.ptx[TMA](
                        T.address_of(b_tile[ko % STAGES, 0, 0]), T.address_of(b_map),
                        ko * SPAN, bx * 64, T.address_of(full[ko % STAGES]),
                    )  # fmt: skip
        else:
            for i in T.unroll(32):
                acc[i] = T.uint32(0)
            for ko in T.serial(steps):
                if defect != "no wait for full":
                    T.cuda.mbarrier_wait(T.address_of(full[ko % STAGES]), (ko // STAGES) & 1)
                if defect != "no fence of registers":
                    T.ptx.wgmma.fence.sync.aligned()
                for s in T.unroll(4):
                    T.cuda.wgmma.encode_matrix_descriptor(
                        T.address_of(da), T.address_of(a_tile[ko % STAGES, 0, s * 32]), 1, 64, 3
                    )
                    T.cuda.wgmma.encode_matrix_descriptor(
                        T.address_of(db), T.address_of(b_tile[ko % STAGES, 0, s * 32]), 1, 64, 3
                    )
                    T.ptx[WGMMA](*[acc[i] for i in range(32)], da, db, T.bool(True))
                T.ptx.wgmma.commit_group.sync.aligned()
                T.ptx.wgmma.wait_group.sync.aligned(1 if defect == "no wait for product" else 0)
                if tx == 0:
                    T.ptx.mbarrier.arrive.shared.b64(T.address_of(empty[ko % STAGES]))
            for i in T.unroll(32):
                row = T.meta_var(by * 64 + tx // 32 * 16 + tx % 32 // 4 + i // 2 % 2 * 8)
                column = T.meta_var(bx * 64 + i // 4 * 8 + tx % 4 * 2 + i % 2)
                if row < m and column < n:
                    c[row, column] = T.reinterpret("int32", acc[i])

    return main


def from_registers(defect: str = "") -> Any:
    """64 x 64 by 64 of depth: A from registers, B stored to shared memory by the threads."""

    @T.prim_func
    def main(
        a: T.Buffer((2, 128, 4), "uint32"),  # fragments
        b: T.Buffer((64, 64), "int8"),
        c: T.Buffer((128, 32), "uint32"),  # registers
    ):
        T.device_entry()
        T.cta_id([1])
        tx = T.thread_id([128])
        pool = T.SMEMPool()
        tile = pool.alloc((64, 64), "int8", align=1024)
        pool.commit()
        acc = T.alloc_local([32], "uint32")
        w = T.alloc_local([8], "uint32")
        db: T.uint64
        for i in T.unroll(2):
            piece = T.meta_var((tx % 4) ^ (tx // 4 // 2 % 4))
            for j in T.vectorized(16):
                tile[i * 32 + tx // 4, piece * 16 + j] = b[i * 32 + tx // 4, tx % 4 * 16 + j]
        for i in T.unroll(8):
            w[i] = a[i // 4, tx, i % 4]
        if defect != "no fence of memory":
            T.ptx.fence.proxy.async_.shared__cta()
        T.cuda.cta_sync()
        T.ptx.wgmma.fence.sync.aligned()
        for s in T.unroll(2):
            T.cuda.wgmma.encode_matrix_descriptor(
                T.address_of(db), T.address_of(tile[0, s * 32]), 1, 32, 2
            )
            T.ptx[WGMMA](
                *[acc[i] for i in range(32)],
                w[s * 4], w[s * 4 + 1], w[s * 4 + 2], w[s * 4 + 3], db, T.bool(s > 0),
            )  # fmt: skip
            if defect == "operand overwritten":
                w[s * 4] = T.uint32(0)
        T.ptx.wgmma.commit_group.sync.aligned()
        T.ptx.wgmma.wait_group.sync.aligned(0)
        for i in T.unroll(32):
            c[tx, i] = acc[i]

    return main
