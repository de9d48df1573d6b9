"""Tables of at most 256 bytes: sixteen entries at a time by ``vpshufb``.

``vpshufb`` gives 0 where bit 7 of the index is set. So with T[k] the k-th sixteen entries,
D[0] = T[0] and D[k] = T[k] ^ T[k-1],

    r = shuffle(D[0], x) ^ shuffle(D[1], x - 16) ^ shuffle(D[2], x - 32) ^ …

stops at x's own sixteen and telescopes to its entry, for x below 128; the subtraction saturates,
so larger x give 0 throughout. A second such chain on x ^ 128 serves them. With VBMI, ``vpermi2b``
looks up 128 entries at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu import epilogue, loops, stream
from nybble.schedules.cpu.buffers import declare
from nybble.schedules.cpu.dot import AVX2, AVX512
from nybble.schedules.kernel import Constants, Extent, Kernel, Knobs, Problem, TensorSpec

ENTRIES = 16
HALF = 128
WIDEST = 64  # rows are as long as the widest vector, so a load needs no broadcast

Emit = Callable[[Any, Any, int], Any]


def _shape(problem: Problem) -> tuple[Extent, ...]:
    """The tensor as pixels × channels; few channels are taken together with all static axes."""
    shape = problem.output.shape
    if shape and isinstance(shape[-1], int) and shape[-1] >= WIDEST:
        return shape
    symbols = tuple(extent for extent in shape if not isinstance(extent, int))
    return (*symbols, prod(extent for extent in shape if isinstance(extent, int)))


def _supports(lanes: int, features: tuple[str, ...], problem: Problem, target: Any) -> str | None:
    if target.arch != "x86_64" or not target.has(*features):
        return f"needs {', '.join(features)}"
    if not epilogue.is_narrow(problem.inputs[0].dtype):
        return f"tables of {problem.inputs[0].dtype} are too long"
    if not epilogue.is_narrow(problem.output.dtype):
        return f"entries {problem.output.dtype}: only up to 8 bits are looked up"
    length = _shape(problem)[-1]
    return f"{length} values fill no vector" if int(length) < lanes else None


def _rows(problem: Problem) -> int:
    low, high = numerics.limits(problem.inputs[0].dtype)
    return ceil((high - low + 1) / ENTRIES)


def _pack(chained: bool, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Sixteen entries a row, repeated; as differences where they are chained."""
    entries = np.zeros((_rows(problem), ENTRIES), np.uint8)
    values = constants["values"].view(np.uint8)
    entries.ravel()[: len(values)] = values
    if not chained:
        whole = np.zeros(4 * WIDEST, np.uint8)
        whole[: entries.size] = entries.ravel()
        return [whole.reshape(4, WIDEST)]
    before = np.roll(entries, 1, axis=0)
    before[:: HALF // ENTRIES] = 0  # both chains begin with the entries themselves
    return [np.tile(entries ^ before, (1, WIDEST // ENTRIES))]


def _build(
    lanes: int, emit: Emit, rows: Callable[[Problem], int], problem: Problem, _target: Any,
    _knobs: Knobs,
) -> tirx.PrimFunc:  # fmt: skip
    symbols: dict[str, Any] = {}
    low = numerics.limits(problem.inputs[0].dtype)[0]
    stored = loops.stored(problem.output.dtype)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        table = TensorSpec((rows(problem), WIDEST), "uint8")
        buffers = declare(problem, (table,), symbols)

        def body(_channel: Any, at: list[Any]) -> None:
            for index in at:
                x = buffers.x.vload([index], f"{buffers.x.dtype}x{lanes}")
                code = T.reinterpret(f"uint8x{lanes}", x) if low else x
                if low:
                    code = code + T.broadcast(tirx.const(-low, "uint8"), lanes)
                found = emit(buffers.constants[0], T.Bind(code), lanes)
                if stored != "uint8":
                    found = T.reinterpret(f"{stored}x{lanes}", found)
                T.buffer_store(buffers.output, found, [T.ramp(index, 1, lanes)])

        stream.sweep(_shape(problem), lanes, 2, symbols, body)
    return builder.get()


def _chains(table: Any, code: Any, lanes: int) -> Any:
    """`_pack`'s differences, looked up and joined."""
    steps, each = int(table.shape[0]), HALF // ENTRIES
    found = _chain(table, range(min(steps, each)), code, lanes)
    if steps > each:
        other = T.Bind(code ^ T.broadcast(tirx.const(HALF, "uint8"), lanes))
        found = found ^ _chain(table, range(each, steps), other, lanes)
    return found


def _chain(table: Any, rows: range, code: Any, lanes: int) -> Any:
    name = "llvm.x86.avx512.pshuf.b.512" if lanes == WIDEST else "llvm.x86.avx2.pshuf.b"
    by, dtype = T.broadcast(tirx.const(ENTRIES, "int8"), lanes), f"int8x{lanes}"
    index, found = T.Bind(T.reinterpret(dtype, code)), None
    for row in rows:
        if row != rows[0]:
            index = T.Bind(T.call_llvm_pure_intrin(dtype, "llvm.ssub.sat", index, by))
        entries = table.vload([tirx.const(row), tirx.const(0)], f"uint8x{lanes}")
        looked = T.call_llvm_pure_intrin(f"uint8x{lanes}", name, entries, index)
        found = T.Bind(looked if found is None else found ^ looked)
    return found


def _permutes(table: Any, code: Any, lanes: int) -> Any:
    """Two look-ups of 128 entries; bit 7 of the code tells which one counts."""
    dtype = f"uint8x{lanes}"
    parts = [table.vload([tirx.const(row), tirx.const(0)], dtype) for row in range(4)]
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    halves = [T.call_llvm_pure_intrin(dtype, name, parts[i], code, parts[i + 1]) for i in (0, 2)]
    return tirx.Select(code < T.broadcast(tirx.const(HALF, "uint8"), lanes), *halves)


def _four(_problem: Problem) -> int:
    return 4


VBMI = (*AVX512, "avx512vbmi")
KERNELS = tuple(
    Kernel(
        f"cpu.lookup.{name}",
        "table",
        partial(_supports, lanes, features),
        partial(_pack, emit is _chains),
        partial(_build, lanes, emit, _rows if emit is _chains else _four),
        arch="x86_64",
    )
    for name, lanes, features, emit in (
        ("vbmi", 64, VBMI, _permutes),
        ("avx512", 64, AVX512, _chains),
        ("avx2", 32, AVX2, _chains),
    )
)
"""By preference; what they refuse is left to `nybble.schedules.cpu.elementwise`."""
