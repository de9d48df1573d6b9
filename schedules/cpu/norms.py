"""Layer norm and RMS norm in integers, row by row: `nybble.ir.rows.layer_norm` and ``rms_norm``.

pass 1    Σx and Σx²
          1 / sqrt of K·Σx² - (Σx)² + epsilon, once a row
pass 2    K·x - Σx times that, times γ, plus β
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import rows
from nybble.schedules.cpu import rowwise
from nybble.schedules.cpu.buffers import Buffers, declare
from nybble.schedules.cpu.elementwise import clamp, i64, settled
from nybble.schedules.cpu.epilogue import is_narrow
from nybble.schedules.cpu.rowwise import Lanes
from nybble.schedules.kernel import Constants, Knobs, Problem, TensorSpec

WORK = 12  # operations for a value
LONGEST = 1 << 15  # Σx² of 8 bits stays below 2^31
OPERANDS = ("multiplier", "offset")


def _supports(lanes: int, problem: Problem) -> str | None:
    length = problem.output.shape[-1]
    if not isinstance(length, int):
        return "the number of channels is symbolic"
    if lanes > 1 and not (length <= LONGEST and is_narrow(problem.inputs[0].dtype)):
        return f"sums of squares of {length} {problem.inputs[0].dtype} may leave 32 bits"
    return f"{length} channels fill no vector" if length < lanes else None


def pack(_problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Multipliers and offsets as two rows, and the epsilon."""
    affine = np.stack([constants[name].astype(np.int32) for name in OPERANDS])
    return [affine, np.asarray(constants["epsilon"], np.int64).reshape(1)]


def _build(lanes: int, problem: Problem, _target: Any, _knobs: Knobs) -> tirx.PrimFunc:
    symbols: dict[str, Any] = {}
    length = int(problem.output.shape[-1])
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        constants = TensorSpec((2, length), "int32"), TensorSpec((1,), "int64")
        buffers = declare(problem, constants, symbols)
        row = partial(_row, problem, lanes, buffers)
        rowwise.tasks(problem.output.shape, WORK, symbols, row)
    return builder.get()


def _row(problem: Problem, lanes: int, buffers: Buffers, first: Any) -> None:
    length, attrs = int(problem.output.shape[-1]), dict(problem.attrs)
    wide = "int32" if lanes > 1 else "int64"
    zero = 0 if problem.op == "layer_norm" else int(attrs["zero_point_in"])
    total, squares = rowwise.added(wide, lanes), rowwise.added(wide, lanes)

    def summed(at: Any, n: Lanes) -> None:
        x = n.load(buffers.x, first + at, wide) - n.all(zero, wide)
        total.add(x, n)
        squares.add(x * x, n)

    rowwise.along(length, lanes, summed)
    k, square = i64(length), squares.result().astype("int64")
    mean = total.result().astype("int64") if problem.op == "layer_norm" else i64(0)
    epsilon = buffers.constants[1][0]
    root, right = _reciprocal_root(T.Bind(k * square - mean * mean + epsilon))
    centre = T.Bind((mean + k * zero).astype("int32"))  # K·x - K·zero where there is no mean
    left = T.Bind(tirx.max(32 - right, 0))
    factor = root, 0, T.Bind(tirx.max(right - 32, 0))

    def normalised(at: Any, n: Lanes) -> None:
        x = n.load(buffers.x, first + at)
        unit = n.rescaled(x * n.all(length) - n.all(centre), left, factor)
        gamma, beta = (_constant(buffers.constants[0], row, at, n) for row in (0, 1))
        value = n.rescaled(unit, None, (gamma, beta, attrs["shift"]))
        _store(problem, buffers.output, first + at, value, n)

    rowwise.along(length, lanes, normalised)


def _constant(table: Any, row: int, at: Any, n: Lanes) -> Any:
    if n.count == 1:
        return table[row, at]
    return T.Bind(table.vload([tirx.const(row), at], f"int32x{n.count}"))


def _store(problem: Problem, output: Any, at: Any, value: Any, n: Lanes) -> None:
    attrs, dtype = dict(problem.attrs), problem.output.dtype
    value = value + n.all(attrs["zero_point"])
    if n.count == 1:
        T.buffer_store(output, settled(value, attrs["lo"], attrs["hi"], dtype), [at])
        return
    value = tirx.max(tirx.min(value, n.all(attrs["hi"])), n.all(attrs["lo"]))
    if dtype == "int1":  # the sign, 0 counts as +1
        value = T.shift_right(value, n.all(31)) | n.all(1)
    n.store(output, at, value)


def _reciprocal_root(square: Any) -> tuple[Any, Any]:
    """`nybble.ir.rows.reciprocal_root` of one value, as int32."""
    cells = T.alloc_buffer((3,), "int64", scope="local", layout=None)  # no let: TVM would inline it
    T.buffer_store(cells, tirx.max(square, i64(1)), [0])
    zeros = T.call_llvm_pure_intrin("int64", "llvm.ctlz.i64", cells[0], tirx.const(1, "bool"))
    T.buffer_store(cells, (zeros - 2) & -2, [1])
    left = cells[1]
    T.buffer_store(cells, (cells[0] << left) >> 30, [0])
    v, y = cells[0], cells[2]
    T.buffer_store(cells, i64(rows.ROOT_START) - ((v * 85) >> 8), [2])
    with T.serial(rows.NEWTON_STEPS):
        error = (v * ((y * y) >> 32)) >> 30
        T.buffer_store(cells, (y * (i64(3 << 30) - error)) >> 31, [2])
    root = clamp(y, 1 << 30, (1 << 31) - 1).astype("int32")
    return T.Bind(root), T.Bind((i64(45) - (left >> 1)).astype("int32"))


KERNELS = rowwise.kernels(("layer_norm", "rms_norm"), _supports, pack, _build)
