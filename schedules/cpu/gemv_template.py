"""The loop nest of linear layers over few rows, emitted as TensorIR.

One row, or up to four: codes are taken apart where they are used, so weights stream once.

    parallel panel, group
      total[row][vector] = 0
      unit: codes[vector] loaded and taken apart; total += codes · x[row]      (16-bit sums between)
      running = combine(running, total)
    finish, store

More rows: a run of groups is taken apart into a scratch that stays in the first-level cache, and
tiles of four rows by two vectors go over it.

    parallel (block of rows, panel)
      run of groups: codes -> scratch
        tile: running from and to a second scratch, as above
      finish, store
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.gemv_blocks import Shape, blocks
from nybble.schedules.cpu.gemv_layout import Layout
from nybble.schedules.cpu.gemv_registers import Registers
from nybble.schedules.cpu.gemv_tile import Job, Tile, Where, codes_at, fetch, first_channel
from nybble.schedules.kernel import Knobs, Problem

DIRECT = 4  # rows up to which codes are taken apart at every use
PARALLEL_BYTES = 1 << 19  # bytes of codes, for one row, from which a parallel launch pays
AHEAD = 4096  # bytes that a single row fetches ahead; hardware stops at every page


@dataclass(frozen=True)
class Plan:
    """The decisions for one kernel.

    Attributes:
        rows: number of rows, None when symbolic.
        high: rows of a tile where there are more than ``DIRECT``.
        wide: vectors of a tile.
        parallel: whether panels run on several threads.
    """

    rows: int | None
    high: int
    wide: int
    parallel: bool

    def staged(self, count: Any) -> Any:
        """Rows of the staging copy: ``count`` of them, padded to whole tiles."""
        if self.rows is None:
            return tirx.floordiv(count + self.high - 1, self.high) * self.high
        is_direct = self.rows <= DIRECT
        return self.rows if is_direct else ceil(self.rows / self.high) * self.high


def plan_of(problem: Problem, layout: Layout, knobs: Knobs) -> Plan:
    """Asks the knobs for every decision; the few rows of `_direct` are cut in one way only."""
    leading = problem.inputs[0].shape[:-1]
    rows = prod(int(d) for d in leading) if all(isinstance(d, int) for d in leading) else None
    size = layout.panels * layout.groups * layout.record * (rows or 1)
    choices = tuple(v for v in (1, 2, 4) if layout.panel % v == 0)
    most = 4 if layout.dot.form == "vnni" else 2  # 32 registers, and one sum for each output
    high, wide = _least_waste(rows), max(v for v in choices if v <= most)
    if rows is None or rows > DIRECT:
        high = knobs.pick("high", tuple(range(2, 9)), high)
        wide = knobs.pick("wide", choices, wide)
    return Plan(rows, high, wide, knobs.pick("parallel", (False, True), size > PARALLEL_BYTES))


def _least_waste(rows: int | None) -> int:
    """Rows of a tile: those that fill up least, then four."""
    if rows is None:
        return 4
    return min((4, 5, 3, 6), key=lambda high: (ceil(rows / high) * high, abs(high - 4.4)))


def emit(job: Job, plan: Plan, count: Any) -> None:
    """Emits the product of ``count`` staged rows."""
    if plan.rows is None:
        with T.If(count == 1):
            with T.Then():
                _direct(job, 1, plan.parallel)
            with T.Else():
                blocks(job, count, Shape(plan.high, plan.wide, plan.parallel))
    elif plan.rows <= DIRECT:
        _direct(job, plan.rows, plan.parallel)
    else:
        blocks(job, count, Shape(plan.high, plan.wide, plan.parallel))


def _direct(job: Job, rows: int, parallel: bool) -> None:
    """All panels for one to four rows."""
    layout, finish = job.layout, job.finish
    wide = layout.panel if rows <= 2 else 1
    with (T.parallel if parallel else T.serial)(layout.panels) as panel:
        running = Registers(layout.panel * rows, finish.dtype, layout.dot.lanes)
        running.clear()
        with T.serial(layout.groups) as group:
            record = T.Bind(group * layout.record)
            for v in range(0, layout.panel, wide):
                tile = Tile(job, rows, wide)
                _group_direct(job, tile, (panel, record, v), group * layout.padded)
                for slot in range(rows * wide):
                    r, at = slot // wide, slot % wide + v
                    where = Where(r, group, panel, record, at)
                    now = r * layout.panel + at
                    running[now] = finish.combine(running[now], tile.total[slot], where)
        for slot in range(rows * layout.panel):
            start = first_channel(layout, panel, slot % layout.panel)
            finish.store(running[slot], slot // layout.panel, start)


def _group_direct(job: Job, tile: Tile, at: tuple[Any, Any, int], x: Any) -> None:
    """The sums of one group for vectors ``at[2]`` and on, straight from the packed codes."""
    layout = job.layout
    per_unit = layout.codes.steps
    if 0 < job.flush < per_unit:  # widened within a unit
        tile.total.clear()
        with T.serial(layout.units) as unit:
            _unit(job, tile, at, unit, x + unit * layout.unit, job.flush)
        return

    def visit(first: Any, units: int) -> None:
        with T.serial(units) as u:
            unit = T.Bind(first + u)
            _unit(job, tile, at, unit, x + unit * layout.unit, 0)

    tile.runs(layout.units, max(job.flush // per_unit, 1), visit)


def _unit(job: Job, tile: Tile, at: tuple[Any, Any, int], unit: Any, x: Any, flush: int) -> None:
    """One unit: loads, takes apart, multiplies."""
    layout, (panel, record, first) = job.layout, at
    base = T.Bind(record + (layout.lead + unit * layout.unit_bytes))
    x = T.Bind(x + 0)
    if tile.high == 1:
        fetch(job, panel, base, AHEAD)
    codes = [codes_at(job, panel, base, first + v) for v in range(tile.wide)]
    if not flush:
        for v in range(tile.wide):
            for step, code in enumerate(codes[v]):
                tile.add(code, v, x + step * layout.dot.depth)
        return
    for start in range(0, layout.codes.steps, flush):
        tile.short.clear()
        for step in range(start, min(start + flush, layout.codes.steps)):
            for v in range(tile.wide):
                tile.add(codes[v][step], v, x + step * layout.dot.depth)
        tile.widen()
