"""Products of two integer tensors on tensor cores, as in attention; a template beside ``mma``.

    a    (…, M, K): rows, as those of `nybble.schedules.cuda.mma`
    b    (…, N, K) or (…, K, N): `nybble.schedules.cuda.matmul_loads`

Neither is packed. They are read, and the output is written, whatever the order of the axes before
the last (`nybble.schedules.cuda.matmul_lying`). Beyond the depth the second is filled with zeros,
the first only where its rows' sums are wanted. Zero points leave through products with ones, beside
the others from the same fragments:

    Σ (a - z_a)·(b - z_b) = Σ a·b - z_a·Σ 1·b - z_b·Σ a·1 + K·z_a·z_b

Extents of the matrices are static and leading axes equal; anything else is left to
`nybble.schedules.cuda.matmul_generic`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script import tirx as script
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu.buffers import declare, product
from nybble.schedules.cuda import mma, mma_loop, mma_store
from nybble.schedules.cuda.arch import KIND, CudaTarget
from nybble.schedules.cuda.fragments import Fragments
from nybble.schedules.cuda.matmul_loads import GROUP, Across, Along, Exact
from nybble.schedules.cuda.matmul_lying import A, B, Lying, Y, lying, moved
from nybble.schedules.cuda.matmul_tile import Pair
from nybble.schedules.cuda.matrix import Matrix, in_words
from nybble.schedules.cuda.mma_moves import divmod_of
from nybble.schedules.cuda.mma_plan import CHIPS, Plan, checked, cost, every_plan, picked
from nybble.schedules.cuda.mma_plan import TILES as TILES_OF_LAYERS
from nybble.schedules.cuda.tensor_core import tensor_core
from nybble.schedules.kernel import Constants, Epilogue, Extent, Kernel, Knobs, Problem

LANE = 4  # columns side by side in a lane
TILES = (
    *TILES_OF_LAYERS,
    (64, 64, 32, 16, 1), (32, 64, 16, 32, 1), (32, 64, 16, 64, 1), (16, 64, 16, 16, 1),
    (16, 64, 16, 32, 1), (64, 32, 16, 32, 1), (32, 32, 16, 16, 1), (16, 32, 16, 16, 1),
)  # fmt: skip
"""Attention's depth is one slab or two, which no slices share: small tiles without them."""


@dataclass(frozen=True)
class Product:
    """One layer.

    Attributes:
        problem: the layer.
    """

    problem: Problem

    @property
    def images(self) -> tuple[Extent, ...]:
        """The leading axes."""
        return moved(self.problem, Y).shape[:-2]

    @property
    def extents(self) -> tuple[int, int, int]:
        """M, N and K."""
        rows, depth = moved(self.problem, A).shape[-2:]
        return int(rows), int(self.problem.output.shape[-1]), int(depth)

    @property
    def transposed(self) -> bool:
        """Whether the second tensor has the depth last."""
        return bool(self.problem.attr("transpose_b"))

    @property
    def zeros(self) -> tuple[int, int]:
        """The zero points."""
        return int(self.problem.attr("zero_point_a")), int(self.problem.attr("zero_point_b"))

    @cached_property
    def rows(self) -> Matrix:
        """One product as a layer: rows of the first tensor."""
        rows, columns, depth = self.extents
        return in_words(Matrix((rows,), columns, depth))

    @property
    def fragments(self) -> Fragments:
        """What plan and epilogue ask of packed weights."""
        return Fragments(self.rows, LANE, 8)

    def held(self, target: CudaTarget) -> int:
        """As of `nybble.schedules.cuda.mma_plan.Plan`: a line that is no whole number of words."""
        line = self.extents[2 if self.transposed else 1]
        return int(not target.has("cp_async") or self.rows.loose or line % 4 != 0)


def _supports(problem: Problem, _target: Any) -> str | None:
    a, b = moved(problem, A), moved(problem, B)
    if a.shape[:-2] != b.shape[:-2]:
        return "the leading axes of the two tensors differ"
    if any(isinstance(extent, str) for extent in (*a.shape[-2:], *b.shape[-2:])):
        return "an extent of the matrices is symbolic"
    for spec in (a, b):
        if numerics.width(spec.dtype)[1] > 8:
            return f"computes integers of up to 8 bits, not {a.dtype} x {b.dtype}"
    sizes = [prod(e for e in spec.shape if isinstance(e, int)) for spec in problem.tensors]
    if max(sizes) >= 1 << 31:
        return "a tensor of 2^31 elements and more"
    return mma_store.refuse(problem)


