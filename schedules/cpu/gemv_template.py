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

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.gemv_layout import Layout
from nybble.schedules.kernel import Knobs

DIRECT = 4  # rows up to which codes are taken apart at every use
BLOCK = 128  # rows of a block: enough to forget the cost of taking codes apart
SCRATCH_BYTES = 24 * 1024
PARALLEL_BYTES = 1 << 19  # bytes of codes, for one row, from which a parallel launch pays
AHEAD = 2048  # bytes that a single row fetches ahead; hardware stops at every page


class Finish(Protocol):
    """What becomes of the sums of a group, and of a row's outputs at the end."""

    @property
    def dtype(self) -> str:
        """Of the running accumulators."""

    def combine(self, running: Any, total: Any, where: Where) -> Any:
        """The running vector after the sums of one group."""

    def store(self, running: Any, row: Any, start: Any) -> None:
        """Stores the outputs of ``row`` from channel ``start`` on."""


@dataclass(frozen=True)
class Where:
    """The sums of one group that `Finish.combine` is given.

    Attributes:
        row: of the input.
        group: of the row.
        panel: of the weights.
        record: first byte of the group in the panel's weights.
        vector: of the panel.
    """

    row: Any
    group: Any
    panel: Any
    record: Any
    vector: Any


@dataclass(frozen=True)
class Job:
    """Everything that the emitting functions share.

    Attributes:
        layout: of the weights.
        most: largest magnitude of a staged activation.
        x: staged activations, flat: rows of ``layout.row``, padded to whole tiles.
        weights: the packed weights.
        finish: what follows the sums.
    """

    layout: Layout
    most: int
    x: Any
    weights: Any
    finish: Finish

    @property
    def flush(self) -> int:
        """Steps between two widenings, 0 without 16-bit sums."""
        return self.layout.dot.flush(self.layout.codes.bits, self.most)


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


def plan_of(layout: Layout, rows: int | None, knobs: Knobs) -> Plan:
    """Asks the knobs for every decision."""
    size = layout.panels * layout.groups * layout.record * (rows or 1)
    wide = tuple(v for v in (1, 2, 4) if layout.panel % v == 0)
    return Plan(
        rows,
        knobs.pick("high", tuple(range(2, 9)), _least_waste(rows)),
        knobs.pick("wide", wide, 2 if 2 in wide else 1),
        knobs.pick("parallel", (False, True), size > PARALLEL_BYTES),
    )


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
                _blocks(job, count, plan)
    elif plan.rows <= DIRECT:
        _direct(job, plan.rows, plan.parallel)
    else:
        _blocks(job, count, plan)


# ---------------------------------------------------------------- one tile


