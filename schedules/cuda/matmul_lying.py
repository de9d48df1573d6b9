"""Where the operands of a product lie: as a permutation before it found them.

Attention computes queries, keys and values as (batch, tokens, heads, depth), and multiplies
matrices of tokens × depth. Lines of the last axis stay whole, so loads find them without a copy in
another order: a problem's ``axes_a`` and ``axes_b`` are the permutation's, where there was one.
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


ATTRS = ("axes_a", "axes_b")


def is_moved(problem: Problem, which: int) -> bool:
    """Whether the product takes an operand's axes in another order than memory."""
    return ATTRS[which] in dict(problem.attrs)


def _axes(problem: Problem, which: int) -> tuple[int, ...]:
    """The axes of an operand in the order in which the product takes them."""
    axes: tuple[int, ...] = tuple(range(len(problem.inputs[which].shape)))
    return dict(problem.attrs).get(ATTRS[which], axes)


def moved(problem: Problem, which: int) -> TensorSpec:
    """An operand as the product takes it."""
    spec = problem.inputs[which]
    return replace(spec, shape=tuple(spec.shape[axis] for axis in _axes(problem, which)))


def lying(problem: Problem, which: int) -> Lying:
    """Where an operand's matrices lie; only the first extent in memory may be symbolic."""
    shape, axes = problem.inputs[which].shape, _axes(problem, which)
    if not is_moved(problem, which):
        rows, length = map(int, shape[-2:])
        return Lying(((1, rows * length),), length)
    steps = [prod(map(int, shape[axis + 1 :])) for axis in axes]
    extents = [1, *(int(shape[axis]) for axis in axes[1:-2])]
    return Lying(tuple(zip(extents, steps[:-2], strict=True)), steps[-2])
