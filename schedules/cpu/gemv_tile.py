"""One tile of `gemv_template`: rows by vectors of channels, summed over one group in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cpu.gemv_layout import Layout
from nybble.schedules.cpu.gemv_registers import Registers


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


class Tile:
    """Sums of ``high`` rows and ``wide`` vectors over one group, in registers."""

    def __init__(self, job: Job, high: int, wide: int):
        self.job, self.high, self.wide = job, high, wide
        lanes = job.layout.dot.lanes
        self.total = self.short = Registers(high * wide, "int32", lanes)
        if job.flush:
            self.short = Registers(high * wide, "int16", 2 * lanes)

    def widen(self) -> None:
        """Moves the 16-bit sums to the 32-bit ones."""
        for i in range(self.total.count):
            self.total[i] = self.total[i] + self.job.layout.dot.widened(self.short[i])

    def add(self, codes: Any, v: int, x: Any) -> None:
        """One step of one vector of channels: ``x`` is the first row's first activation."""
        dot = self.job.layout.dot
        for r in range(self.high):
            value = dot.broadcast(self.job.x, x + r * self.job.layout.row)
            slot = r * self.wide + v
            self.short[slot] = dot.add(self.short[slot], codes, value)

    def runs(self, count: int, length: int, visit: Callable[[Any, int], None]) -> None:
        """Visits ``count`` items in runs whose 16-bit sums fit: ``visit(first, items)``."""
        self.total.clear()
        if not self.job.flush:
            visit(0, count)
            return
        length = min(length, count)
        with T.serial(count // length) as i:
            self._run(i * length, length, visit)
        if count % length:
            self._run(count - count % length, count % length, visit)

    def _run(self, first: Any, items: int, visit: Callable[[Any, int], None]) -> None:
        self.short.clear()
        visit(first, items)
        self.widen()


def codes_at(job: Job, panel: Any, base: Any, v: int) -> list[Any]:
    """The codes of vector ``v`` in the unit at byte ``base``, a vector for each step."""
    layout = job.layout
    loaded = []
    for j in range(layout.codes.vectors):
        at = base + (v * layout.codes.vectors + j) * layout.dot.bytes
        loaded.append(T.Bind(job.weights.vload([panel, at], f"uint8x{layout.dot.bytes}")))
    return [T.Bind(layout.dot.codes(code)) for code in layout.codes.unpack(loaded)]


def fetch(job: Job, panel: Any, base: Any, ahead: int) -> None:
    """Asks for the lines of a unit ``ahead`` bytes later in the stream."""
    hint = [tirx.const(value, "int32") for value in (0, 3, 1)]  # to read, keep near, data
    for line in range(0, job.layout.unit_bytes, 64):
        address = T.address_of(job.weights[panel, base + (line + ahead)])
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, *hint))


def first_channel(layout: Layout, panel: Any, v: int) -> Any:
    """First output channel of a vector of a panel."""
    vector = tirx.min(panel * layout.panel, layout.vectors - layout.panel) + v
    return T.Bind(tirx.min(vector * layout.dot.lanes, layout.width - layout.dot.lanes))
