"""Choices for products of few rows, where what counts is how fast the weights stream in.

A block of ``across`` times ``along`` warps computes ``across`` blocks of channels of up to 64 rows;
the depth is shared among ``along`` warps of a block and among ``splits`` blocks, whose partial sums
a second kernel adds in order. Every warp copies its weights ``stages`` records ahead into a ring of
its own. Activations come in chunks, the next one while one is used: one barrier for each.

The default is the plan of the lowest cost, in bytes of DRAM traffic:

    traffic   weights + (activations read by each block + partial sums written and read) / L2
    share     of the bandwidth that is drawn: busy processors / all · bytes in flight on one / those
              that cover the latency of memory; one processor draws at most MOST_SHARE of its part
    tail      the last wave of blocks fills the GPU in part: waves·slots / blocks
    uneven    runs that the cut makes of the depth / runs
    cost      traffic / share · tail · uneven + LAUNCH for the second kernel

The constants are those of data sheets and of the latency of memory, about 600 ns; they stand for
ratios and none is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, inf

from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.kernel import Knobs

ROWS = 8
"""Rows of activations in a tensor-core operand."""
OPERANDS = 8
"""Such operands of a block, at most: 64 rows."""
L2 = 2.5  # bytes from the L2 cache in the time of one from DRAM
LAUNCH = 6e6  # bytes from DRAM in the time of a launch
MOST_SHARE = 1.25
PROCESSORS = {"turing": 40, "ampere": 108, "hopper": 132}
IN_FLIGHT = {"turing": 8 << 10, "ampere": 12 << 10, "hopper": 24 << 10}  # bytes a processor
REGISTERS = 1 << 16  # of a processor
MOST_REGISTERS = 255  # of a thread
WARPS = 32  # of a processor, on every architecture


@dataclass(frozen=True)
class Work:
    """What a layer asks for.

    Attributes:
        rows: of activations; None where the batch is symbolic.
        blocks: of channels.
        runs: of the depth, which no cut divides.
        span: records of a run.
        record: bytes of a record of weights.
        line: bytes of activations of one row for a run, in shared memory.
        source: the same in global memory.
        width: channels of a block.
        pad: bytes behind a row in shared memory, which fills whole lines of 128 without them: they
            keep the rows that lanes read at once in different banks.
        sums: registers for one operand of activations.
        fetched: registers for 16 bytes of activations on their way to shared memory.
        fetches: times 16 bytes that a thread has on their way at once, about.
        registers: further ones.
    """

    rows: int | None
    blocks: int
    runs: int
    span: int
    record: int
    line: int
    source: int
    width: int
    pad: int
    sums: int
    fetched: int
    fetches: int
    registers: int


@dataclass(frozen=True)
class Plan:
    """The decisions.

    Attributes:
        operands: of 8 rows each, that a block computes.
        across: warps beside one another, on blocks of channels of their own.
        along: warps that share the depth.
        splits: blocks that share the depth.
        stages: records in flight; 1 loads the next one to registers.
        chunk: runs of each warp whose activations are loaded at once.
        chunks: how many times they are; the next ones while those before are used.
    """

    operands: int
    across: int
    along: int
    splits: int
    stages: int
    chunk: int
    chunks: int

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.across * self.along

    @property
    def runs(self) -> int:
        """That a block goes through, those beyond the end included."""
        return self.along * self.chunk * self.chunks

    @property
    def buffers(self) -> int:
        """For activations in shared memory."""
        return min(self.chunks, 2)

    @property
    def tile(self) -> int:
        """Rows of a block."""
        return ROWS * self.operands


def pitch(work: Work, plan: Plan) -> int:
    """Bytes from row to row of activations in shared memory."""
    return -(-work.line * plan.along * plan.chunk // 128) * 128 + work.pad


def held_rows(work: Work, plan: Plan) -> int:
    """Rows of activations in shared memory."""
    return plan.tile if work.rows is None else min(work.rows, plan.tile)


def fetches(work: Work, plan: Plan) -> int:
    """How often each thread loads 16 bytes of a chunk of activations, as they are held."""
    size = held_rows(work, plan) * work.line * plan.along * plan.chunk
    return ceil(size / (16 * 32 * plan.warps))


def shared_bytes(work: Work, plan: Plan) -> tuple[int, int, int]:
    """(ring of weights, activations, sums) of a block."""
    ring = plan.warps * work.record * plan.stages if plan.stages > 1 else 0
    held = held_rows(work, plan) * pitch(work, plan)
    return ring, held * plan.buffers, plan.warps * plan.tile * (work.width + 4) * 4


def candidates(work: Work, target: CudaTarget, operands: int) -> Iterator[Plan]:
    """Every plan that fits shared memory, and registers with what is on its way there."""
    asynchronous = target.has("cp_async")
    powers = (1, 2, 4, 8, 16)
    for across, along, splits in product(powers[:4], powers, powers):
        warps, cut = across * along, along * splits
        if warps > 16 or (cut > work.runs and cut > 1) or across > max(1, 2 * work.blocks - 1):
            continue
        per = ceil(work.runs / cut)
        one = Plan(operands, across, along, splits, 1, 1, 1)
        chunks = ceil(per * fetches(work, one) / work.fetches)
        chunk = ceil(per / min(chunks, per))
        for stages in (4, 2) if asynchronous else (1,):
            plan = replace(one, stages=stages, chunk=chunk, chunks=ceil(per / chunk))
            ring, x, sums = shared_bytes(work, plan)
            fits = max(ring + x, sums) <= target.shared_memory
            if fits and fetches(work, plan) <= work.fetches:
                yield plan


def choose(work: Work, target: CudaTarget, most: int, knobs: Knobs) -> Plan:
    """The plan that the knobs say, or else the cheapest that agrees with those before it.

    Args:
        work: of the layer.
        target: the GPUs.
        most: operands whose sums fit the registers.
        knobs: ``operands``, ``across``, ``along``, ``splits``, ``stages``.
    """
    plans = {n: list(candidates(work, target, n)) for n in (1, 2, 4, 8) if n <= most}
    choices = [n for n, found in plans.items() if found]
    wanted = 2 if work.rows is None else ceil(work.rows / ROWS)
    usual = next((n for n in choices if n >= wanted), choices[-1])
    found = plans[knobs.pick("operands", choices, usual)]
    for name in ("across", "along", "splits", "stages"):
        best = min(found, key=lambda plan: cost(work, target, plan))
        options = sorted({getattr(plan, name) for plan in found})
        taken = knobs.pick(name, options, getattr(best, name))
        found = [plan for plan in found if getattr(plan, name) == taken]
    return found[0]


def slots(work: Work, target: CudaTarget, plan: Plan) -> int:
    """Blocks that a processor holds at once, as far as is planned."""
    ring, x, sums = shared_bytes(work, plan)
    registers = work.registers + work.sums * plan.operands + work.fetched * fetches(work, plan)
    registers = -(-min(registers, MOST_REGISTERS) // 8) * 8 * 32 * plan.warps
    memory = target.shared_memory // max(ring + x, sums, 1)
    return min(memory, REGISTERS // registers, WARPS // plan.warps)


def cost(work: Work, target: CudaTarget, plan: Plan) -> float:
    """As the page says."""
    processors = PROCESSORS[target.generation]
    tiles = 1 if work.rows is None else ceil(work.rows / plan.tile)
    rows = plan.tile if work.rows is None else work.rows
    columns = ceil(work.blocks / plan.across)
    blocks = columns * tiles * plan.splits
    weights = work.blocks * work.runs * work.span * work.record
    near = columns * rows * work.runs * work.source + (tiles - 1) * weights
    if plan.splits > 1:
        near += 2 * plan.splits * rows * work.blocks * work.width * 4
    fitting = slots(work, target, plan)
    if fitting == 0:
        return inf
    active = min(blocks, processors)
    flight = min(fitting, blocks / active) * plan.warps * max(plan.stages - 1, 1) * work.record
    share = min(1.0, active / processors * min(MOST_SHARE, flight / IN_FLIGHT[target.generation]))
    full = processors * fitting
    tail = ceil(blocks / full) * full / blocks if blocks > full else 1.0
    uneven = plan.along * plan.splits * plan.chunk * plan.chunks / work.runs
    return (weights + near / L2) * tail * uneven / share + LAUNCH * (plan.splits > 1)
