"""Convolution and linear by look-up: weights of few bits in bit planes, tables of sums.

Weights lie as [groups][blocks][tap rows][tap columns][pairs of groups][planes][lanes]: a byte holds
the indices of two groups of four weights, in one plane, of one channel.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nybble.ir import numerics
from nybble.schedules.cpu import epilogue, lut_template, scaling
from nybble.schedules.cpu.blocking import Plan
from nybble.schedules.cpu.dot import AVX2, AVX512
from nybble.schedules.cpu.dot_arm import NEON, scaled
from nybble.schedules.cpu.geometry import geometry_of
from nybble.schedules.cpu.lut_plan import Isa, blocks_of, fits_words, offset, plan_of, starts_of
from nybble.schedules.cpu.lut_scheme import BITS, tbl
from nybble.schedules.cpu.lut_stage import Staging, staging_of
from nybble.schedules.cpu.lut_tile import Layer
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

MOST_BITS = 4  # of the weights: every bit is a plane, and costs a look-up
LIMITS = {"amx_int8": 0.0, "avx512_vnni": 4.0, "i8mm": 2.0, "asimddp": 4.0, "asimd": 16.0, "": 7.0}
"""What multiply-adds need for a vector of four products, by the best feature of the target."""

# ---------------------------------------------------------------- supports


def _supports(isa: Isa, problem: Problem, target: Any) -> str | None:
    if target.arch != isa.arch or not target.has(*isa.features):
        return f"needs {', '.join(isa.features)}"
    reason = _refuse_dtypes(problem, isa.products)
    if reason is not None:
        return reason
    if problem.op == "conv2d" and any(isinstance(d, str) for d in problem.inputs[0].shape[1:]):
        return "more than the batch is symbolic"
    geometry = geometry_of(problem)
    inside, each = geometry.c // geometry.groups, _staging(isa, problem).scheme.group
    if geometry.groups > 1 and inside % each:
        return f"groups of {inside} channels straddle the tables' {each}"
    return epilogue.refuse(problem) or _refuse_pace(isa, problem, target)


def _refuse_pace(isa: Isa, problem: Problem, target: Any) -> str | None:
    """Multiply-adds where they are faster, as measured in convolutions and matrix products."""
    level = next((f for f in LIMITS if target.has(f)), "")
    limit, needed = LIMITS.get(level, LIMITS[""]), pace(_staging(isa, problem), isa)
    if needed <= limit:
        return None
    return f"needs {needed:.1f} instructions for a vector of four products, multiply-adds {limit}"


def pace(staging: Staging, isa: Isa) -> float:
    """Instructions for four products in every lane: look-ups, sums, and the share of the tables."""
    geometry, scheme = staging.geometry, staging.scheme
    each = scheme.planes * scheme.tables * (2 + 3 / scheme.flush)
    pixels = geometry.tap_rows * geometry.tap_cols * staging.run / staging.per_channels
    made = (12 if scheme.split else 4.5) * 32 / isa.lanes
    made *= geometry.stride[0] * geometry.stride[1] / pixels
    fours = BITS / scheme.group  # look-ups for four products
    return (each * blocks_of(geometry, isa) + made) / (geometry.o / isa.lanes) * fours


def _refuse_dtypes(problem: Problem, products: bool) -> str | None:
    assert problem.weights is not None
    x, w, y = problem.inputs[0].dtype, problem.weights.dtype, problem.output.dtype
    if not epilogue.is_narrow(x) or not epilogue.is_narrow(w):
        return f"looks up integers of up to 8 bits, not {x} x {w}"
    if products and numerics.width(w)[1] != 2:
        return f"looks up whole weights of two bits, not {w}"
    if numerics.width(w)[1] > MOST_BITS:
        return f"{w} weights have more than {MOST_BITS} planes"
    if y != "int32" and not epilogue.is_narrow(y):
        return f"cannot store {y}"
    return None


def _staging(isa: Isa, problem: Problem) -> Staging:
    return staging_of(problem, isa.lookup, isa.products)


# ---------------------------------------------------------------- pack


def _pack(isa: Isa, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Indices in the order of use, and the table of per-channel numbers (bias in row 0)."""
    staging = _staging(isa, problem)
    geometry = staging.geometry
    bias = np.asarray(constants["bias"]).astype(np.int64)
    if not fits_words(problem, staging):
        bias = bias + offset(staging)
    columns = lut_template.table_shape(problem, geometry, isa.lanes)[1]
    table = scaling.table(problem, constants, bias, columns)
    return [_indices(staging, isa, np.asarray(constants["w"])), table]


