"""Convolution and linear on Intel's AMX: tiles of 16 pixels by 16 channels by 64 bytes, exact.

``tdpbusd`` multiplies unsigned by signed bytes, ``tdpbssd`` signed ones, into int32 that wraps: no
operand needs care. Weights lie as [channels / 16][taps][steps][size / 4][16][4], those below 8 bits
packed panel by panel (`nybble.schedules.cpu.panels`) and decoded once for each block of channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.schedules.cpu import amx_block, amx_emit, amx_stage, epilogue, panels, scaling
from nybble.schedules.cpu.amx_plan import LANES, Plan, depth_of, vectors_of
from nybble.schedules.cpu.dot import AVX512
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem

FEATURES = (*AVX512, "amx_tile", "amx_int8")
NAME = "cpu.int8.amx"
FEW_PIXELS = 8  # below, tiles stay too empty to beat vectors
FEW_BYTES = 16
FEW_PRODUCTS = 32  # up to here vectors are faster


def supports(problem: Problem, target: Any) -> str | None:
    """None when the kernel compiles the problem on the target, else the reason."""
    if target.arch != "x86_64" or not target.has(*FEATURES):
        return f"needs {', '.join(FEATURES)}"
    assert problem.weights is not None
    x, w, y = problem.inputs[0].dtype, problem.weights.dtype, problem.output.dtype
    if not (epilogue.is_narrow(x) and epilogue.is_narrow(w)) or w == "uint8":
        return f"computes integers of up to 8 bits by signed weights, not {x} x {w}"
    if y != "int32" and not epilogue.is_narrow(y):
        return f"cannot store {y}"
    if problem.op == "conv2d" and any(isinstance(d, str) for d in problem.inputs[0].shape[1:]):
        return "more than the batch is symbolic"
    return _refuse_shape(geometry_of(problem)) or epilogue.refuse(problem)


def _refuse_shape(geometry: Geometry) -> str | None:
    rows = geometry.static_rows
    if geometry.groups > 1:
        return f"{geometry.groups} groups fill no tile"
    if rows is None:
        return "the number of rows is symbolic"
    if rows * geometry.cols < FEW_PIXELS:
        return f"{rows * geometry.cols} pixels fill no tile"
    if geometry.run < FEW_BYTES:
        return f"runs of {geometry.run} bytes fill no tile"
    if depth_of(geometry).taps * geometry.run <= FEW_PRODUCTS:
        return f"{depth_of(geometry).taps * geometry.run} products an output pay for no tile"
    return None


def pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Weights in the order of use, and the table of per-channel numbers (bias in row 0)."""
    geometry = amx_stage.laid_out(geometry_of(problem))
    assert problem.weights is not None
    columns = amx_emit.table_shape(problem, geometry)[1]
    table = scaling.table(problem, constants, np.asarray(constants["bias"]), columns)
    filler = panels.filler(problem.weights.dtype)
    ordered = _ordered(geometry, np.asarray(constants["w"]), filler)
    layout = amx_block.panels_of(problem, geometry)
    if layout is None:
        return [ordered.reshape(-1, depth_of(geometry).operand), table]
    return [panels.pack(layout, ordered.reshape(-1, layout.length)), table]


def _ordered(geometry: Geometry, weights: NDArray[Any], filler: int) -> NDArray[np.int8]:
    """The weights in the order of use; the last tile of channels overlaps its predecessor."""
    depth, o = depth_of(geometry), geometry.o
    padded = np.zeros((max(o, LANES), depth.taps, depth.count * depth.size), np.int8)
    padded[:o, :, : geometry.run] = weights.reshape(o, depth.taps, geometry.run)
    padded[o:] = filler
    starts = [min(v * LANES, max(o - LANES, 0)) for v in range(vectors_of(geometry))]
    chosen = padded[np.add.outer(starts, np.arange(LANES))]
    quads = chosen.reshape(len(starts), LANES, depth.steps, depth.size // 4, 4)
    return np.ascontiguousarray(quads.transpose(0, 2, 3, 1, 4))


def plan(problem: Problem, _target: Any, knobs: Knobs) -> Plan:
    """How a layer is cut."""
    return amx_emit.plan(problem, knobs)


def build(problem: Problem, _target: Any, knobs: Knobs) -> Any:
    """The fused function; parameters: input, second branch if any, weights, table, output."""
    return amx_emit.build(problem, knobs)


KERNELS = tuple(
    Kernel(NAME, op, supports, pack, build, arch="x86_64", decodes=True, plan=plan)
    for op in ("conv2d", "linear")
)
