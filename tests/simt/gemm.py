"""An s8 product as kernels for tensor cores are written: ``cp.async``, ``ldmatrix``, ``mma``.

    C (M, N) int32 = A (M, K) int8 · B (N, K) int8, transposed; 64 x 64 of C a block of four warps

Each defect that the interpreter has to find can be planted.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

MMA = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
DEFECTS = ("", "no wait", "no barrier", "late barrier", "overrun", "no swizzle")


def gemm(m: int, n: int, k: int, defect: str = "") -> Any:  # noqa: C901
    """The kernel for extents that are multiples of 64; ``defect`` is one of `DEFECTS`."""
    steps, stages = k // 64, 2
    wait = 1 if defect != "no wait" else 2
    before, after = defect != "no barrier", defect != "late barrier"
    swizzle = defect != "no swizzle"
    copy = "cp.async.cg.shared.global"
    rows = 65 if defect == "overrun" else 64

    @T.prim_func
    def main(  # noqa: C901
        left: T.Buffer((m, k), "int8"),
        right: T.Buffer((n, k), "int8"),
        out: T.Buffer((m, n), "int32"),
    ):
        T.device_entry()
        bx, by = T.cta_id([n // 64, m // 64])
        tx = T.thread_id([128])
        tile = T.alloc_buffer((stages * 2 * 64 * 64,), "int8", scope="shared", align=128)
        a = T.alloc_local([4], "uint32")
        b = T.alloc_local([16], "uint32")
        c = T.alloc_local([32], "uint32")
        row = T.meta_var(tx // 4)
        lane = T.meta_var(tx % 32)
        for i in T.unroll(32):
            c[i] = T.uint32(0)
        for ko in T.serial(steps + 1):
            if ko < steps:
                for h in T.unroll(2):  # 32 rows at a time, four pieces of 16 bytes a row
                    r = T.meta_var(h * 32 + row)
                    at = T.meta_var((tx % 4) ^ ((r // 2) % 4) if swizzle else tx % 4)
                    T.ptx[copy](
                        T.address_of(tile[(ko % stages) * 8192 + r * 64 + at * 16]),
                        T.address_of(left[by * 64 + r, ko * 64 + (tx % 4) * 16]),
                        16,
                    )
                    T.ptx[copy](
                        T.address_of(tile[(ko % stages) * 8192 + 4096 + r * 64 + at * 16]),
                        T.address_of(right[bx * rows + r, ko * 64 + (tx % 4) * 16]),
                        16,
                    )
            T.ptx["cp.async.commit_group"]()
            if ko > 0:
                T.ptx["cp.async.wait_group"](wait)
                if before:
                    T.cuda.cta_sync()
                for s in T.unroll(2):
                    ar = T.meta_var((tx // 32) * 16 + lane % 16)
                    ap = T.meta_var(s * 2 + lane // 16)
                    T.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"](
                        a[0], a[1], a[2], a[3],
                        T.address_of(tile[((ko - 1) % stages) * 8192 + ar * 64
                                          + (ap ^ ((ar // 2) % 4) if swizzle else ap) * 16]),
                    )  # fmt: skip
                    for j in T.unroll(4):
                        br = T.meta_var(j * 16 + lane % 8 + lane // 16 * 8)
                        bp = T.meta_var(s * 2 + lane // 8 % 2)
                        T.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"](
                            b[j * 4], b[j * 4 + 1], b[j * 4 + 2], b[j * 4 + 3],
                            T.address_of(tile[((ko - 1) % stages) * 8192 + 4096 + br * 64
                                              + (bp ^ ((br // 2) % 4) if swizzle else bp) * 16]),
                        )  # fmt: skip
                    for j in T.unroll(8):
                        T.ptx[MMA](
                            c[j * 4], c[j * 4 + 1], c[j * 4 + 2], c[j * 4 + 3],
                            a[0], a[1], a[2], a[3], b[j * 2], b[j * 2 + 1],
                            c[j * 4], c[j * 4 + 1], c[j * 4 + 2], c[j * 4 + 3],
                        )  # fmt: skip
                if after:
                    T.cuda.cta_sync()
        for i in T.unroll(32):
            out[
                by * 64 + (tx // 32) * 16 + lane // 4 + (i // 2) % 2 * 8,
                bx * 64 + (i // 4) * 8 + lane % 4 * 2 + i % 2,
            ] = T.reinterpret("int32", c[i])

    return main
