"""``cpu.generic`` weight-only layers: the law as it stands, for any target, width and group.

    q [K], row scale             one row at a time
    weights [O / 16][K][16]      w - zero point as s16
    acc [16]                     a group in int32, then float32 fused multiply-add

Without fused multiply-add in hardware, LLVM calls the C library's ``fmaf``: slow and the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir.weight_only import INT8, LEAST, MOST
from nybble.schedules.cpu import elementwise
from nybble.schedules.cpu.buffers import declare, load, product, store
from nybble.schedules.cpu.epilogue import floats
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

LANES = 16
INTS, FLOATS = f"int32x{LANES}", f"float32x{LANES}"
INFINITY, NAN = 0x7F800000, 0x7FC00000
LONGEST = 65536  # weights of a group whose sum of 255·127 each fits 32 bits


def _sizes(problem: Problem) -> tuple[int, int, int, int]:
    """(O, K, groups, blocks of output channels)."""
    assert problem.weights is not None
    o, k = (int(d) for d in problem.weights.shape)
    return o, k, -(-k // int(problem.attr("group"))), -(-o // LANES)


def _channels(o: int, blocks: int) -> NDArray[np.int64]:
    """(blocks, lanes) output channels: the last block overlaps; those beyond ``o`` are padding."""
    first = np.minimum(np.arange(blocks) * LANES, max(o - LANES, 0))
    return first[:, None] + np.arange(LANES)


def _pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Centred weights [blocks][K][16], scales [blocks][groups][16], bias."""
    o, k, groups, blocks = _sizes(problem)
    zero = np.repeat(np.asarray(constants["zero_point"]), int(problem.attr("group")), axis=1)
    width = max(o, LANES)
    w, scale = np.zeros((width, k), np.int16), np.zeros((width, groups), np.float32)
    w[:o] = constants["w"] - zero[:, :k]
    scale[:o] = constants["scale"]
    bias = np.zeros(width, np.float32)
    bias[:o] = constants["bias"]
    chosen = _channels(o, blocks)
    return [*(a[chosen].transpose(0, 2, 1).copy() for a in (w, scale)), bias]


def _build(problem: Problem, _target: Any, _knobs: Knobs) -> tirx.PrimFunc:
    o, k, groups, blocks = _sizes(problem)
    symbols: dict[str, Any] = {}
    constants = (
        TensorSpec((blocks, k, LANES), "int16"),
        TensorSpec((blocks, groups, LANES), "float32"),
        TensorSpec((max(o, LANES),), "float32"),
    )
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        buffers = declare(problem, constants, symbols)
        bias = buffers.constants[2]
        with T.serial(product(problem.inputs[0].shape[:-1], symbols)) as row:
            q = T.alloc_buffer((k,), "int32", layout=None)
            row_scale = _quantize(buffers.x, T.Bind(row * k), q, k)
            with T.serial(blocks) as block:
                acc = _accumulate(problem, q, buffers.constants, block)
                first = T.Bind(tirx.min(block * LANES, max(o - LANES, 0)))
                addend = bias.vload([first], FLOATS)
                value = _fma(acc, T.broadcast(row_scale, LANES), addend)
                at, valid = T.Bind(row * o + first), min(o, LANES)
                other = buffers.other
                if other is not None:
                    other = load(other, at, LANES, valid)
                if problem.epilogue.kind == "float":
                    value = floats(problem.epilogue, value, other)
                store(buffers.output, at, value, valid)
    return builder.get()


def _quantize(x: Any, begin: Any, q: Any, k: int) -> Any:
    """One row as integers; returns its scale."""
    best = T.alloc_buffer((1,), "int32", scope="local", layout=None)
    T.buffer_store(best, tirx.const(0, "int32"), [0])
    with T.serial(k) as i:  # as patterns without sign, infinity and NaN are the largest
        pattern = T.reinterpret("int32", x[begin + i]) & tirx.const(0x7FFFFFFF, "int32")
        T.buffer_store(best, tirx.max(best[0], pattern), [0])
    bound = tirx.max(best[0], tirx.const(int(LEAST.view("int32")), "int32"))
    finite = T.Bind(best[0] < INFINITY)
    top = T.Bind(T.reinterpret("float32", bound))
    most = tirx.const(float(MOST), "float32")
    inverse = T.Bind(most / top)
    with T.serial(k) as i:
        value = T.Select(finite, x[begin + i] * inverse, tirx.const(0.0, "float32"))
        T.buffer_store(q, T.Cast("int32", tirx.nearbyint(value)), [i])
    return T.Bind(T.Select(finite, top / most, T.reinterpret("float32", _int(NAN))))


def _accumulate(problem: Problem, q: Any, constants: tuple[Any, ...], block: Any) -> Any:
    """The groups of one block of channels, in order."""
    _, k, groups, _ = _sizes(problem)
    group, (w, scale, _) = int(problem.attr("group")), constants
    acc = T.alloc_buffer((1,), FLOATS, scope="local", layout=None)
    total = T.alloc_buffer((1,), INTS, scope="local", layout=None)
    T.buffer_store(acc, T.broadcast(tirx.const(0.0, "float32"), LANES), [0])
    with T.serial(groups) as g:
        T.buffer_store(total, T.broadcast(_int(0), LANES), [0])
        with T.serial(tirx.min(group, k - g * group)) as i:
            at = T.Bind(g * group + i)
            centred = T.Cast(INTS, w.vload([block, at, _int(0)], f"int16x{LANES}"))
            T.buffer_store(total, total[0] + centred * T.broadcast(q[at], LANES), [0])
        weights = scale.vload([block, g, _int(0)], FLOATS)
        T.buffer_store(acc, _fma(T.Cast(FLOATS, total[0]), weights, acc[0]), [0])
    return acc[0]


def _fma(a: Any, b: Any, c: Any) -> Any:
    return T.call_llvm_pure_intrin(FLOATS, "llvm.fma", a, b, c)


def _int(value: int) -> Any:
    return tirx.const(value, "int32")


def _supports(problem: Problem, _target: Any) -> str | None:
    assert problem.weights is not None
    if dict(problem.attrs).get("compute", INT8) != INT8:
        return f"computes in {INT8} only"
    longest = min(int(problem.attr("group")), int(problem.weights.shape[1]))
    return None if longest <= LONGEST else f"groups of more than {LONGEST} could exceed 32 bits"


WEIGHT_ONLY = Kernel(elementwise.NAME, "weight_only", _supports, _pack, _build)
