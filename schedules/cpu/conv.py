"""Convolution and linear on x86: integers and float32, AVX2 and AVX-512, from one blocked template.

Weights lie as [groups][vectors][tap rows][tap columns][k][lanes][depth], those below 8 bits packed
panel by panel (`nybble.schedules.cpu.panels`). The last vector of a group overlaps its predecessor,
so a group of at least ``lanes`` channels has no partial vector; narrower groups are padded with
idle channels and stored through a scratch vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nybble.errors import ScheduleError
from nybble.schedules.cpu import (
    epilogue,
    excess,
    headroom,
    nibbles,
    panels,
    scaling,
    staging,
    template,
)
from nybble.schedules.cpu.blocking import Plan, vectors_of
from nybble.schedules.cpu.dot import (
    AVX_VNNI,
    FMA_AVX2,
    FMA_AVX512,
    MADD_AVX2,
    MADD_AVX512,
    PAIRS_AVX2,
    PAIRS_AVX512,
    VNNI,
    Dot,
)
from nybble.schedules.cpu.geometry import Geometry, geometry_of
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem

FEW_WEIGHTS = 1 << 13  # 16 KiB of 16 bits
DOTS = (VNNI, AVX_VNNI, PAIRS_AVX512, MADD_AVX512, PAIRS_AVX2, MADD_AVX2, FMA_AVX512, FMA_AVX2)

# ---------------------------------------------------------------- supports


def _supports(dot: Dot, problem: Problem, target: Any) -> str | None:
    if target.arch != dot.arch or not target.has(*dot.features):
        return f"needs {', '.join(dot.features)}"
    assert problem.weights is not None
    reason = _refuse_dtypes(dot, problem)
    if reason is not None:
        return reason
    if problem.op == "conv2d" and any(isinstance(d, str) for d in problem.inputs[0].shape[1:]):
        return "more than the batch is symbolic"
    if dot.sums and not problem.flush:
        return "too many sums of products go beyond 16 bits"
    geometry = geometry_of(problem)
    if geometry.groups > 1 and min(geometry.o, geometry.c // geometry.groups) < 4:
        return f"groups of {geometry.c // geometry.groups} -> {geometry.o} channels fill no vector"
    return epilogue.refuse(problem)


def _refuse_dtypes(dot: Dot, problem: Problem) -> str | None:
    assert problem.weights is not None
    x, w, y = problem.inputs[0].dtype, problem.weights.dtype, problem.output.dtype
    if dot.acc == "float32":
        return None if x == w == y == dot.acc else f"computes float32, not {x} x {w} -> {y}"
    if not (epilogue.is_narrow(x) and epilogue.is_narrow(w)) or w == "uint8":
        return f"computes integers of up to 8 bits by signed weights, not {x} x {w}"
    if y != dot.acc and not epilogue.is_narrow(y):
        return f"cannot store {y}"
    return None


# ---------------------------------------------------------------- pack


def _stored(dot: Dot, problem: Problem) -> Dot:
    """The dot with weights as they lie: few of them are widened when packed, not in the loop."""
    assert problem.weights is not None
    few = prod(int(d) for d in problem.weights.shape) <= FEW_WEIGHTS
    widens = dot.x == "int16" and problem.weights.dtype == "int8"
    return replace(dot, w="int16") if few and widens else dot


def _starts(geometry: Geometry, dot: Dot) -> list[int]:
    """First channel, within its group, of every vector."""
    last = max(geometry.o - dot.lanes, 0)
    return [min(v * dot.lanes, last) for v in range(vectors_of(geometry, dot))]


def _pack(dot: Dot, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Weights in the order of use, and the table of per-channel numbers (bias in row 0)."""
    geometry, dot = geometry_of(problem), _stored(dot, problem)
    assert problem.weights is not None
    weights = np.asarray(constants["w"])
    channels = geometry.groups * geometry.o
    bias = np.asarray(constants["bias"])
    offset = dot.offset(problem.inputs[0].dtype)
    if offset:  # Σ(x + offset)·w = Σx·w + offset·Σw, modulo 2^32
        bias = bias.astype(np.int64) - offset * weights.reshape(channels, -1).sum(1, dtype=np.int64)
    columns = template.table_shape(problem, geometry, dot)[1]
    table = scaling.table(problem, constants, bias, columns, dot.acc)
    weights, *excess = _safe(dot, problem, geometry, weights)
    ordered = _ordered(geometry, dot, weights, panels.filler(problem.weights.dtype))
    layout = template.panels_of(problem, geometry, dot)
    if layout is None:
        return [ordered.reshape(-1, dot.lanes * dot.depth), table, *excess]
    return [panels.pack(layout, ordered.reshape(-1, layout.length)), table, *excess]


