"""A scheduled module on another machine: every kernel call runs under emulation, in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.describe import describe
from nybble.ir import graph
from nybble.runtime import artifact
from nybble.schedules.build import build
from nybble.schedules.lower import Scheduled, lower
from nybble.schedules.select import Planner
from nybble.schedules.target import CpuTarget
from tests.emulation.machines import machine, object_of

Array = NDArray[Any]


class Emulated:
    """A module lowered for a target, its kernels linked for the target's machine."""

    def __init__(
        self, mod: tvm.IRModule, target: CpuTarget, folder: Path, force: str | None = None
    ):
        self.scheduled: Scheduled = lower(mod, target, Planner(force=force))
        self._programs: dict[str, Path] = {}
        self._machine = machine(target.arch, folder)
        for symbol in {layer.symbol for layer in self.scheduled.layers}:
            function = self.scheduled.module[symbol]
            program = self._machine.link(object_of(function, target, folder))
            self._programs[symbol] = program.rename(folder / symbol)

    def __call__(self, arrays: Sequence[Array], tasks: int = 2) -> Array:
        """The first output; every symbolic extent is the first input's batch."""
        mod = self.scheduled.module
        values: dict[Any, Array] = dict(zip(graph.inputs(mod), arrays, strict=True))
        batch = arrays[0].shape[0]
        for binding in graph.bindings(mod):
            call = binding.value
            shape = [batch if isinstance(d, str) else d for d in graph.shape_of(binding.var)]
            if graph.op_name(call) == "relax.call_tir":
                given = [self._value(arg, values) for arg in call.args[1].fields]
                output = np.zeros(shape, graph.dtype_of(binding.var))
                symbol = str(call.args[0].name_hint)
                values[binding.var] = self._run(symbol, given, output, tasks)
            else:
                assert graph.op_name(call) == "relax.reshape"
                values[binding.var] = values[call.args[0]].reshape(shape)
        return values[graph.outputs(mod)[0]]

    def _run(self, symbol: str, given: Sequence[Array], output: Array, tasks: int) -> Array:
        return self._machine.run(self._programs[symbol], given, output, tasks)

    @staticmethod
    def _value(arg: Any, values: dict[Any, Array]) -> Array:
        return values[arg] if isinstance(arg, relax.Var) else np.asarray(graph.numpy_of(arg))


class Deployed(Emulated):
    """The same from the library that is deployed, as the machine's dynamic linker opens it.

    The virtual machine is not there: the runtime is built for this machine alone.
    """

    def __init__(self, mod: tvm.IRModule, target: CpuTarget, folder: Path):
        self.scheduled = lower(mod, target)
        self._machine = machine(target.arch, folder, emulated=True)
        self._program = self._machine.link_loader()
        self._library = folder / "net.so"
        executable = build(self.scheduled.module, target)
        manifest = describe(mod, self.scheduled.layers, target, None)
        artifact.export(executable, manifest, self._library)

    def _run(self, symbol: str, given: Sequence[Array], output: Array, tasks: int) -> Array:
        kernel = (self._library, f"__tvm_ffi_{symbol}")
        return self._machine.run(self._program, given, output, tasks, kernel)
