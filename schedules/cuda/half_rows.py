"""Activations in half precision, made once for all blocks of a layer of many rows.

A row is as long as the packed weights of a channel: groups are filled up with zeros. The 64 inputs
of a record (`nybble.schedules.cuda.weight_only_layout`) lie in the order in which the tensor cores
go through them, so that weights have one packing for ``mma`` and ``wgmma``:

    position 16s + 8h + 2t + i      input 32·(s / 2) + 8t + 4·(s % 2) + 2h + i
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda.weight_only_layout import DEPTH, Layout

THREADS = 256
PIECE = 8
"""Inputs that a thread brings: s and h of a record, all t."""
BYTES = 2


def line_of(layout: Layout) -> int:
    """Bytes of a row."""
    return layout.records * DEPTH * BYTES


def make(layout: Layout, x: Any, rows: Any, into: Any) -> None:
    """Emits the kernel.

    Args:
        layout: of the weights.
        x: float32 activations, flat.
        rows: how many, an expression.
        into: bytes of all rows, flat.
    """
    words = T.decl_buffer((tirx.floordiv(into.shape[0], 4),), "uint32", data=into.data)
    pieces = layout.records * DEPTH // PIECE
    total = rows * pieces
    with (
        T.launch_thread("blockIdx.x", (total + THREADS - 1) // THREADS) as block,
        T.launch_thread("threadIdx.x", THREADS) as thread,
    ):
        i = T.Bind(T.Cast("int32", block) * THREADS + thread)
        with T.If(i < total), T.Then():
            row, piece = T.Bind(i // pieces), T.Bind(i % pieces)
            record, s, h = piece // 8, piece % 8 // 2, piece % 2
            first = T.Bind(record * DEPTH + s // 2 * 32 + s % 2 * 4 + h * 2)
            found = T.alloc_buffer((PIECE,), "float16", scope="local")
            for t in range(4):
                _take(layout, (x, row), T.Bind(first + 8 * t), (found, 2 * t))
            made = T.decl_buffer((PIECE // 2,), "uint32", data=found.data, scope="local")
            T.buffer_store(words, made.vload([0], "uint32x4"), [T.ramp(i * 4, 1, 4)])


def _take(layout: Layout, source: tuple[Any, Any], here: Any, into: tuple[Any, int]) -> None:
    """Two neighbours of a row, zeros beyond the end of it or of their group."""
    (x, row), (found, at), exists = source, into, []
    if not layout.is_gapless:
        inside = T.Bind(here % layout.padded)
        exists = [inside + i < layout.group for i in (0, 1)]
        here = T.Bind(here // layout.padded * layout.group + inside)
    for i in (0, 1):
        T.buffer_store(found, tirx.const(0, "float16"), [at + i])
        inner = tirx.all(*exists[i : i + 1], here + i < layout.k)
        with T.If(inner), T.Then():
            T.buffer_store(found, T.Cast("float16", x[row * layout.k + here + i]), [at + i])
