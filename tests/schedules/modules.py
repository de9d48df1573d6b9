"""Small modules with a symbolic batch, and running them through lower, build and the Relax VM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph, interpreter, numerics, specs
from nybble.schedules.build import build
from nybble.schedules.lower import Scheduled, lower
from nybble.schedules.select import Planner
from nybble.schedules.target import CpuTarget, resolve

V3 = resolve("x86-64-v3")
Array = NDArray[Any]
Body = Callable[..., Any]
Shape = tuple[int, ...]


def module(body: Body, *inputs: tuple[Shape, str], stage: str = "integer") -> tvm.IRModule:
    """Inputs are (shape behind the batch, dtype); ``body`` gets the emitter and the inputs."""
    n = tvm.tirx.Var("n", "int64")
    params = [
        relax.Var(f"x{i}", relax.TensorType([n, *shape], dtype))
        for i, (shape, dtype) in enumerate(inputs)
    ]
    emitter = graph.Emitter(params)
    return emitter.finish([body(emitter, *params)], ["out"], stage)


def draw(rng: np.random.Generator, shape: Shape, dtype: str) -> Array:
    """Normal floats, or integers from the whole range of the dtype."""
    if dtype == "float32":
        return rng.normal(size=shape).astype(dtype)
    lo, hi = numerics.limits(dtype)
    return rng.integers(lo, hi, shape, numerics.storage(dtype), endpoint=True)


def inputs_of(mod: tvm.IRModule, batch: int, seed: int = 0) -> list[Array]:
    """Random inputs with a batch of the given size."""
    rng = np.random.default_rng(seed)
    found = []
    for param in graph.inputs(mod):
        shape = [batch if isinstance(d, str) else d for d in graph.shape_of(param)]
        found.append(draw(rng, tuple(shape), graph.dtype_of(param)))
    return found


class Compiled:
    """A module lowered, built, and ready to run."""

    def __init__(self, mod: tvm.IRModule, target: CpuTarget = V3, force: str | None = None):
        self.scheduled: Scheduled = lower(mod, target, Planner(force=force))
        specs.check(self.scheduled.module, "scheduled")
        executable = build(self.scheduled.module, target)
        self._main = relax.VirtualMachine(executable, tvm.cpu())["main"]

    def __call__(self, arrays: Sequence[Array]) -> Array:
        """The only output."""
        result = self._main(*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays])
        return np.array(result.numpy())

    @property
    def kernels(self) -> list[tuple[str, str]]:
        """(op, kernel) of every layer."""
        return [(layer.op, layer.kernel) for layer in self.scheduled.layers]


def check_exact(
    mod: tvm.IRModule, target: CpuTarget = V3, force: str | None = None, *given: Array
) -> Compiled:
    """The compiled module equals the law bit for bit, for one and for three images."""
    compiled = Compiled(mod, target, force)
    for arrays in [list(given)] if given else [inputs_of(mod, 1), inputs_of(mod, 3)]:
        want = interpreter.run(mod, arrays)[0]
        got = compiled(arrays)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    return compiled
