"""Where the tensors of a product lie: permutations around it need no layers of their own.

Attention computes queries, keys and values as (batch, tokens, heads, depth), and multiplies
matrices of tokens × depth. Lines of the last axis stay whole, so loads and stores find them without
a copy in another order: where there was a permutation, ``axes_a``, ``axes_b`` and ``axes_y`` of a
problem are a tensor's axes in the order in which the product has them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tvm import tirx

from nybble.schedules.cuda.mma_moves import divmod_of
from nybble.schedules.kernel import Problem, TensorSpec


@dataclass(frozen=True)
class Lying:
    """Where the matrices of a tensor lie, in elements.

    Attributes:
        lead: extent and step of the axes before the matrix; the first extent is not used.
        line: from one line of a matrix to the next.
    """

    lead: tuple[tuple[int, int], ...]
    line: int

    def start(self, image: Any) -> Any:
        """The first element of a matrix."""
        found: Any = tirx.const(0, "int32")
        for extent, step in self.lead[:0:-1]:
            image, index = divmod_of(image, extent)
            found = found + index * step
        return found + image * self.lead[0][1]


A, B, Y = range(3)
ATTRS = ("axes_a", "axes_b", "axes_y")


def is_moved(problem: Problem) -> bool:
    """Whether the product has a tensor's axes in another order than memory."""
    return not dict(problem.attrs).keys().isdisjoint(ATTRS)


def _stored(problem: Problem, which: int) -> tuple[TensorSpec, tuple[int, ...]]:
    """A tensor as memory has it, and its axes in the order of the product."""
    spec = (*problem.inputs, problem.output)[which]
    axes: tuple[int, ...] = tuple(range(len(spec.shape)))
    return spec, dict(problem.attrs).get(ATTRS[which], axes)


def moved(problem: Problem, which: int) -> TensorSpec:
    """A tensor as the product has it."""
    spec, axes = _stored(problem, which)
    return replace(spec, shape=tuple(spec.shape[axis] for axis in axes))


def lying(problem: Problem, which: int) -> Lying:
    """Where a tensor's matrices lie; only the first extent in memory may be symbolic."""
    spec, axes = _stored(problem, which)
    shape = spec.shape
    if list(axes) == sorted(axes):
        rows, length = map(int, shape[-2:])
        return Lying(((1, rows * length),), length)
    steps = [prod(map(int, shape[axis + 1 :])) for axis in axes]
    extents = [1, *(int(shape[axis]) for axis in axes[1:-2])]
    return Lying(tuple(zip(extents, steps[:-2], strict=True)), steps[-2])
