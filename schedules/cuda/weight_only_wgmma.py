"""``cuda.w2.wgmma`` …, ``cuda.nf4.wgmma``, ``cuda.fp4.wgmma``: many rows, on Hopper's ``wgmma``.

    first kernel    activations to half precision              `nybble.schedules.cuda.half_rows`
    loader          a stage is a record: 64 inputs of the block's rows and channels
                                                               `nybble.schedules.cuda.wgmma_ring`
    multipliers     codes to halves in registers, the first operand; rows are the second, from
                    shared memory                              `nybble.schedules.cuda.half_tile`

The packing is that of the kernels for few rows, the records of all channels side by side: a stage's
are one run of memory. Meaning and bound are `nybble.ir.weight_only.in_half`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import code_books
from nybble.schedules.cpu.buffers import declare, product
from nybble.schedules.cuda import half_rows, weight_only
from nybble.schedules.cuda.half_tile import HalfTile
from nybble.schedules.cuda.matrix import Matrix
from nybble.schedules.cuda.mma import first_of
from nybble.schedules.cuda.mma_rows import Rows
from nybble.schedules.cuda.stream import flat
from nybble.schedules.cuda.stream_plan import OPERANDS, ROWS
from nybble.schedules.cuda.weight_only_layout import Layout, layout_of
from nybble.schedules.cuda.weight_only_sums import Given
from nybble.schedules.cuda.wgmma import LOADER, MULTIPLIER
from nybble.schedules.cuda.wgmma_plan import FIRST, GROUP, Plan, Tile, plan_of
from nybble.schedules.cuda.wgmma_ring import Ring, load
from nybble.schedules.kernel import Constants, Kernel, Knobs, Problem, TensorSpec

FEW = 132 * 64 * 128
"""Outputs below which kernels for few rows are preferred, which divide the depth among blocks."""
TILES = FIRST // 16 // 2
"""Tiles of 16 channels in a record: a warp's share of two instructions."""
GROUPED: tuple[Tile, ...] = ((2, 2, 64), (1, 2, 64), (2, 2, 32), (1, 2, 32))
"""With groups a lane has sums of the group and of all."""
SINGLE: tuple[Tile, ...] = ((2, 2, 128), (1, 2, 128), *GROUPED)


@dataclass(frozen=True)
class Records:
    """A layer as it is packed.

    Attributes:
        layout: of one block of channels.
        rows: of activations; names are symbolic.
    """

    layout: Layout
    rows: tuple[int | str, ...]

    @property
    def padded(self) -> int:
        """Channels in all, filled up for a warpgroup."""
        group = FIRST * TILES
        return -(-self.layout.o // group) * group

    @property
    def matrix(self) -> Matrix:
        """The product with the rows' halves as bytes."""
        return Matrix(self.rows, self.padded, half_rows.line_of(self.layout))

    @property
    def weight(self) -> int:
        """Bytes of a channel in a stage."""
        return self.layout.words * 128 // self.layout.width

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Packed weights, a row for each record; the numbers of groups, if any; the table."""
        words = self.padded * self.weight // 4
        first = TensorSpec((self.layout.records, words), "uint32")
        return (first, *self.layout.specs[1:])

    def pack(self, problem: Problem, constants: Constants) -> list[NDArray[Any]]:
        """The constants that `specs` describes."""
        weights, *others = self.layout.pack(problem, constants)
        missing = self.padded // self.layout.width - len(weights)
        full = np.pad(weights, ((0, missing), *[(0, 0)] * (weights.ndim - 1))).swapaxes(0, 1)
        return [np.ascontiguousarray(full).reshape(len(full), -1), *others]


def _records(problem: Problem) -> Records:
    return Records(layout_of(problem, TILES), problem.inputs[0].shape[:-1])


def _supports(width: int | str, problem: Problem, target: Any) -> str | None:
    if target.arch != "cuda" or not target.has("wgmma"):
        return "needs Hopper's wgmma"
    reason = weight_only.refuse(width, problem, target)
    if reason is not None:
        return reason
    rows, line = weight_only.rows_of(problem), half_rows.line_of(layout_of(problem, TILES))
    if rows is not None and rows * line >= 1 << 31:
        return "activations of 2^31 bytes and more"
    return None


def _slow(problem: Problem) -> str | None:
    rows = weight_only.rows_of(problem)
    if rows is None or rows <= ROWS * OPERANDS:
        return f"for more than {ROWS * OPERANDS} rows, known when compiling"
    if rows * int(problem.output.shape[-1]) < FEW:
        return "too few outputs for a tile on each multiprocessor"
    return None


def _pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    return _records(problem).pack(problem, constants)


def _plan(problem: Problem, _target: Any, knobs: Knobs) -> Plan:
    records = _records(problem)
    tiles = GROUPED if records.layout.is_grouped else SINGLE
    return plan_of(records, tiles, records.weight, knobs)


def _build(problem: Problem, target: Any, knobs: Knobs) -> tirx.PrimFunc:
    """The function; parameters: input, second branch if any, `Records.specs`, output."""
    records, plan, symbols = _records(problem), _plan(problem, target, knobs), dict[str, Any]()
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True})
        buffers = declare(problem, records.specs, symbols)
        packed, *numbers, table = map(flat, buffers.constants)
        rows = product(records.rows, symbols)
        rows = rows if isinstance(rows, int) else T.Bind(T.Cast("int32", rows))
        halves = T.alloc_buffer((rows * half_rows.line_of(records.layout),), "uint8")
        half_rows.make(records.layout, buffers.x, rows, halves)
        given = Given(
            buffers.x, buffers.other, numbers[0] if numbers else None, table, buffers.output, rows
        )
        _multiply(problem, (records, plan), (packed, halves), given)
    return builder.get()


def _multiply(
    problem: Problem, what: tuple[Records, Plan], operands: tuple[Any, Any], given: Given
) -> None:
    """Emits the second kernel."""
    (records, plan), (packed, halves) = what, operands
    down, across = tirx.ceildiv(given.rows, plan.rows), records.padded // plan.channels
    with (
        T.launch_thread("blockIdx.x", down * across) as number,
        T.launch_thread("threadIdx.x", plan.threads) as thread,
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1}),  # or registers are not handed over
    ):
        ring = Ring(plan, records.layout.records, thread)
        first = first_of(number, down, across, (plan.rows, plan.channels))
        with T.If(thread >= GROUP * plan.groups):
            with T.Then():
                ring.registers("dec", LOADER)
                spec = TensorSpec((*records.rows, records.matrix.elements), "int8")
                rows = Rows(records.matrix, plan.lines, spec, halves, ring.tile)
                rows.begin(first[0], given.rows, T.Bind(thread - GROUP * plan.groups))
                load(ring, rows, packed, (first[1], records.padded))
            with T.Else():
                ring.registers("inc", MULTIPLIER)
                tile = HalfTile(records.layout, plan, given, problem.epilogue, thread)
                tile.multiply(ring, first[1])
                tile.finish(first[0])


def _kernel(width: int | str) -> Kernel:
    return Kernel(
        f"{weight_only.name_of(width)}.wgmma", "weight_only",
        partial(_supports, width), _pack, _build, arch="cuda", plan=_plan, slow=_slow,
    )  # fmt: skip


KERNELS = tuple(map(_kernel, (*weight_only.WIDTHS, *code_books.NAMES)))
"""One for each width and code book."""