def _indices(staging: Staging, isa: Isa, weights: NDArray[Any]) -> NDArray[np.uint8]:
    geometry, scheme = staging.geometry, staging.scheme
    inside = geometry.c // geometry.groups
    pixels = geometry.run // inside
    shape = (geometry.groups, geometry.o, geometry.tap_rows, geometry.tap_cols, pixels, inside)
    spare = staging.per_channels * scheme.group - inside
    codes = scheme.codes(weights.reshape(shape))
    codes = np.pad(codes, [(0, 0)] * 5 + [(0, spare), (0, 0)])
    grouped = codes.reshape(*shape[:4], staging.run, scheme.group, scheme.planes)
    at = np.arange(0, BITS, scheme.field, dtype=np.uint8)
    found = (grouped << at[:, None]).sum(-2, dtype=np.uint8)
    found = np.pad(found, [(0, 0)] * 4 + [(0, staging.run % 2), (0, 0)])
    pairs = found[..., 0::2, :] | found[..., 1::2, :] << 4
    chosen = pairs[:, _channels(staging, isa)]  # groups, blocks, lanes, rows, cols, pairs, planes
    return np.ascontiguousarray(chosen.transpose(0, 1, 3, 4, 5, 6, 2)).reshape(-1, isa.lanes)


def _channels(staging: Staging, isa: Isa) -> NDArray[np.int64]:
    """The channel, within its group, of every byte: (blocks, lanes); the last one fills up."""
    order = np.arange(isa.lanes).reshape(2, -1).T.reshape(-1)  # 0, lanes/2, 1, lanes/2 + 1, …
    starts = starts_of(staging.geometry, isa)
    return np.minimum(np.add.outer(starts, order), staging.geometry.o - 1)


# ---------------------------------------------------------------- the families


def _plan(isa: Isa, problem: Problem, _target: Any, knobs: Knobs) -> Plan:
    return plan_of(_staging(isa, problem), isa, knobs)


def _build(isa: Isa, problem: Problem, _target: Any, knobs: Knobs) -> tirx.PrimFunc:
    staging = _staging(isa, problem)
    plan = plan_of(staging, isa, knobs)
    geometry = staging.geometry
    taps = geometry.tap_rows * geometry.tap_cols * staging.pairs
    count = geometry.groups * blocks_of(geometry, isa) * taps * staging.scheme.planes
    constants = (
        TensorSpec((count, isa.lanes), "uint8"),
        TensorSpec(lut_template.table_shape(problem, geometry, isa.lanes), "int32"),
    )
    return lut_template.build(
        problem, constants, lambda buffers: Layer(problem, staging, isa, plan, buffers)
    )


ISAS = (
    Isa("avx512", AVX512, 64, 32, 2.0),
    Isa("avx2", AVX2, 32, 16, 3.0),
    Isa("neon", NEON, 16, 32, 2.0, tbl, "aarch64", scaled),
)


def _families(name: str, isas: tuple[Isa, ...]) -> tuple[Kernel, ...]:
    return tuple(
        Kernel(f"cpu.{name}.{isa.name}", op, partial(_supports, isa), partial(_pack, isa),
               partial(_build, isa), arch=isa.arch, plan=partial(_plan, isa))
        for isa in isas
        for op in ("conv2d", "linear")
    )  # fmt: skip


KERNELS = _families("lut", ISAS)
"""Tables of sums over bit planes, by preference."""

PRODUCTS = _families("products", tuple(replace(isa, products=True) for isa in ISAS))
"""Tables of the products of two whole weights of two bits: half the sums to widen and to weight,
twice the tables to make. On AVX2, at 2 x 2 bits, 1.02 to 1.3 times the time of bit planes, so they
stand behind them and are taken by measurement only."""