def _plan(problem: Problem, target: CudaTarget, knobs: Knobs) -> Plan:
    """How a product is cut: the cheapest for all of them at once, in whole groups of columns.

    Raises:
        ScheduleError: the choices of the knobs do not go together.
    """
    whole = Product(problem)
    fragments, chip = whole.fragments, CHIPS[target.generation]
    unit = 1 if whole.transposed else GROUP
    every = every_plan(fragments, target, whole.held(target), TILES)
    legal = [plan for plan in every if plan.channels % unit == 0]
    count = prod(extent for extent in whole.images if isinstance(extent, int))
    slabs = fragments.matrix.slabs
    fitting = [
        plan for plan in legal
        if plan.slabs < 2 * slabs and plan.stages <= max(2, -(-slabs // plan.slabs) + 1)
    ]  # fmt: skip
    best = min(fitting, key=lambda one: (round(cost(one, fragments, chip, count), -2), -one.stages))
    return checked(picked(best, legal, knobs, TILES), fragments, chip)


def _pack(problem: Problem, constants: Constants) -> list[NDArray[Any]]:
    """The epilogue's table; its biases are what both zero points add."""
    whole = Product(problem)
    _, columns, depth = whole.extents
    bias = np.full(columns, depth * whole.zeros[0] * whole.zeros[1], np.int64)
    return [mma_store.table(problem, whole.fragments, {**constants, "bias": bias})]


def _build(problem: Problem, target: CudaTarget, knobs: Knobs) -> tirx.PrimFunc:
    whole, plan = Product(problem), _plan(problem, target, knobs)
    symbols: dict[str, Any] = {}
    second = replace(problem, epilogue=Epilogue(other=problem.inputs[1]))
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True})
        given = declare(second, (mma_store.table_spec(problem, whole.fragments),), symbols)
        table = mma.flattened(given.constants[0])
        buffers = replace(given, other=None, constants=(None, table))
        images = product(whole.images, symbols)
        images = images if isinstance(images, int) else T.Cast("int32", images)
        _block(whole, plan, target, (buffers, given.other, images))
    return builder.get()


def _block(whole: Product, plan: Plan, target: CudaTarget, given: tuple[Any, Any, Any]) -> None:
    """Emits the code of a block; ``given``: parameters, the second tensor, products in all."""
    problem, (buffers, other, images) = whole.problem, given
    rows = whole.extents[0]
    down, across = -(-rows // plan.rows), -(-whole.fragments.padded // plan.channels)
    T.device_entry()
    block = T.cta_id([images * (down * across)])
    thread = T.thread_id([plan.threads])
    pool = script.SMEMPool()
    tile = pool.alloc((plan.shared(whole.fragments) // 4,), "uint32", align=128)
    pool.commit()
    image, inside = map(T.Bind, divmod_of(block, down * across))
    row, column = mma.first_of(inside, down, across, (plan.rows, plan.channels))
    spec, lies = moved(problem, A), lying(problem, A)
    left = Exact(whole.rows, plan.lines, spec, buffers.x, tile, lies)
    left.is_filled = whole.zeros[1] != 0
    left.begin_matrix(image, row, thread)
    right = _second(whole, plan, other, tile)
    right.begin(image, column, thread)
    given_types = problem.inputs[0].dtype, problem.inputs[1].dtype
    core = tensor_core(target, *given_types, 8)
    sums = Pair(whole.fragments, plan, core, tile, thread)
    sums.read(right, whole.zeros)
    store = _Lines(problem, sums, buffers, (row, column), rows)
    store.lies, store.base = lying(problem, Y), T.Bind(lying(problem, Y).start(image))
    mma_loop.multiply(left, right, sums, -(-whole.rows.slabs // plan.slabs))
    sums.settle()
    mma_loop.finish(sums, store)


class _Lines(mma_store.Store):
    """Stores to the lines of a matrix, where they lie.

    Attributes:
        lies: the output's matrices.
        base: the first element of this one.
    """

    lies: Lying
    base: Any

    def _line(self, row: Any) -> Any:
        return self.base + row * self.lies.line


def _second(whole: Product, plan: Plan, source: Any, tile: Any) -> Along | Across:
    """What loads the second tensor."""
    spec, lies = moved(whole.problem, B), lying(whole.problem, B)
    if not whole.transposed:
        return Across(plan, spec, source, tile, lies)
    _, columns, depth = whole.extents
    matrix = in_words(Matrix((columns,), columns, depth))
    return Along(matrix, plan, spec, source, tile, lies)


MATMUL = Kernel("cuda.int8.mma", "matmul", _supports, _pack, _build, arch=KIND, plan=_plan)