class _Tile:
    """Sums of ``high`` rows and ``wide`` vectors over one group, in registers."""

    def __init__(self, job: Job, high: int, wide: int):
        self.job, self.high, self.wide = job, high, wide
        dot, count = job.layout.dot, high * wide
        self.total = T.alloc_buffer((count,), dot.total, scope="local", layout=None)
        self.short = self.total
        if job.flush:
            self.short = T.alloc_buffer((count,), dot.short, scope="local", layout=None)

    def clear(self, buffer: Any) -> None:
        """Sets all sums to zero."""
        lanes = self.job.layout.dot.lanes * (1 if buffer is self.total else 2)
        dtype = "int32" if buffer is self.total else "int16"
        with T.unroll(self.high * self.wide) as i:
            T.buffer_store(buffer, T.broadcast(tirx.const(0, dtype), lanes), [i])

    def widen(self) -> None:
        """Moves the 16-bit sums to the 32-bit ones."""
        with T.unroll(self.high * self.wide) as i:
            widened = self.job.layout.dot.widened(self.short[i])
            T.buffer_store(self.total, self.total[i] + widened, [i])

    def add(self, codes: Any, v: int, x: Any) -> None:
        """One step of one vector of channels: ``x`` is the first row's first activation."""
        dot = self.job.layout.dot
        for r in range(self.high):
            value = dot.broadcast(self.job.x, x + r * self.job.layout.row)
            slot = r * self.wide + v
            T.buffer_store(self.short, dot.add(self.short[slot], codes, value), [slot])

    def runs(self, count: int, length: int, visit: Callable[[Any, int], None]) -> None:
        """Visits ``count`` items in runs whose 16-bit sums fit: ``visit(first, items)``."""
        self.clear(self.total)
        if not self.job.flush:
            visit(0, count)
            return
        length = min(length, count)
        with T.serial(count // length) as i:
            self._run(i * length, length, visit)
        if count % length:
            self._run(count - count % length, count % length, visit)

    def _run(self, first: Any, items: int, visit: Callable[[Any, int], None]) -> None:
        self.clear(self.short)
        visit(first, items)
        self.widen()


# ---------------------------------------------------------------- few rows


def _direct(job: Job, rows: int, parallel: bool) -> None:
    """All panels for one to four rows."""
    layout, finish = job.layout, job.finish
    wide = layout.panel if rows <= 2 else 1
    with (T.parallel if parallel else T.serial)(layout.panels) as panel:
        running = _vectors(layout.panel * rows, finish.dtype, layout.dot.lanes)
        _fill(running, layout.panel * rows, finish.dtype, layout.dot.lanes)
        with T.serial(layout.groups) as group:
            record = T.Bind(group * layout.record)
            for v in range(0, layout.panel, wide):
                tile = _Tile(job, rows, wide)
                _group_direct(job, tile, (panel, record, v), group * layout.padded)
                for slot in range(rows * wide):
                    r, at = slot // wide, slot % wide + v
                    where = Where(r, group, panel, record, at)
                    now = running[r * layout.panel + at]
                    combined = finish.combine(now, tile.total[slot], where)
                    T.buffer_store(running, combined, [r * layout.panel + at])
        for slot in range(rows * layout.panel):
            start = _start(layout, panel, slot % layout.panel)
            finish.store(running[slot], slot // layout.panel, start)


def _group_direct(job: Job, tile: _Tile, at: tuple[Any, Any, int], x: Any) -> None:
    """The sums of one group for vectors ``at[2]`` and on, straight from the packed codes."""
    layout = job.layout
    per_unit = layout.codes.steps
    if 0 < job.flush < per_unit:  # widened within a unit
        tile.clear(tile.total)
        with T.serial(layout.units) as unit:
            _unit(job, tile, at, unit, x + unit * layout.unit, job.flush)
        return

    def visit(first: Any, units: int) -> None:
        with T.serial(units) as u:
            unit = T.Bind(first + u)
            _unit(job, tile, at, unit, x + unit * layout.unit, 0)

    tile.runs(layout.units, max(job.flush // per_unit, 1), visit)


def _unit(job: Job, tile: _Tile, at: tuple[Any, Any, int], unit: Any, x: Any, flush: int) -> None:
    """One unit: loads, takes apart, multiplies."""
    layout, (panel, record, first) = job.layout, at
    base = T.Bind(record + (layout.lead + unit * layout.unit_bytes))
    x = T.Bind(x + 0)
    if tile.high == 1:
        _fetch(job, panel, base, AHEAD)
    codes = [_codes(job, panel, base, first + v) for v in range(tile.wide)]
    if not flush:
        for v in range(tile.wide):
            for step, code in enumerate(codes[v]):
                tile.add(code, v, x + step * layout.dot.depth)
        return
    for start in range(0, layout.codes.steps, flush):
        tile.clear(tile.short)
        for step in range(start, min(start + flush, layout.codes.steps)):
            for v in range(tile.wide):
                tile.add(codes[v][step], v, x + step * layout.dot.depth)
        tile.widen()


def _codes(job: Job, panel: Any, base: Any, v: int) -> list[Any]:
    """The codes of vector ``v`` in the unit at byte ``base``, a vector for each step."""
    layout = job.layout
    loaded = []
    for j in range(layout.codes.vectors):
        at = base + (v * layout.codes.vectors + j) * layout.dot.bytes
        loaded.append(T.Bind(job.weights.vload([panel, at], f"uint8x{layout.dot.bytes}")))
    return [T.Bind(layout.dot.codes(code)) for code in layout.codes.unpack(loaded)]


def _fetch(job: Job, panel: Any, base: Any, ahead: int) -> None:
    """Asks for the lines of a unit ``ahead`` bytes later in the stream."""
    hint = [tirx.const(value, "int32") for value in (0, 3, 1)]  # to read, keep near, data
    for line in range(0, job.layout.unit_bytes, 64):
        address = T.address_of(job.weights[panel, base + (line + ahead)])
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, *hint))


# ---------------------------------------------------------------- many rows


def _blocks(job: Job, count: Any, plan: Plan) -> None:
    """All panels for any number of rows, a block of them at a time."""
    layout, block = job.layout, BLOCK // plan.high * plan.high
    blocks = tirx.floordiv(count + block - 1, block)
    with (T.parallel if plan.parallel else T.serial)(blocks * layout.panels) as task:
        panel = T.Bind(tirx.floormod(task, layout.panels))
        first = T.Bind(tirx.floordiv(task, layout.panels) * block)
        rows = T.Bind(tirx.min(count - first, block))
        _block(job, (panel, first, rows), plan, block)


def _block(job: Job, at: tuple[Any, Any, Any], plan: Plan, block: int) -> None:
    """One panel and one block of rows."""
    layout, dot, finish = job.layout, job.layout.dot, job.finish
    (panel, first, rows), high = at, plan.high
    group_bytes = layout.steps * layout.panel * dot.bytes * (2 if dot.form == "maddwd" else 1)
    share = max(1, min(SCRATCH_BYTES // group_bytes, layout.groups))
    element = "int16" if dot.form == "maddwd" else "uint8"
    size = share * layout.steps * layout.panel * dot.bytes
    scratch = T.alloc_buffer((size,), element, layout=None)
    state = T.alloc_buffer((block * layout.panel * dot.lanes,), finish.dtype, layout=None)
    _fill(state, block * layout.panel, finish.dtype, dot.lanes)
    run = _Run(job, panel, scratch, state, (high, plan.wide), share)
    with T.serial(ceil(layout.groups / share)) as i:
        start = T.Bind(i * share)
        groups = T.Bind(tirx.min(layout.groups - start, share))
        run.decode(start, groups)
        with T.serial(tirx.floordiv(rows + high - 1, high)) as tile:
            run.tiles(first, tile, start, groups)
    with T.serial(rows) as r:
        for v in range(layout.panel):
            running = state.vload(
                [(r * layout.panel + v) * dot.lanes], f"{finish.dtype}x{dot.lanes}"
            )
            finish.store(running, first + r, _start(layout, panel, v))


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
            _fetch(self.job, self.panel, base, self.share * layout.record)
            for v in range(layout.panel):
                for s, code in enumerate(_codes(self.job, self.panel, base, v)):
                    step = g * layout.steps + unit * layout.codes.steps + s
                    at = (v // wide * steps + step) * wide + v % wide
                    self._put(at * layout.dot.bytes, code)

    def _put(self, at: Any, code: Any) -> None:
        T.buffer_store(self.scratch, code, [T.ramp(at, 1, self.job.layout.dot.bytes)])

    def tiles(self, first: Any, tile: Any, start: Any, groups: Any) -> None:
        """One tile of rows over all vectors of the panel."""
        layout, (high, wide) = self.job.layout, self.shape
        for v in range(0, layout.panel, wide):
            running = _vectors(high * wide, self.job.finish.dtype, layout.dot.lanes)
            spots = [
                ((tile * high + r) * layout.panel + v + w) * layout.dot.lanes
                for r in range(high) for w in range(wide)
            ]  # fmt: skip
            kind = f"{self.job.finish.dtype}x{layout.dot.lanes}"
            for slot, spot in enumerate(spots):
                T.buffer_store(running, self.state.vload([spot], kind), [slot])
            with T.serial(groups) as g:
                self._group(running, (first + tile * high, v), g, start + g)
            for slot, spot in enumerate(spots):
                T.buffer_store(self.state, running[slot], [T.ramp(spot, 1, layout.dot.lanes)])

    def _group(self, running: Any, at: tuple[Any, int], g: Any, group: Any) -> None:
        """One group of a tile: its sums, then `Finish.combine`."""
        layout, (high, wide), (row, v) = self.job.layout, self.shape, at
        tile = _Tile(self.job, high, wide)
        x = T.Bind(row * layout.row + group * layout.padded)
        codes = T.Bind((v // wide * self.share + g) * layout.steps * (wide * layout.dot.bytes))

        def visit(first: Any, steps: int) -> None:
            with T.serial(steps) as s:
                self._step(tile, codes, x, T.Bind(first + s))

        tile.runs(layout.steps, self.job.flush, visit)
        record = T.Bind(group * layout.record)
        for slot in range(high * wide):
            where = Where(row + slot // wide, group, self.panel, record, v + slot % wide)
            combined = self.job.finish.combine(running[slot], tile.total[slot], where)
            T.buffer_store(running, combined, [slot])

    def _step(self, tile: _Tile, codes: Any, x: Any, step: Any) -> None:
        layout, wide = self.job.layout, self.shape[1]
        kind = f"{self.scratch.dtype}x{layout.dot.bytes}"
        for v in range(wide):
            at = codes + (step * wide + v) * layout.dot.bytes
            code = T.Bind(self.scratch.vload([at], kind))
            tile.add(code, v, x + step * layout.dot.depth)


# ---------------------------------------------------------------- small things


def _start(layout: Layout, panel: Any, v: int) -> Any:
    """First output channel of a vector of a panel."""
    vector = tirx.min(panel * layout.panel, layout.vectors - layout.panel) + v
    return T.Bind(tirx.min(vector * layout.dot.lanes, layout.width - layout.dot.lanes))


def _vectors(count: int, dtype: str, lanes: int) -> Any:
    return T.alloc_buffer((count,), f"{dtype}x{lanes}", scope="local", layout=None)


def _fill(buffer: Any, count: int, dtype: str, lanes: int) -> None:
    """Zeros in ``count`` vectors of a buffer of vectors, or of single elements."""
    zero = T.broadcast(tirx.const(0, dtype), lanes)
    if str(buffer.dtype) != dtype:
        with T.unroll(count) as i:
            T.buffer_store(buffer, zero, [i])
        return
    with T.serial(count) as i:
        T.buffer_store(buffer, zero, [T.ramp(i * lanes, 1, lanes)])
