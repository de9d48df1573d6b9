"""``cuda.rows`` dynamic quantization: float rows to integers and back, by `nybble.ir.weight_only`.

    row_tops         the largest bit pattern of |x|, joined by the team of a row
    quantize_rows    127 / top, once a thread; x times that, rounded
    rescale_rows     top / 127, once a thread; fma(x·scale, that, bias)

Rows are cut as `nybble.schedules.cuda.rowwise` says. Divisions are IEEE's, and products join sums
only where ``fmaf`` is written (`nybble.schedules.cuda.nvcc`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir.weight_only import LEAST, MOST
from nybble.schedules.cpu import dynamic, pooling
from nybble.schedules.cpu.buffers import Buffers, declare
from nybble.schedules.cuda.arch import KIND
from nybble.schedules.cuda.rowwise import NAME, Place, Team, Values, counter, plan_of
from nybble.schedules.kernel import Epilogue, Kernel, Knobs, Problem, TensorSpec

ROUNDER = 1.5 * 2**23
"""Floats near it are 1 apart: adding it rounds small values to integers, half to even, and leaves
them in the lowest bits, in two's complement. Two conversions less, which GPUs have few units for.
"""


def _supports(problem: Problem, _target: Any) -> str | None:
    is_static = isinstance(problem.inputs[0].shape[-1], int)
    return None if is_static else "the length of a row is symbolic"


def _build(
    emit: Callable[[Problem, Team, Buffers], None], problem: Problem, target: Any, knobs: Knobs
) -> tirx.PrimFunc:
    symbols: dict[str, Any] = {}
    x, *tops = problem.inputs
    two = replace(problem, epilogue=Epilogue(other=tops[0] if tops else None))
    is_rescaled = problem.op == "rescale_rows"
    constants = [TensorSpec(x.shape[-1:], "float32")] * 2 if is_rescaled else []
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True})
        buffers = declare(two, constants, symbols)
        team = Team(plan_of(problem, target, knobs), target, x.shape, symbols)
        emit(problem, team, buffers)
    return builder.get()


def _float(value: float) -> Any:
    return tirx.const(float(value), "float32")


def _magnitude(bits: Any) -> Any:
    """The bit pattern of |x|, given that of x."""
    return bits & T.int32(0x7FFFFFFF)


def _emit_tops(problem: Problem, team: Team, buffers: Buffers) -> None:
    x = Values(team.plan, buffers.x, problem.inputs[0].dtype, 1)
    # Rows below the least top count as it, so the search may begin there.
    largest = counter("int32", int(LEAST.view("int32")))

    def compared(place: Place) -> None:
        x.load(0, team.first + place.first)
        for lane in range(team.plan.lanes):
            magnitude = _magnitude(x.value(0, lane))
            T.buffer_store(largest, tirx.max(largest[0], magnitude), [0])

    team.walk(compared)
    found = team.joined(largest, "max")
    is_finite = found < T.int32(dynamic.INFINITY)
    top = T.reinterpret("float32", T.Select(is_finite, found, T.int32(dynamic.NAN)))
    is_first = team.member == 0
    with T.If(is_first if team.is_there is None else tirx.all(is_first, team.is_there)), T.Then():
        T.buffer_store(buffers.output, top, [team.row])


def _emit_quantized(problem: Problem, team: Team, buffers: Buffers) -> None:
    x = Values(team.plan, buffers.x, problem.inputs[0].dtype, 1)
    factor = T.Bind(_float(MOST) / buffers.other[team.row])
    # Without a top there is no factor, and the row is zeros.
    bits = _magnitude(T.reinterpret("int32", factor))
    has_scale = T.Bind(bits < T.int32(dynamic.INFINITY))

    def quantized(place: Place) -> None:
        x.load(0, team.first + place.first)
        found = []
        for lane in range(team.plan.lanes):
            value = T.reinterpret("float32", x.value(0, lane)) * factor
            rounded = T.Select(has_scale, value, _float(0)) + _float(ROUNDER)
            found.append(T.Cast("int8", T.reinterpret("int32", rounded)))
        team.store(place, buffers.output, found)

    team.walk(quantized)


def _emit_rescaled(problem: Problem, team: Team, buffers: Buffers) -> None:
    x = Values(team.plan, buffers.x, problem.inputs[0].dtype, 1)
    scale, bias = (Values(team.plan, one, "float32", 1) for one in buffers.constants)
    factor = T.Bind(buffers.other[team.row] / _float(MOST))

    def rescaled(place: Place) -> None:
        x.load(0, team.first + place.first)
        found = []
        for values in (scale, bias):
            values.load(0, place.first)
        for lane in range(team.plan.lanes):
            step, offset = (T.reinterpret("float32", v.value(0, lane)) for v in (scale, bias))
            product = T.Cast("float32", x.value(0, lane)) * step
            found.append(T.call_pure_extern("float32", "fmaf", product, factor, offset))
        team.store(place, buffers.output, found)

    team.walk(rescaled)


KERNELS = tuple(
    Kernel(NAME, op, _supports, pack, partial(_build, emit), arch=KIND, plan=plan_of)
    for op, pack, emit in (
        ("row_tops", pooling.pack, _emit_tops),
        ("quantize_rows", pooling.pack, _emit_quantized),
        ("rescale_rows", dynamic.pack_rescaled, _emit_rescaled),
    )
)
