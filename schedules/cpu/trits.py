"""Linear layers of one row with ternary weights, 5 bits for three of them, on AVX2.

Three activations make a group; its table holds their sums with 14 of the 27 ternary weights, and a
sign in front gives the others. Weights lie as [blocks][spans][four vectors of indices, signs]: a
byte of an index vector holds two indices of one channel, a byte of the signs those of eight groups.

Source: TL2 of bitnet.cpp (arXiv 2502.11880) for three weights and a sign; tables here are exact.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nybble.errors import ScheduleError
from nybble.schedules.cpu import epilogue, lut_template, scaling
from nybble.schedules.cpu.blocking import Plan, Tile
from nybble.schedules.cpu.dot import AVX2
from nybble.schedules.cpu.geometry import geometry_of
from nybble.schedules.cpu.lut_plan import Isa, blocks_of, cut_plan, starts_of
from nybble.schedules.cpu.trits_stage import GROUPS, WEIGHTS, TritStaging
from nybble.schedules.cpu.trits_tile import VECTORS, TritLayer
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

ISA = Isa("avx2", AVX2, 32, 16, 3.0)
CYCLES = 31  # of one span of one block
FAR_BYTES = 1 << 21  # of 2-bit codes that no second-level cache holds

# ---------------------------------------------------------------- supports


def _supports(far: bool, problem: Problem, target: Any) -> str | None:
    assert problem.weights is not None
    if target.arch != "x86_64" or not target.has(*ISA.features):
        return f"needs {', '.join(ISA.features)}"
    x, w, y = problem.inputs[0].dtype, problem.weights.dtype, problem.output.dtype
    if w != "int2" or not epilogue.is_narrow(x):
        return f"looks up sums of ternary weights in two bits, not {x} x {w}"
    if y != "int32" and not epilogue.is_narrow(y):
        return f"cannot store {y}"
    if geometry_of(problem).static_rows != 1:
        return "more rows share the work of taking 2-bit codes apart"
    codes = problem.macs // 4
    if far != (codes >= FAR_BYTES):
        return f"{codes} bytes of 2-bit codes lie {'near' if far else 'far away'}"
    return epilogue.refuse(problem)


# ---------------------------------------------------------------- pack


def _pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Indices and signs in the order of use, and the table of per-channel numbers."""
    staging, w = TritStaging.of(problem), np.asarray(constants["w"])
    if w.size and w.min() < -1:
        raise ScheduleError("the weights are not ternary: some are -2")
    bias = np.asarray(constants["bias"]).astype(np.int64)
    bias = bias + staging.centre * w.astype(np.int64).sum(1)
    columns = lut_template.table_shape(problem, staging.geometry, ISA.lanes)[1]
    return [_stored(staging, w), scaling.table(problem, constants, bias, columns)]


def _stored(staging: TritStaging, w: NDArray[Any]) -> NDArray[np.uint8]:
    """(blocks · spans · vectors, lanes) bytes."""
    lanes = np.arange(ISA.lanes).reshape(2, 2, -1).swapaxes(0, 1).reshape(-1)
    chosen = np.minimum(np.add.outer(starts_of(staging.geometry, ISA), lanes), len(w) - 1)
    index, sign = _codes(np.pad(w, ((0, 0), (0, staging.padded - w.shape[1]))))
    index, sign = (part.reshape(len(w), -1, GROUPS) for part in (index, sign))
    pairs = index[..., 0::2] | index[..., 1::2] << 4
    signs = np.packbits(sign, axis=-1)
    stored = np.concatenate([pairs, signs], -1)[chosen]  # blocks, lanes, spans, vectors
    return np.ascontiguousarray(stored.transpose(0, 2, 3, 1)).reshape(-1, ISA.lanes)


def _codes(w: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Index and sign of every three weights."""
    index, sign = np.zeros(27, np.uint8), np.zeros(27, np.uint8)
    for at, trits in enumerate(product((-1, 0, 1), repeat=3)):
        sign[at] = trits not in WEIGHTS
        index[at] = WEIGHTS.index(tuple(-t for t in trits) if sign[at] else trits)
    codes = (w.reshape(len(w), -1, 3).astype(np.int64) + 1) @ (9, 3, 1)
    return index[codes], sign[codes]


# ---------------------------------------------------------------- build


def _plan(problem: Problem, _target: Any, knobs: Knobs) -> Plan:
    staging = TritStaging.of(problem)
    blocks = blocks_of(staging.geometry, ISA)
    tiles = [
        (float(CYCLES * staging.spans * blocks), Tile(1, 1, v)) for v in VECTORS if v <= blocks
    ]
    return cut_plan(staging.geometry, ISA, (tiles, tiles[0][1]), staging.size(1), knobs)


def _build(problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    staging, plan = TritStaging.of(problem), _plan(problem, target, knobs)
    blocks = blocks_of(staging.geometry, ISA)
    constants = (
        TensorSpec((blocks * staging.spans * (GROUPS // 2 + 1), ISA.lanes), "uint8"),
        TensorSpec(lut_template.table_shape(problem, staging.geometry, ISA.lanes), "int32"),
    )
    return lut_template.build(
        problem, constants, lambda buffers: TritLayer(problem, staging, ISA, plan, buffers)
    )


FAR, NEAR = (
    Kernel(
        "cpu.trits.avx2",
        "linear",
        partial(_supports, far),
        _pack,
        _build,
        arch="x86_64",
        plan=_plan,
    )
    for far in (True, False)
)
"""Weights from far away, a sixth fewer bytes, are read sooner: 1.1 to 1.2 times the speed of two
bits a weight. Near ones only take less room: 0.9 times the speed."""
