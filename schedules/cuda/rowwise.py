"""What kernels of whole rows share: teams of threads, their registers, and what they join.

    team     the threads of one row: a part of a warp, a warp, or several; a power of two
    lanes    neighbours that a thread moves at once, by up to 16 bytes; they divide a row
    chunk    threads · lanes neighbours; a thread has the same lanes of every chunk

A row of up to ``MOST`` values a thread is read once and stays in registers; longer ones are read
again in every pass, from the caches mostly. What a chunk has beyond the end of a row is loaded from
the last place of it, joins nothing and is not stored; so is what a block has beyond the last row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, gcd, prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from nybble.ir import numerics
from nybble.schedules.cpu.buffers import Symbols, product
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.cuda.bind import ACCESS
from nybble.schedules.cuda.mma_moves import divmod_of, ramp, run
from nybble.schedules.cuda.mma_plan import CHIPS, LATENCY, combined
from nybble.schedules.cuda.mma_store import as_words
from nybble.schedules.kernel import Extent, Knobs, Problem

NAME = "cuda.rows"
WARP, BLOCK, LARGEST = 32, 128, 512  # threads: of a warp, of a block, of the largest team
MOST = 32  # values of a row that a thread holds
SECTORS = 128  # bytes of a row that a team moves at once at least, so that none is fetched twice
ROW, CHUNK, VALUE = 120, 12, 20  # instructions of a thread for each, as seen in machine code
SCHEDULERS, STALL = 4, 5  # of a multiprocessor; cycles for an instruction that waits
BARRIER, SHARED = 60, 8  # cycles for joining a team's warps, and more for each of them


@dataclass(frozen=True)
class Plan:
    """How rows are cut; see above.

    Attributes:
        length: values of a row.
        lanes: that a thread moves at once.
        threads: of a team.
    """

    length: int
    lanes: int
    threads: int

    @property
    def units(self) -> int:
        """Runs of ``lanes`` values in a row."""
        return self.length // self.lanes

    @property
    def chunks(self) -> int:
        """Of a row, the last one perhaps not whole."""
        return -(-self.units // self.threads)

    @property
    def values(self) -> int:
        """Of a row, by one thread."""
        return self.chunks * self.lanes

    @property
    def is_held(self) -> bool:
        """Whether a row stays in registers."""
        return self.values <= MOST

    @property
    def held(self) -> int:
        """Chunks in registers at once."""
        return self.chunks if self.is_held else 1

    @property
    def teams(self) -> int:
        """Rows of a block."""
        return max(1, BLOCK // self.threads)


def plan_of(problem: Problem, target: CudaTarget, knobs: Knobs) -> Plan:
    """The plan that the knob ``threads`` chooses, by default the cheapest that stays in registers.

    Args:
        problem: the layer; the rows of its first input have a static length.
        target: the GPUs.
        knobs: asked for ``threads``.
    """
    *rows, length = problem.inputs[0].shape
    count = prod(extent for extent in rows if isinstance(extent, int))
    widest = max(np.dtype(spec.stored.dtype).itemsize for spec in problem.tensors)
    most = gcd(int(length), ACCESS // widest)

    def cost_of(plan: Plan) -> tuple[bool, bool, float]:
        is_few = plan.threads < WARP and plan.chunks > 1
        is_narrow = is_few and plan.threads * plan.lanes * widest < SECTORS
        return not plan.is_held, is_narrow, round(cost(plan, count, target), -2)

    best = {
        threads: min(
            (Plan(int(length), 1 << n, threads) for n in range(most.bit_length())),
            key=lambda plan: (not plan.is_held, cost(plan, count, target)),
        )
        for threads in (1 << n for n in range(LARGEST.bit_length()))
    }
    default = min(best.values(), key=cost_of).threads
    return best[knobs.pick("threads", tuple(best), default)]


def cost(plan: Plan, rows: int, target: CudaTarget) -> float:
    """Cycles for so many rows: those that a full GPU is busy with, or that one team waits for."""
    chip, warps_of_team = CHIPS[target.generation], plan.threads // WARP
    joining = 2 * (BARRIER + SHARED * warps_of_team) if warps_of_team > 1 else 0
    chunks = plan.chunks * CHUNK + plan.values * VALUE
    warps = ceil(rows / plan.teams) * ceil(plan.threads * plan.teams / WARP)
    busy = warps * (ROW + chunks) / (SCHEDULERS * chip.processors)
    waiting = LATENCY + STALL * ROW + joining + chunks
    return combined(busy, waiting)


@dataclass(frozen=True)
class Place:
    """Where a thread stands in a row.

    Attributes:
        chunk: number of the chunk among those in registers.
        first: the first of its lanes, in the row.
        inside: whether it is in the row at all; None: always.
    """

    chunk: Any
    first: Any
    inside: Any


class Team:
    """The threads of a row, and what all of them do.

    Args:
        plan: how rows are cut.
        target: the GPUs.
        shape: of the tensor.
        symbols: the function's shape variables.
    """

    def __init__(
        self, plan: Plan, target: CudaTarget, shape: Sequence[Extent], symbols: Symbols
    ):  # fmt: skip
        self.plan, self.target = plan, target
        rows = product(shape[:-1], symbols)
        if not isinstance(rows, int):
            rows = T.Cast("int32", rows)
        T.device_entry()
        block = T.cta_id([tirx.ceildiv(rows, plan.teams)])
        self.thread = T.thread_id([plan.threads * plan.teams])
        mine, self.member = map(T.Bind, divmod_of(self.thread, plan.threads))
        row = T.Bind(block * plan.teams + mine)
        is_whole = isinstance(rows, int) and rows % plan.teams == 0
        self.is_there = None if is_whole else row < rows
        self.row = row if is_whole else T.Bind(tirx.min(row, rows - 1))
        self.first = T.Bind(T.Cast("int64", self.row) * plan.length)

    def walk(self, visit: Callable[[Place], None]) -> None:
        """Emits a pass over a thread's part of a row."""
        plan = self.plan
        with (T.unroll if plan.is_held else T.serial)(plan.chunks) as chunk:
            unit, inside = T.Bind(chunk * plan.threads + self.member), None
            if plan.units % plan.threads:
                inside = T.Bind(unit < plan.units)
                unit = T.Bind(tirx.min(unit, plan.units - 1))
            held = chunk if plan.is_held else 0
            visit(Place(held, T.Bind(unit * plan.lanes), inside))

    def store(self, place: Place, into: Any, values: Sequence[Any]) -> None:
        """Emits the store of a thread's lanes to a flat tensor."""
        held = T.alloc_buffer((self.plan.lanes,), str(into.dtype), scope="local", layout=None)
        for lane, value in enumerate(values):
            T.buffer_store(held, value, [lane])
        asked = [one for one in (self.is_there, place.inside) if one is not None]

        def put() -> None:
            value = run(held, 0, self.plan.lanes)
            T.buffer_store(into, value, ramp(self.first + place.first, self.plan.lanes))

        if not asked:
            put()
            return
        with T.If(tirx.all(*asked)), T.Then():
            put()

    def joined(self, cell: Any, op: str) -> Any:
        """One value of every thread joined, for all of them: ``sum`` or ``max``.

        Args:
            cell: a register.
            op: ``sum`` or ``max``.
        """
        dtype, width = str(cell.dtype), min(self.plan.threads, WARP)
        kind = {"int32": "s32", "uint32": "u32"}.get(dtype)
        if width == WARP and kind and self.target.has("redux"):
            name = {"sum": "add", "max": "max"}[op]
            every = T.uint32(0xFFFFFFFF)
            T.evaluate(script.ptx[f"redux_sync.{name}.{kind}"](cell[0], cell[0], every))
        elif width > 1:
            T.buffer_store(cell, script.cuda.warp_reduce(cell[0], op, width), [0])
        if self.plan.threads > WARP:
            self._across(cell, op)
        return T.Bind(cell[0])

    def _across(self, cell: Any, op: str) -> None:
        """Joins what the warps of a team have, through shared memory of its own."""
        each = self.plan.threads // WARP
        warps = self.plan.teams * each
        shared = T.alloc_buffer((warps,), str(cell.dtype), scope="shared", layout=None)
        warp, lane = divmod_of(self.thread, WARP)
        with T.If(lane == 0), T.Then():
            T.buffer_store(shared, cell[0], [warp])
        T.evaluate(script.cuda.cta_sync())
        first = T.Bind(divmod_of(warp, each)[0] * each)
        join = {"sum": lambda a, b: a + b, "max": tirx.max}[op]
        T.buffer_store(cell, shared[first], [0])
        for i in range(1, each):
            T.buffer_store(cell, join(cell[0], shared[first + i]), [0])


