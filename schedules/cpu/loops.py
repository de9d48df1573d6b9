"""What every scheduled family shares: extents, lanes, and the decision to run in parallel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import te, tirx

from nybble.ir import numerics
from nybble.schedules.kernel import Extent, TensorSpec

PARALLEL_WORK = 1 << 17
"""Element operations per image from which a parallel launch (13-18 µs) pays."""


class Symbols:
    """The symbolic extents of one function: one variable per name."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def extents(self, shape: Iterable[Extent]) -> list[Any]:
        """The shape with every name replaced by its int64 variable."""
        return [d if isinstance(d, int) else self._variable(d) for d in shape]

    def tensor(self, spec: TensorSpec, name: str) -> te.Tensor:
        """A parameter of the function; widths below 8 bits arrive in their storage dtype."""
        return te.placeholder(self.extents(spec.shape), stored(spec.dtype), name)

    def optional(self, spec: TensorSpec | None, name: str) -> te.Tensor | None:
        """`tensor`, or None without a spec."""
        return None if spec is None else self.tensor(spec, name)

    def _variable(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = tirx.Var(name, "int64")
        return self._known[name]


def stored(dtype: str) -> str:
    """The dtype of the buffer that holds values of ``dtype``: int4 -> int8, float32 as it is."""
    return dtype if dtype.startswith(("float", "bool")) else str(numerics.storage(dtype))


def static_size(shape: Iterable[Any]) -> int:
    """Elements of one image: symbolic extents count as 1."""
    known = [int(d) for d in shape if isinstance(d, int | tirx.IntImm)]
    return int(np.prod(known, dtype=np.int64))


def lanes_of(extent: Any, most: int = 16) -> int:
    """The widest power of two, at most ``most``, that divides an extent (1 if symbolic)."""
    if not isinstance(extent, int | tirx.IntImm):
        return 1
    return next(w for w in (64, 32, 16, 8, 4, 2, 1) if w <= most and int(extent) % w == 0)


def divisor_of(extent: Any, most: int) -> int:
    """The largest divisor of an extent that is at most ``most`` (1 if symbolic)."""
    if not isinstance(extent, int | tirx.IntImm):
        return 1
    return next(d for d in range(most, 0, -1) if int(extent) % d == 0)


def rows(sch: Any, block: Any, work: int, lanes: int | None = None) -> None:
    """Schedules an element-wise block: outer loops fused (parallel if large), inner vectorised.

    Args:
        sch: the schedule.
        block: a block with spatial loops only, or none.
        work: element operations per image.
        lanes: vector width; None takes the widest of at most 16 that divides the last extent.
    """
    loops = sch.get_loops(block)
    if not loops:
        return
    width = lanes_of(sch.get(loops[-1]).extent) if lanes is None else lanes
    if width > 1:
        outer, inner = sch.split(loops[-1], [None, width])
        sch.vectorize(inner)
        loops = [*loops[:-1], outer]
    # A width of 1 leaves the innermost loop as it is, for LLVM's own vectoriser.
    head = loops if width > 1 or len(loops) == 1 else loops[:-1]
    parallel(sch, head, work)


def parallel(sch: Any, loops: Sequence[Any], work: int) -> Any:
    """Fuses loops into one, parallel when the work pays for the launch; returns it.

    A fused loop has at most one open extent: TVM fails on the quotients by a second one.
    """
    count = 1
    while count < len(loops) and _open(sch, loops[: count + 1]) <= 1:
        count += 1
    fused = sch.fuse(*loops[:count]) if count > 1 else loops[0]
    if work >= PARALLEL_WORK:
        sch.parallel(fused)
    return fused


def _open(sch: Any, loops: Sequence[Any]) -> int:
    """How many of the loops run to an extent that only the running network knows."""
    return sum(not isinstance(sch.get(loop).extent, tirx.IntImm) for loop in loops)


def function(tensors: Sequence[te.Tensor]) -> tvm.s_tir.Schedule:
    """A schedule of the function with these parameters, the output last."""
    return tvm.s_tir.Schedule(te.create_prim_func(list(tensors)))
