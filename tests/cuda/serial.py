"""Kernels without barriers run on the CPU: their threads one after the other.

Exactly the scheduled function is compiled by LLVM, with loops in the place of the thread bindings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, s_tir, tirx

from nybble.schedules.build import build
from nybble.schedules.lower import Scheduled, lower
from nybble.schedules.select import Planner
from nybble.schedules.target import resolve

Array = NDArray[Any]


def serial(func: Any) -> Any:
    """The function with its threads as loops; they stand outside of everything else."""
    return func.with_body(_serial(func.body))


def _serial(stmt: Any) -> Any:
    if isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([_serial(one) for one in stmt.seq])
    if isinstance(stmt, tirx.For) and stmt.kind == tirx.ForKind.THREAD_BINDING:
        kind = tirx.ForKind.SERIAL
        return tirx.For(stmt.loop_var, stmt.min, stmt.extent, kind, _serial(stmt.body))
    if isinstance(stmt, s_tir.SBlockRealize) and not stmt.block.iter_vars:
        block = stmt.block
        body = s_tir.SBlock(
            [], block.reads, block.writes, block.name_hint, _serial(block.body), block.init,
            block.alloc_buffers, block.match_buffers, block.annotations,
        )  # fmt: skip
        return s_tir.SBlockRealize([], stmt.predicate, body)
    return stmt


def run(func: Any, arrays: Sequence[Array], output: Array) -> Array:
    """What a function stores to its last parameter."""
    module = tirx.build(serial(func).with_attr("global_symbol", "main"), target="llvm")
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in (*arrays, output)]
    module["main"](*tensors)
    return np.array(tensors[-1].numpy())


class Network:
    """A module lowered for GPUs with generic kernels, its threads run by the CPU.

    Attributes:
        scheduled: as lowered for GPUs.
    """

    def __init__(self, mod: tvm.IRModule, force: str = "cuda.generic"):
        self.scheduled: Scheduled = lower(mod, resolve("cuda:sm_80"), Planner(force=force))
        looped = tvm.IRModule(dict(self.scheduled.module.functions.items()))
        for name, func in self.scheduled.module.functions.items():
            if isinstance(func, tirx.PrimFunc):
                looped[name] = serial(func)
        executable = build(looped, resolve("x86-64-v3"))
        self._main = relax.VirtualMachine(executable, tvm.cpu())["main"]

    def __call__(self, arrays: Sequence[Array]) -> Array:
        """The only output."""
        result = self._main(*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays])
        return np.array(result.numpy())

    @property
    def kernels(self) -> set[str]:
        """The names of all layers' kernels."""
        return {layer.kernel for layer in self.scheduled.layers}
