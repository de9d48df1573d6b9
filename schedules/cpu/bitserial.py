"""Bit-serial convolution and linear on x86: AND and popcount over bit planes.

Weights lie as [groups][vectors][tap rows][tap columns][words of 32 channels][planes][lanes].
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from nybble.schedules.cpu import epilogue, lut_template, scaling
from nybble.schedules.cpu.bitserial_planes import WORD, BitStaging, Planes
from nybble.schedules.cpu.bitserial_tile import BitLayer
from nybble.schedules.cpu.blocking import Plan, Tile
from nybble.schedules.cpu.dot import AVX2, AVX512
from nybble.schedules.cpu.geometry import geometry_of
from nybble.schedules.cpu.lut_plan import Isa, blocks_of, cut_plan, starts_of
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

PAIRS = range(1, 5)  # of planes: 1 bit by up to 4, 2 by 2

# ---------------------------------------------------------------- supports


def _supports(isa: Isa, pairs: range, problem: Problem, target: Any) -> str | None:
    if target.arch != "x86_64" or not target.has(*isa.features):
        return f"needs {', '.join(isa.features)}"
    reason = _refuse_dtypes(pairs, problem)
    if reason is not None:
        return reason
    if problem.op == "conv2d" and any(isinstance(d, str) for d in problem.inputs[0].shape[1:]):
        return "more than the batch is symbolic"
    staging, _ = _planes(problem)
    geometry = staging.geometry
    if staging.inside < WORD:
        return f"groups of {staging.inside} channels fill no word of {WORD}"
    if staging.planes.signs and any(geometry.padding) and abs(geometry.pad_value) != 1:
        return f"{geometry.pad_value} in the padding is no sign"
    return _refuse_forms(isa, problem, staging) or epilogue.refuse(problem)


def _refuse_forms(isa: Isa, problem: Problem, staging: BitStaging) -> str | None:
    """Planes are read in whole words and written in whole bytes; a second branch is not."""
    other, output = problem.epilogue.other, problem.output
    if other is not None and other.form == "planes":
        return "adds no planes"
    if staging.stored and staging.inside % WORD:
        return f"reads planes of groups in multiples of {WORD} channels"
    if output.form == "planes" and (output.dtype == "int32" or staging.geometry.o % 8):
        return "writes planes of groups in multiples of 8 channels"
    if output.form == "planes" and isa.lanes > 8 and len(Planes(output.dtype).coefs) > 1:
        return "several planes cost as much to write as to make of values"
    return None


def _refuse_dtypes(most: range, problem: Problem) -> str | None:
    assert problem.weights is not None
    x, w, y = problem.inputs[0].dtype, problem.weights.dtype, problem.output.dtype
    if not epilogue.is_narrow(x) or not epilogue.is_narrow(w):
        return f"multiplies bit planes of integers, not {x} x {w}"
    pairs = len(Planes(x).coefs) * len(Planes(w).coefs)
    if pairs not in most:
        return f"{x} x {w} has {pairs} pairs of bit planes, not {most[0]} to {most[-1]}"
    if y != "int32" and not epilogue.is_narrow(y):
        return f"cannot store {y}"
    return None


def _planes(problem: Problem) -> tuple[BitStaging, Planes]:
    """The planes of the activations and of the weights."""
    assert problem.weights is not None
    activations = Planes(problem.inputs[0].dtype)
    stored = problem.inputs[0].form == "planes"
    return BitStaging(geometry_of(problem), activations, stored), Planes(problem.weights.dtype)


# ---------------------------------------------------------------- pack


def _pack(isa: Isa, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """Planes in the order of use, and the table of per-channel numbers (bias in row 0)."""
    staging, weights = _planes(problem)
    geometry, w = staging.geometry, np.asarray(constants["w"])
    channels = geometry.groups * geometry.o
    bias = np.asarray(constants["bias"]).astype(np.int64)
    if staging.planes.signs:
        flat = w.reshape(channels, -1).astype(np.int64)
        bias = bias + (flat.shape[1] if weights.signs else flat.sum(axis=1))
    columns = lut_template.table_shape(problem, geometry, isa.lanes)[1]
    table = scaling.table(problem, constants, bias, columns)
    return [_words(staging, weights, isa, w), table]


def _words(staging: BitStaging, planes: Planes, isa: Isa, w: NDArray[Any]) -> NDArray[np.uint32]:
    geometry = staging.geometry
    pixels = geometry.run // staging.inside
    shape = (geometry.groups, geometry.o, geometry.tap_rows, geometry.tap_cols, pixels)
    bits = planes.split(w.reshape(*shape, staging.inside))
    spare = staging.per_channels * WORD - staging.inside
    bits = np.pad(bits, [(0, 0)] * 5 + [(0, spare), (0, 0)])
    bits = bits.reshape(*shape[:4], staging.run, WORD, len(planes.coefs))
    packed = np.packbits(bits, axis=-2, bitorder="little")  # …, words, 4 bytes, planes
    words = np.ascontiguousarray(packed.swapaxes(-1, -2)).view(np.uint32)[..., 0]
    words = words if staging.stored else words.byteswap()
    channels = np.add.outer(starts_of(geometry, isa), np.arange(isa.lanes))
    chosen = words[:, np.minimum(channels, geometry.o - 1)]
    return np.ascontiguousarray(chosen.transpose(0, 1, 3, 4, 5, 6, 2)).reshape(-1, isa.lanes)


# ---------------------------------------------------------------- build


def _tiles(staging: BitStaging, planes: Planes, isa: Isa) -> list[tuple[float, Tile]]:
    """Register tiles with their cost for one image in cycles, from counting instructions."""
    geometry, found = staging.geometry, []
    pairs = len(planes.coefs) * len(staging.planes.coefs)
    words = geometry.tap_rows * geometry.tap_cols * staging.run
    each, most = (8, 8) if isa.lanes == 8 else (3, 20)  # instructions, accumulators in registers
    for vectors in range(1, min(blocks_of(geometry, isa), 4) + 1):
        room = max(most // pairs // vectors, vectors == 1)
        for wide in range(1, min(geometry.cols, room) + 1):
            for high in range(1, min(geometry.static_rows or room, room // wide) + 1):
                tile, pixels = Tile(high, wide, vectors), high * wide
                slots = pixels * vectors * pairs
                step = max(slots * each + 2 * pixels, 6) / isa.ports
                finish = (15 * pixels * vectors + 4 * slots) / isa.ports + 20
                rows = ceil((geometry.static_rows or 4 * high) / high)
                blocks = geometry.groups * ceil(blocks_of(geometry, isa) / vectors)
                tiles = rows * ceil(geometry.cols / wide) * blocks
                found.append((tiles * (words * step + finish), tile))
    return sorted(found)[:12]


def _plan(isa: Isa, problem: Problem, _target: Any, knobs: Knobs) -> Plan:
    staging, weights = _planes(problem)
    geometry = staging.geometry
    alone = replace(staging, geometry=replace(geometry, rows=(1,)))
    row = 4 * staging.size(1) // geometry.rows_read(1)
    tiles = [_tiles(part, weights, isa) for part in (staging, alone)]
    return cut_plan(geometry, isa, (tiles[0], tiles[1][0][1]), row, knobs)


def _build(isa: Isa, problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    (staging, weights), plan = _planes(problem), _plan(isa, problem, target, knobs)
    geometry = staging.geometry
    words = geometry.tap_rows * geometry.tap_cols * staging.run * len(weights.coefs)
    constants = (
        TensorSpec((geometry.groups * blocks_of(geometry, isa) * words, isa.lanes), "uint32"),
        TensorSpec(lut_template.table_shape(problem, geometry, isa.lanes), "int32"),
    )
    return lut_template.build(
        problem,
        constants,
        lambda buffers: BitLayer(problem, staging, weights, isa, plan, buffers),
    )


AVX512_POPCNT = Isa("avx512", (*AVX512, "avx512_vpopcntdq"), 16, 32, 2.0)
BYTES = Isa("avx2", AVX2, 8, 16, 3.0)


def _kernel(isa: Isa, op: str, pairs: range = PAIRS) -> Kernel:
    return Kernel(
        f"cpu.bitserial.{isa.name}", op, partial(_supports, isa, pairs), partial(_pack, isa),
        partial(_build, isa), frozenset({"values", "planes"}), "x86_64", plan=partial(_plan, isa),
    )  # fmt: skip


FIRST = (_kernel(AVX512_POPCNT, "conv2d", PAIRS[:1]),)
"""One bit by one: 1.2 to 2.6 times as fast as all others, AMX included."""

KERNELS = (
    _kernel(AVX512_POPCNT, "conv2d", PAIRS[1:]),
    _kernel(AVX512_POPCNT, "linear"),
    _kernel(BYTES, "conv2d"),
    _kernel(BYTES, "linear"),
)
"""By preference."""
