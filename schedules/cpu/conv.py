"""Convolution and linear on x86: int8 and float32, AVX2 and AVX-512, from one blocked template.

Weights are packed [groups][vectors][tap rows][tap columns][k][lanes][depth]; the last vector of a
group overlaps its predecessor, so a group of at least ``lanes`` channels has no partial vector.
Narrower groups are padded with zero weights and stored through a scratch vector.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nybble.schedules.cpu import epilogue, template
from nybble.schedules.cpu.blocking import vectors_of
from nybble.schedules.cpu.dot import FMA_AVX2, FMA_AVX512, MADD_AVX2, MADD_AVX512, VNNI, Dot
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem

# ---------------------------------------------------------------- supports


def _supports(dot: Dot, problem: Problem, target: Any) -> str | None:
    if target.arch != "x86_64" or not target.has(*dot.features):
        return f"needs {', '.join(dot.features)}"
    assert problem.weights is not None
    wanted = ("float32",) if dot.acc == "float32" else ("int8", "uint8")
    found = problem.inputs[0].dtype
    if found not in wanted or problem.weights.dtype != dot.w:
        return f"computes {' or '.join(wanted)} x {dot.w}, not {found} x {problem.weights.dtype}"
    if problem.output.dtype not in ("int8", "uint8", dot.acc):
        return f"cannot store {problem.output.dtype}"
    if problem.op == "conv2d" and any(isinstance(d, str) for d in problem.inputs[0].shape[1:]):
        return "more than the batch is symbolic"
    geometry = geometry_of(problem)
    if geometry.groups > 1 and min(geometry.o, geometry.c // geometry.groups) < 4:
        return f"groups of {geometry.c // geometry.groups} -> {geometry.o} channels fill no vector"
    return epilogue.refuse(problem)


# ---------------------------------------------------------------- pack


def _starts(geometry: Geometry, dot: Dot) -> list[int]:
    """First channel, within its group, of every vector."""
    last = max(geometry.o - dot.lanes, 0)
    return [min(v * dot.lanes, last) for v in range(vectors_of(geometry, dot))]


def _pack(dot: Dot, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Weights in the order of use, and the table of per-channel numbers (bias in row 0)."""
    geometry = geometry_of(problem)
    weights = np.asarray(constants["w"])
    channels = geometry.groups * geometry.o
    bias = np.asarray(constants["bias"])
    offset = dot.offset(problem.inputs[0].dtype)
    if offset:  # Σ(x + offset)·w = Σx·w + offset·Σw, modulo 2^32
        bias = bias.astype(np.int64) - offset * weights.reshape(channels, -1).sum(1, dtype=np.int64)
    rows = [bias, *epilogue.scaling_rows(problem, constants, channels)]
    table = np.zeros(template.table_shape(problem, geometry, dot), dot.acc)
    for row, values in zip(table, rows, strict=True):
        row[:channels] = epilogue.wrapped(values, dot.acc)
    return [_pack_weights(geometry, dot, weights), table]


def _pack_weights(geometry: Geometry, dot: Dot, weights: NDArray[Any]) -> NDArray[Any]:
    groups, lanes, runs = geometry.groups, dot.lanes, geometry.runs(dot.depth)
    shape = (groups, max(geometry.o, lanes), geometry.tap_rows, geometry.tap_cols, runs * dot.depth)
    padded = np.zeros(shape, dot.w)
    taps = weights.reshape(groups, geometry.o, geometry.tap_rows, geometry.tap_cols, geometry.run)
    padded[:, : geometry.o, ..., : geometry.run] = taps
    channels = np.add.outer(_starts(geometry, dot), np.arange(lanes))
    chosen = padded[:, channels].reshape(groups, *channels.shape, *shape[2:4], runs, dot.depth)
    packed = chosen.transpose(0, 1, 3, 4, 5, 2, 6)
    return np.ascontiguousarray(packed).reshape(-1, lanes * dot.depth)


# ---------------------------------------------------------------- the families


def _build(dot: Dot, problem: Problem, _target: Any, knobs: Knobs) -> tirx.PrimFunc:
    return template.build(problem, dot, knobs)


def _families() -> tuple[Kernel, ...]:
    return tuple(
        Kernel(
            f"cpu.{'f32' if dot.acc == 'float32' else 'int8'}.{dot.name}",
            op,
            partial(_supports, dot),
            partial(_pack, dot),
            partial(_build, dot),
        )
        for dot in (VNNI, MADD_AVX512, MADD_AVX2, FMA_AVX512, FMA_AVX2)
        for op in ("conv2d", "linear")
    )


KERNELS = _families()
"""By preference: VNNI before AVX-512 before AVX2."""