class Values:
    """A thread's values of a flat tensor in registers: whole words where lanes fill them.

    Args:
        plan: how rows are cut.
        source: the tensor.
        dtype: of its values.
        chunks: that are held at once.
    """

    def __init__(self, plan: Plan, source: Any, dtype: str, chunks: int):
        self.lanes, self.dtype = plan.lanes, dtype
        self.size = np.dtype(str(source.dtype)).itemsize
        self.in_words = plan.lanes * self.size % 4 == 0
        self.source = as_words(source) if self.in_words else source
        self.each = plan.lanes * self.size // 4 if self.in_words else plan.lanes
        held = "uint32" if self.in_words else "int32"
        self.held = T.alloc_buffer((chunks * self.each,), held, scope="local", layout=None)

    def load(self, chunk: Any, index: Any) -> None:
        """Emits the load of a thread's lanes, which begin at ``index``."""
        if not self.in_words:
            for lane in range(self.lanes):
                value = T.Cast("int32", self.source[index + lane])
                T.buffer_store(self.held, value, [chunk * self.each + lane])
            return
        lanes = min(self.each, 4)
        index = index >> (4 // self.size).bit_length() - 1
        for word in range(0, self.each, lanes):
            value = run(self.source, index + word, lanes)
            T.buffer_store(self.held, value, ramp(chunk * self.each + word, lanes))

    def words(self, chunk: Any) -> list[Any]:
        """The words of a chunk."""
        return [self.held[chunk * self.each + i] for i in range(self.each)]

    def value(self, chunk: Any, lane: int) -> Any:
        """One value as ``int32``."""
        if not self.in_words:
            return self.held[chunk * self.each + lane]
        word, byte = divmod(lane * self.size, 4)
        found = self.held[chunk * self.each + word]
        if self.size == 4:
            return T.reinterpret("int32", found)
        found = found >> T.uint32(8 * byte) if byte else found
        kind = "int" if numerics.width(self.dtype)[0] else "uint"
        return T.Cast("int32", T.Cast(f"{kind}{8 * self.size}", found))


def counter(dtype: str, start: int) -> Any:
    """A register with a number in it."""
    cell = T.alloc_buffer((1,), dtype, scope="local", layout=None)
    T.buffer_store(cell, tirx.const(start, dtype), [0])
    return cell
