"""Many rows in `gemv_template`: codes are taken apart once for a block of rows, into a scratch."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.gemv_registers import Registers
from nybble.schedules.cpu.gemv_tile import Job, Tile, Where, codes_at, fetch, first_channel

BLOCK = 128  # rows of a block: enough to forget the cost of taking codes apart
SCRATCH_BYTES = 16 * 1024  # half of the smallest first-level cache


@dataclass(frozen=True)
class Shape:
    """How many rows are cut.

    Attributes:
        high: rows of a tile.
        wide: vectors of a tile.
        parallel: whether panels run on several threads.
    """

    high: int
    wide: int
    parallel: bool


def blocks(job: Job, count: Any, plan: Shape) -> None:
    """All panels for any number of rows, a block of them at a time."""
    layout, block = job.layout, BLOCK // plan.high * plan.high
    tasks = tirx.floordiv(count + block - 1, block) * layout.panels
    with (T.parallel if plan.parallel else T.serial)(tasks) as task:
        panel = T.Bind(tirx.floormod(task, layout.panels))
        first = T.Bind(tirx.floordiv(task, layout.panels) * block)
        rows = T.Bind(tirx.min(count - first, block))
        _block(job, (panel, first, rows), plan, block)


def _block(job: Job, at: tuple[Any, Any, Any], plan: Shape, block: int) -> None:
    """One panel and one block of rows."""
    layout, dot, finish = job.layout, job.layout.dot, job.finish
    (panel, first, rows), high = at, plan.high
    group_bytes = layout.steps * layout.panel * dot.bytes * (2 if dot.form == "maddwd" else 1)
    share = max(1, min(SCRATCH_BYTES // group_bytes, layout.groups))
    element = "int16" if dot.form == "maddwd" else "uint8"
    size = share * layout.steps * layout.panel * dot.bytes
    scratch = T.alloc_buffer((size,), element, layout=None)
    state = T.alloc_buffer((block * layout.panel * dot.lanes,), finish.dtype, layout=None)
    tiles = T.Bind(tirx.floordiv(rows + high - 1, high))
    _zero(state, tiles * (high * layout.panel), dot.lanes)
    run = _Run(job, panel, scratch, state, (high, plan.wide), share)
    with T.serial(ceil(layout.groups / share)) as i:
        start = T.Bind(i * share)
        groups = T.Bind(tirx.min(layout.groups - start, share))
        run.decode(start, groups)
        with T.serial(tiles) as tile:
            run.tiles(first, tile, start, groups)
    with T.serial(rows) as r:
        for v in range(layout.panel):
            running = state.vload(
                [(r * layout.panel + v) * dot.lanes], f"{finish.dtype}x{dot.lanes}"
            )
            finish.store(running, first + r, first_channel(layout, panel, v))


@dataclass(frozen=True)
class _Run:
    """A run of groups: taken apart into ``scratch`` [vectors / wide][group][step][wide]."""

    job: Job
    panel: Any
    scratch: Any
    state: Any
    shape: tuple[int, int]
    share: int

    def decode(self, start: Any, groups: Any) -> None:
        """Takes the codes of ``groups`` groups apart."""
        layout, wide = self.job.layout, self.shape[1]
        steps = self.share * layout.steps
        with T.serial(groups) as g, T.serial(layout.units) as unit:
            base = T.Bind((start + g) * layout.record + (layout.lead + unit * layout.unit_bytes))
            fetch(self.job, self.panel, base, self.share * layout.record)
            for v in range(layout.panel):
                for s, code in enumerate(codes_at(self.job, self.panel, base, v)):
                    step = g * layout.steps + unit * layout.codes.steps + s
                    at = (v // wide * steps + step) * wide + v % wide
                    self._put(at * layout.dot.bytes, code)

    def _put(self, at: Any, code: Any) -> None:
        T.buffer_store(self.scratch, code, [T.ramp(at, 1, self.job.layout.dot.bytes)])

    def tiles(self, first: Any, tile: Any, start: Any, groups: Any) -> None:
        """One tile of rows over all vectors of the panel."""
        layout, (high, wide) = self.job.layout, self.shape
        for v in range(0, layout.panel, wide):
            running = Registers(high * wide, self.job.finish.dtype, layout.dot.lanes)
            spots = [
                ((tile * high + r) * layout.panel + v + w) * layout.dot.lanes
                for r in range(high) for w in range(wide)
            ]  # fmt: skip
            kind = f"{self.job.finish.dtype}x{layout.dot.lanes}"
            for slot, spot in enumerate(spots):
                running[slot] = self.state.vload([spot], kind)
            with T.serial(groups) as g:
                self._group(running, (first + tile * high, v), g, start + g)
            for slot, spot in enumerate(spots):
                T.buffer_store(self.state, running[slot], [T.ramp(spot, 1, layout.dot.lanes)])

    def _group(self, running: Any, at: tuple[Any, int], g: Any, group: Any) -> None:
        """One group of a tile: its sums, then `Finish.combine`."""
        layout, (high, wide), (row, v) = self.job.layout, self.shape, at
        tile = Tile(self.job, high, wide)
        x = T.Bind(row * layout.row + group * layout.padded)
        codes = T.Bind((v // wide * self.share + g) * layout.steps * (wide * layout.dot.bytes))

        def visit(first: Any, steps: int) -> None:
            with T.serial(steps) as s:
                self._step(tile, codes, x, T.Bind(first + s))

        tile.runs(layout.steps, self.job.flush, visit)
        record = T.Bind(group * layout.record)
        for slot in range(high * wide):
            where = Where(row + slot // wide, group, self.panel, record, v + slot % wide)
            running[slot] = self.job.finish.combine(running[slot], tile.total[slot], where)

    def _step(self, tile: Tile, codes: Any, x: Any, step: Any) -> None:
        layout, wide = self.job.layout, self.shape[1]
        kind = f"{self.scratch.dtype}x{layout.dot.bytes}"
        for v in range(wide):
            at = codes + (step * wide + v) * layout.dot.bytes
            code = T.Bind(self.scratch.vload([at], kind))
            tile.add(code, v, x + step * layout.dot.depth)


def _zero(buffer: Any, vectors: Any, lanes: int) -> None:
    """Zeros in the first ``vectors`` vectors of a flat buffer."""
    zero = T.broadcast(tirx.const(0, str(buffer.dtype)), lanes)
    with T.serial(vectors) as i:
        T.buffer_store(buffer, zero, [T.ramp(i * lanes, 1, lanes)])