def _safe(
    dot: Dot, problem: Problem, geometry: Geometry, weights: NDArray[Any]
) -> list[NDArray[Any]]:
    """The weights; for dots with sums without what is too much, which follows as further steps.

    Where nothing is too much, two zeros follow (`nybble.schedules.cpu.windows.places`).
    """
    if not dot.sums:
        return [weights]
    if problem.safe:
        if not headroom.is_safe(problem, weights):
            raise ScheduleError("safe is set, but there are windows that exceed 16 bits")
        return [weights, np.zeros(2, np.int32)]
    steps = headroom.steps_of(geometry, weights)
    limits = headroom.limits_of(problem.inputs[0].dtype)
    kept, *given = headroom.split(steps, problem.flush, limits)
    operands = [
        _ordered(geometry, dot, _flat(geometry, part), 0).reshape(
            geometry.groups * vectors_of(geometry, dot), -1, dot.lanes * dot.depth
        )
        for part in given
    ]
    staged = staging.is_staged(problem, geometry, dot)
    offsets = excess.offsets_of(geometry, staging.pitch(geometry, staged))
    return [_flat(geometry, kept), *excess.pack(operands, offsets, limits)]


def _flat(geometry: Geometry, steps: NDArray[Any]) -> NDArray[Any]:
    """Steps of four weights as weights again, without what fills up the runs."""
    return steps.reshape(*steps.shape[:2], -1)[..., : geometry.run]


def _ordered(geometry: Geometry, dot: Dot, weights: NDArray[Any], filler: int) -> NDArray[Any]:
    """The weights in the order of use: (groups, vectors, tap rows, tap cols, k, lanes, depth)."""
    groups, lanes, runs = geometry.groups, dot.lanes, geometry.runs(dot.depth)
    shape = (groups, max(geometry.o, lanes), geometry.tap_rows, geometry.tap_cols, runs * dot.depth)
    padded = np.zeros(shape, dot.w)
    taps = weights.reshape(groups, geometry.o, geometry.tap_rows, geometry.tap_cols, geometry.run)
    padded[:, : geometry.o, ..., : geometry.run] = taps
    padded[:, geometry.o :] = filler
    channels = np.add.outer(_starts(geometry, dot), np.arange(lanes))
    chosen = padded[:, channels].reshape(groups, *channels.shape, *shape[2:4], runs, dot.depth)
    return np.ascontiguousarray(chosen.transpose(0, 1, 3, 4, 5, 2, 6))


# ---------------------------------------------------------------- the families


def _plan(dot: Dot, problem: Problem, _target: Any, knobs: Knobs) -> Plan:
    return template.plan(problem, _stored(dot, problem), knobs)


def _build(dot: Dot, problem: Problem, _target: Any, knobs: Knobs) -> tirx.PrimFunc:
    return template.build(problem, _stored(dot, problem), knobs)


def _supports_packed(dot: Dot, problem: Problem, target: Any) -> str | None:
    return nibbles.refuse(problem, dot.lanes) or _supports(dot, problem, target)


def families(dots: Sequence[Dot]) -> tuple[Kernel, ...]:
    """The kernels of some dot products, in their order."""
    return tuple(
        Kernel(
            f"cpu.{'f32' if dot.acc == 'float32' else 'int8'}.{dot.name}",
            op,
            partial(_supports, dot),
            partial(_pack, dot),
            partial(_build, dot),
            arch=dot.arch,
            plan=partial(_plan, dot),
        )
        for dot in dots
        for op in ("conv2d", "linear")
    )


def _packed_families(dots: Sequence[Dot]) -> tuple[Kernel, ...]:
    """The kernels that also read and write 4 bits two a byte: half the memory, not faster."""
    return tuple(
        replace(
            kernel,
            name=f"{kernel.name}.packed",
            supports=partial(_supports_packed, dot),
            forms=frozenset({"values", "packed"}),
        )
        for dot in dots
        for kernel in families((dot,))
        if kernel.op == "conv2d"
    )


KERNELS = (*families(DOTS), *_packed_families((VNNI, PAIRS_AVX2, MADD_AVX2)))
"""By preference: VNNI before AVX-512 before AVX2."""
