"""Requantization, residual addition and products by themselves, with the arithmetic of `epilogue`.

Two vectors of 32-bit lanes are one block; each branch is loaded, centred and scaled, and the sums
are packed with saturation. Branches of at most 8 bits need no clamp before their left shift. Of a
product one factor may be a gate: one value for each channel of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu import epilogue, packing, scaling, stream
from nybble.schedules.cpu.buffers import declare
from nybble.schedules.cpu.dot import AVX2, AVX512
from nybble.schedules.kernel import Constants, Epilogue, Kernel, Knobs, Problem, TensorSpec

GROUP = 4  # pixels that share the loaded constants
PRODUCT = "multiply"
NAMES = {"requantize": ("",), "add": ("_a", "_b"), PRODUCT: ("",)}
ZEROS = {
    "requantize": ("zero_point_in",),
    "add": ("zero_point_a", "zero_point_b"),
    PRODUCT: ("zero_point_a", "zero_point_b"),
}


def _supports(lanes: int, features: tuple[str, ...], problem: Problem, target: Any) -> str | None:
    if target.arch != "x86_64" or not target.has(*features):
        return f"needs {', '.join(features)}"
    channels = problem.output.shape[-1] if problem.output.shape else 1
    if not isinstance(channels, int) or channels < 2 * lanes:
        return f"{channels} channels fill no block of {2 * lanes}"
    if problem.attr("rounding") != "half_up":
        return f"rounding {problem.attr('rounding')!r}: only half_up is vectorised"
    if not epilogue.is_narrow(problem.output.dtype):
        return f"output {problem.output.dtype}: only integers of up to 8 bits are stored"
    return _refuse_inputs(problem)


def _refuse_inputs(problem: Problem) -> str | None:
    for spec, zero in zip(problem.inputs, ZEROS[problem.op], strict=True):
        is_gate = problem.op == PRODUCT and _is_gate(spec, problem.output)
        if spec.shape != problem.output.shape and not is_gate:
            return "an input is broadcast"
        is_wide = problem.op == "requantize" and spec.dtype == "int32"
        if not epilogue.is_narrow(spec.dtype) and not is_wide:
            return f"input {spec.dtype}"
        if is_wide and problem.attr(zero):
            return "a zero point of int32 may overflow"
    return None


def _is_gate(spec: TensorSpec, output: TensorSpec) -> bool:
    """Whether a factor is one value for each channel of an image."""
    batch, *inner, channels = output.shape
    if not inner or any(isinstance(extent, str) for extent in inner):
        return False
    return spec.shape == (batch, *[1] * len(inner), channels)


# ---------------------------------------------------------------- pack


def _rows(problem: Problem) -> int:
    """Rows of the table: four for a narrow branch, six for int32 and for products."""
    if problem.op == PRODUCT:
        return 6
    return sum(6 if spec.dtype == "int32" else 4 for spec in problem.inputs)


def _pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    channels, rows = int(problem.output.shape[-1]), list[NDArray[np.int64]]()
    if problem.op == PRODUCT:
        scale = constants["multiplier"], constants["shift"]
        rows += scaling.branch_rows("int32", 0, scale, channels)
        return [np.stack([scaling.wrapped(row, "int32") for row in rows])]
    for branch, spec, zero in zip(
        NAMES[problem.op], problem.inputs, ZEROS[problem.op], strict=True
    ):
        scale = constants[f"multiplier{branch}"], constants[f"shift{branch}"]
        rows += scaling.branch_rows(spec.dtype, problem.attr(zero), scale, channels)
    return [np.stack([scaling.wrapped(row, "int32") for row in rows])]


# ---------------------------------------------------------------- build


def _build(lanes: int, problem: Problem, _target: Any, _knobs: Knobs) -> tirx.PrimFunc:
    symbols: dict[str, Any] = {}
    attrs: Mapping[str, Any] = dict(problem.attrs)
    bounds = Epilogue("requantize", attrs["lo"], attrs["hi"], zero_point=attrs["zero_point"])
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True})
        shape = (_rows(problem), int(problem.output.shape[-1]))
        second = replace(problem, epilogue=Epilogue(other=dict(enumerate(problem.inputs)).get(1)))
        buffers = declare(second, (TensorSpec(shape, "int32"),), symbols)
        inputs, table = [buffers.x, buffers.other], buffers.constants[0]
        zeros = [attrs[name] for name in ZEROS[problem.op]]

        def body(channel: Any, at: list[Any]) -> None:
            halves = [_Half(table, channel + half * lanes, lanes) for half in (0, 1)]
            for index in at:
                where = [_place(problem, spec, index, channel) for spec in problem.inputs]
                factors = problem.op == PRODUCT
                low, high = (
                    (half.product if factors else half.sum)(
                        inputs, zeros, [at + h * lanes for at in where]
                    )
                    for h, half in enumerate(halves)
                )
                value = packing.block(low, high, bounds, problem.output.dtype, natural=True)
                T.buffer_store(buffers.output, value, [T.ramp(index, 1, 2 * lanes)])

        stream.sweep(problem.output.shape, 2 * lanes, GROUP, symbols, body)
    return builder.get()


def _place(problem: Problem, spec: TensorSpec, index: Any, channel: Any) -> Any:
    """Where an input holds what goes with a position of the output."""
    if spec.shape == problem.output.shape:
        return index
    image = prod(int(extent) for extent in problem.output.shape[1:])
    channels = int(problem.output.shape[-1])
    return T.Bind(tirx.floordiv(index, image) * channels + channel)


class _Half:
    """One vector of channels."""

    def __init__(self, table: Any, start: Any, lanes: int):
        self.lanes = lanes
        self.rows = [
            T.Bind(table.vload([tirx.const(row), start], f"int32x{lanes}"))
            for row in range(int(table.shape[0]))
        ]

    def centred(self, x: Any, zero: int, index: Any) -> Any:
        """A vector of an input, from its zero point."""
        value = T.Cast(f"int32x{self.lanes}", x.vload([index], f"{x.dtype}x{self.lanes}"))
        return value - T.broadcast(tirx.const(zero, "int32"), self.lanes) if zero else value

    def product(self, inputs: list[Any], zeros: list[int], where: list[Any]) -> Any:
        """The scaled product of both inputs."""
        a, b = (self.centred(*one) for one in zip(inputs, zeros, where, strict=True))
        value = tirx.max(tirx.min(a * b, self.rows[1]), self.rows[0])
        return T.Bind(epilogue.scaled(value, self.rows[2:], self.lanes))

    def sum(self, inputs: list[Any], zeros: list[int], where: list[Any]) -> Any:
        """The sum of the scaled branches."""
        total, rows = None, self.rows
        for x, zero, index in zip(inputs, zeros, where, strict=False):
            wide = str(x.dtype) == "int32"
            value = self.centred(x, zero, index)
            if wide:
                value = tirx.max(tirx.min(value, rows[1]), rows[0])
            used = 6 if wide else 4
            scaled = epilogue.scaled(value, rows[used - 4 : used], self.lanes)
            total, rows = scaled if total is None else total + scaled, rows[used:]
        return T.Bind(total)


KERNELS = tuple(
    Kernel(
        f"cpu.rescale.{name}",
        op,
        partial(_supports, lanes, features),
        _pack,
        partial(_build, lanes),
        arch="x86_64",
    )
    for name, lanes, features in (("avx512", 16, AVX512), ("avx2", 8, AVX2))
    for op in NAMES
)
"""By preference; what they refuse is left to `nybble.schedules.cpu.elementwise`."""
