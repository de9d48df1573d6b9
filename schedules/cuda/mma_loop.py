"""The loop over the depth: stages are loaded ahead while an earlier one is multiplied.

    for step of the depth: wait for its stage; barrier
        start the copies for a later stage              `…mma_rows`, `…mma_weights`
        fragments from shared memory, products          `nybble.schedules.cuda.mma_tile`
    sum of the slices; epilogue; stores                 `nybble.schedules.cuda.mma_store`

One barrier a step: whoever passes it has read the stage that the new copies overwrite. Where copies
are not asynchronous, loads into registers are started before the products and stored behind them.
"""

from __future__ import annotations

from typing import Any, Protocol

from tvm import tirx
from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from nybble.schedules.cuda import mma_store
from nybble.schedules.cuda.mma_moves import divmod_of
from nybble.schedules.cuda.mma_rows import Rows
from nybble.schedules.cuda.mma_tile import WarpTile


class Loads(Protocol):
    """What brings an operand's part of a stage to shared memory; methods as of `Channels`."""

    def copy(self, step: Any, stage: Any) -> None:
        """Emits the asynchronous copies of a step of the depth."""

    def fetch(self, step: Any) -> Any:
        """Emits the loads of a step of the depth; returns the registers."""

    def put(self, held: Any, stage: Any) -> None:
        """Emits the stores of what `fetch` gave."""


def multiply(rows: Rows, channels: Loads, sums: WarpTile, steps: int) -> None:
    """Emits the loop over the depth, of so many stages."""
    (_staged if sums.plan.held else _copied)(rows, channels, sums, steps)


def finish(sums: WarpTile, store: mma_store.Store) -> None:
    """Emits the sum of the slices and the epilogue."""
    if sums.plan.slices == 1:
        store.emit()
        return
    T.evaluate(script.cuda.cta_sync())
    sums.add_slices()
    with T.If(sums.slice == 0), T.Then():
        store.emit()


def _copied(rows: Rows, channels: Loads, sums: WarpTile, steps: int) -> None:
    """The loop over the depth with asynchronous copies."""
    stages = sums.plan.stages
    commit = script.ptx["cp.async.commit_group"]

    def load(step: Any, stage: Any) -> None:
        rows.copy(step, stage)
        channels.copy(step, stage)

    for step in range(stages - 1):
        if step < steps:
            load(tirx.const(step, "int32"), step)
        T.evaluate(commit())
    with T.serial(steps) as step:
        T.evaluate(script.ptx["cp.async.wait_group"](stages - 2))
        T.evaluate(script.cuda.cta_sync())
        ahead = T.Bind(step + (stages - 1))
        with T.If(ahead < steps), T.Then():
            load(ahead, T.Bind(divmod_of(ahead, stages)[1]))
        T.evaluate(commit())
        sums.multiply(T.Bind(divmod_of(step, stages)[1]))


def _staged(rows: Rows, channels: Loads, sums: WarpTile, steps: int) -> None:
    """The loop over the depth with loads through registers."""

    def store(held: tuple[Any, Any], step: Any, stage: Any) -> None:
        rows.put(held[0], step, stage)
        channels.put(held[1], stage)

    start = tirx.const(0, "int32")
    store((rows.fetch(start), channels.fetch(start)), start, 0)
    T.evaluate(script.cuda.cta_sync())
    with T.serial(steps - 1) as step:
        ahead = T.Bind(step + 1)
        held = rows.fetch(ahead), channels.fetch(ahead)
        sums.multiply(T.Bind(tirx.bitwise_and(step, 1)))
        store(held, ahead, T.Bind(tirx.bitwise_and(ahead, 1)))
        T.evaluate(script.cuda.cta_sync())
    sums.multiply((steps - 1) % 2)
