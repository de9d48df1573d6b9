"""The tasks of a network: its layers as the scheduler sees them, each distinct one once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from nybble.ir import graph, interpreter, numerics
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.forms import Step
from nybble.schedules.kernel import Problem, TensorSpec, usual
from nybble.schedules.lower import plan_steps
from nybble.schedules.select import Planner
from nybble.schedules.target import Target
from nybble.tuning.space import Drawn
from nybble.tuning.tasks import Array, Operands, Point, Task

LARGE = 1 << 20  # of accumulators that are drawn: as real layers have them

POSITIVE = ("relax.log", "relax.power", "relax.rsqrt", "relax.sqrt")  # no numbers elsewhere

Progress = Callable[[int, int | None], None]


def tasks_of(
    mod: tvm.IRModule,
    target: Target,
    threads: int,
    folder: Path,
    progress: Progress | None = None,
) -> list[Task]:
    """The distinct layers of a module, in call order; their operands lie in ``folder`` afterwards.

    What has no kernel (reshapes, gathers, sorting) has no knobs and is no task.

    Args:
        mod: stage ``integer``, or a canonical float module.
        target: the machine.
        threads: of the kernels.
        folder: of the tasks; one for the same layer is kept as it is.
        progress: called with (layers done, layers in all).

    Raises:
        ScheduleError: no kernel compiles a layer.
    """
    found: dict[Problem, Task] = {}
    steps = [step for step, _ in plan_steps(mod, target, Planner()) if step.problem is not None]
    for done, step in enumerate(steps, 1):
        problem = _asked(step)
        if problem in found:
            found[problem] = replace(found[problem], calls=found[problem].calls + 1)
        else:
            found[problem] = _task(step, problem, target, threads, folder)
        if progress is not None:
            progress(done, len(steps))
    return list(found.values())


def _asked(step: Step) -> Problem:
    """The layer with the forms that were agreed, and its weights as narrow as they are."""
    asked = step.group.problem
    assert step.problem is not None
    assert asked is not None
    return replace(step.problem, weights=asked.weights)


def _task(step: Step, problem: Problem, target: Target, threads: int, folder: Path) -> Task:
    assert step.kernel is not None
    assert step.problem is not None
    key = _key(step, problem, target)
    stored = step.problem.weights.dtype if step.problem.weights else None
    knobs = _default(step, target, threads)
    reference = Point.of(step.kernel.name, stored, knobs)
    task = Task(key, problem, target, 1, threads, reference, folder / key)
    if not (task.folder / "expected.npy").exists():  # it is written last
        task.store(_operands(step, problem))
    return task


def _default(step: Step, target: Target, threads: int) -> dict[str, Any]:
    knobs = Drawn(usual(threads).decisions)
    assert step.kernel is not None
    assert step.problem is not None
    step.kernel.plan(step.problem, target, knobs)
    return knobs.taken


def _key(step: Step, problem: Problem, target: Target) -> str:
    made_for = target.name if isinstance(target, CudaTarget) else target.llvm
    digest = hashlib.sha256(repr((problem, made_for)).encode())
    for name, values in sorted(step.group.constants.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def _operands(step: Step, problem: Problem) -> Operands:
    """Constants, activations drawn at random, and what the law makes of them."""
    rng = np.random.default_rng(0)
    group, other = step.group, problem.epilogue.other
    specs = [*problem.inputs, *([other] if other else [])]
    values: dict[Any, Array] = {}
    for variable, spec in zip(group.activations, specs, strict=True):
        if graph.is_constant(variable):
            values[variable] = graph.numpy_of(variable)
        elif variable not in values:
            drawn = draw(rng, spec)
            values[variable] = np.abs(drawn) if problem.op in POSITIVE else drawn
    inputs = tuple(
        as_stored(values[variable], spec)
        for variable, spec in zip(group.activations, specs, strict=True)
    )
    for binding in group.bindings:
        name = str(binding.var.name)
        values[binding.var] = interpreter.evaluate(binding.value, values, name)
    expected = as_stored(values[group.output], problem.output)
    return Operands(dict(group.constants), inputs, expected)


def draw(rng: np.random.Generator, spec: TensorSpec) -> Array:
    """Random values of one image, one an element: all of a narrow dtype's, normal floats."""
    shape = tuple(extent if isinstance(extent, int) else 1 for extent in spec.shape)
    if spec.dtype.startswith("float"):
        return rng.normal(size=shape).astype(spec.dtype)
    lo, hi = (int(np.clip(bound, -LARGE, LARGE)) for bound in numerics.limits(spec.dtype))
    step = 2 if spec.dtype == "int1" else 1
    drawn = lo + step * rng.integers(0, (hi - lo) // step, shape, endpoint=True)
    return drawn.astype(numerics.storage(spec.dtype))


def as_stored(values: Array, spec: TensorSpec) -> Array:
    """Values, one an element, in the form in which memory holds them."""
    if spec.form == "packed":
        return numerics.pack(values, spec.dtype)
    if spec.form == "planes":
        return numerics.to_planes(values, spec.dtype)
    return np.asarray(values, order="C")  # unlike ascontiguousarray it leaves a scalar one
