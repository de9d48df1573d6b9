"""How activations narrower than a byte lie in memory: one a byte, packed, or in bit planes.

A tensor takes another form than ``values`` only where the kernel that writes it and all kernels
that read it agree; then the producer's epilogue packs at once and no pass over it is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nybble.ir import graph, numerics
from nybble.schedules.group import Group
from nybble.schedules.kernel import Form, Kernel, Problem
from nybble.schedules.target import Target

PREFERRED: tuple[Form, ...] = ("planes", "packed")


@dataclass
class Step:
    """A layer with the kernel chosen for it; ``problem`` is updated as forms are agreed.

    Attributes:
        group: the layer.
        kernel: None for what no kernel family computes: reshapes, float leftovers.
        problem: as the kernel sees it.
    """

    group: Group
    kernel: Kernel | None = None
    problem: Problem | None = None

    @property
    def reads(self) -> set[Any]:
        """The variables that the layer reads."""
        if self.problem is not None:
            return set(self.group.activations)
        return {v for binding in self.group.bindings for v in graph.operands(binding.value)}


def agree(steps: Sequence[Step], outputs: set[Any], target: Target) -> None:
    """Gives every tensor below 8 bits the preferred form that all its kernels take.

    Args:
        steps: the layers in call order.
        outputs: variables that leave the network; they keep one value a byte.
        target: the CPU.
    """
    for step in steps:
        var = step.group.output
        if step.problem is None or var in outputs or not _is_narrow(step.problem.output.dtype):
            continue
        readers = [other for other in steps if var in other.reads]
        for form in PREFERRED if readers else ():
            changed = [*_changed(step, readers, form)]
            if all(_takes(one, problem, target) for one, problem in changed):
                for one, problem in changed:
                    one.problem = problem
                break


def _is_narrow(dtype: str) -> bool:
    return not dtype.startswith("float") and numerics.width(dtype)[1] < 8


def _takes(step: Step, problem: Problem | None, target: Target) -> bool:
    if step.kernel is None or problem is None:
        return False
    return step.kernel.refuses(problem, target) is None


def _changed(
    step: Step, readers: Sequence[Step], form: Form
) -> Iterator[tuple[Step, Problem | None]]:
    """The producer and the readers of a tensor with their problems as they would be."""
    assert step.problem is not None
    yield step, replace(step.problem, output=replace(step.problem.output, form=form))
    for reader in readers:
        yield reader, _reading(reader, step.group.output, form)


def _reading(reader: Step, var: Any, form: Form) -> Problem | None:
    problem = reader.problem
    if problem is None:
        return None
    where = [i for i, operand in enumerate(reader.group.activations) if operand.same_as(var)]
    inputs = tuple(
        replace(spec, form=form) if i in where else spec for i, spec in enumerate(problem.inputs)
    )
    epilogue = problem.epilogue
    if len(problem.inputs) in where and epilogue.other is not None:
        epilogue = replace(epilogue, other=replace(epilogue.other, form=form))
    return replace(problem, inputs=inputs, epilogue=epilogue)
