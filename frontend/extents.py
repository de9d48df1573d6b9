"""Shapes with open sizes (the batch, a height, a length): extents are ints or expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax, sym
from tvm_ffi import structural_equal


class Refused(ValueError):  # noqa: N818  # becomes an entry of UnsupportedOpError, never escapes
    """A node cannot be translated; the message is the reason shown to the user."""


class Symbolic:
    """An extent that is known only when the network runs: an expression of the open sizes."""

    def __init__(self, expr: Any):
        self.expr = expr

    def __add__(self, other: Any) -> Extent:
        """Sum with an extent."""
        return simple(self.expr + _operand(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Extent:
        """Difference with an extent."""
        return simple(self.expr - _operand(other))

    def __rsub__(self, other: Any) -> Extent:
        """An extent minus this one."""
        return simple(_operand(other) - self.expr)

    def __neg__(self) -> Extent:
        """The negative."""
        return simple(-self.expr)

    def __mul__(self, other: Any) -> Extent:
        """Product with an extent."""
        return simple(self.expr * _operand(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Extent:
        """Quotient, rounded down."""
        if not isinstance(other, Symbolic) and int(other) == 0:
            raise Refused(f"divides {self} by 0")
        return simple(tvm.tirx.floordiv(self.expr, _operand(other)))

    def __rfloordiv__(self, other: Any) -> Extent:
        """An extent divided by this one."""
        return simple(tvm.tirx.floordiv(_operand(other), self.expr))

    def __mod__(self, other: Any) -> Extent:
        """Remainder of the quotient that is rounded down."""
        return simple(tvm.tirx.floormod(self.expr, _operand(other)))

    def __eq__(self, other: object) -> bool:
        """Whether both are equal for every size."""
        if not isinstance(other, Symbolic | int | np.integer):
            return NotImplemented
        wanted = _operand(other)
        if sym.Analyzer().can_prove_equal(self.expr, wanted):
            return True
        ours, theirs = _factors(self.expr), _factors(wanted)  # TVM keeps products in their order
        return len(ours) == len(theirs) and all(map(structural_equal, ours, theirs))

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return str(self.expr)

    __repr__ = __str__


Extent = int | Symbolic


def _factors(expr: Any) -> list[Any]:
    """The factors of a product, in an order of their own."""
    if not isinstance(expr, tvm.tirx.Mul):
        return [expr]
    return sorted([*_factors(expr.a), *_factors(expr.b)], key=str)


def _operand(value: Any) -> Any:
    if isinstance(value, Symbolic):
        return value.expr
    if not isinstance(value, int | np.integer):
        raise Refused(f"computes {value} with an open size")
    return tvm.tirx.IntImm("int64", int(value))


def simple(expr: Any) -> Extent:
    """An expression as an extent: a number where no open size is left in it."""
    expr = sym.Analyzer().simplify(expr)
    return int(expr) if isinstance(expr, int | tvm.tirx.IntImm) else Symbolic(expr)


def shape(value: Any) -> list[Extent]:
    """Extents of a Relax variable or a NumPy array."""
    if not isinstance(value, relax.Var):
        return [int(size) for size in value.shape]
    return [
        int(size) if isinstance(size, int | tvm.tirx.IntImm) else Symbolic(size)
        for size in value.ty.shape
    ]


def expressions(sizes: Sequence[Extent]) -> list[Any]:
    """Extents as Relax takes them."""
    return [size.expr if isinstance(size, Symbolic) else int(size) for size in sizes]


def rank(value: Any) -> int:
    """Number of axes of a Relax variable or a NumPy array."""
    return len(value.ty.shape) if isinstance(value, relax.Var) else np.ndim(value)


def image(x: Any) -> tuple[Extent, Extent]:
    """Height and width of an NCHW activation.

    Raises:
        Refused: the activation is no image.
    """
    sizes = shape(x)
    if len(sizes) != 4:
        raise Refused(f"needs an image (N, C, H, W), got {words(sizes)}")
    return sizes[2], sizes[3]


def words(sizes: Sequence[Extent]) -> str:
    """A shape for people: ``(batch, 3, 224, 224)``."""
    return f"({', '.join(map(str, sizes))})"


def resolve(before: Sequence[Extent], target: Sequence[Extent]) -> list[Extent]:
    """The target of a reshape with its -1 filled in.

    Args:
        before: the shape that is reshaped.
        target: extents, of which one may be -1.

    Raises:
        Refused: the numbers of elements differ (for some batch size).
    """
    sizes = [size if isinstance(size, Symbolic) else int(size) for size in target]
    wild = [axis for axis, size in enumerate(sizes) if isinstance(size, int) and size == -1]
    if len(wild) > 1:
        raise Refused(f"reshapes to {words(sizes)} with more than one -1")
    try:
        total = prod(before)
        if wild:
            known: Any = prod(size for axis, size in enumerate(sizes) if axis != wild[0])
            sizes[wild[0]] = total // known
        fits = prod(sizes) == total
    except (TypeError, ValueError, ZeroDivisionError):
        fits = False  # a product or quotient that the batch does not allow
    if not fits:
        every = " for every batch size" if any(isinstance(s, Symbolic) for s in before) else ""
        raise Refused(f"reshapes {words(before)} to {words(sizes)}: not equal in size{every}")
    return sizes


@dataclass(frozen=True)
class Window:
    """A sliding window over one or more spatial axes.

    Attributes:
        size: of the kernel.
        strides: one for each axis.
        padding: all begins, then all ends: top, left, bottom, right.
        dilation: one for each axis.
        ceil_mode: whether a last window may hang over the end.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)
    ceil_mode: bool = False

    def full_padding(self, *sizes: Extent) -> tuple[int, ...]:
        """The padding with what ``ceil_mode`` adds at the ends."""
        if not self.ceil_mode:
            return self.padding
        rank = len(self.size)
        begins, ends = self.padding[:rank], self.padding[rank:]
        over = [
            end + self._overhang(axis, _known(extent), begin, end)
            for axis, (extent, begin, end) in enumerate(zip(sizes, begins, ends, strict=True))
        ]
        return (*begins, *over)

    def _overhang(self, axis: int, extent: int, before: int, after: int) -> int:
        """Extra end padding of the last window; a window that starts in it is dropped."""
        reach, stride = (self.size[axis] - 1) * self.dilation[axis] + 1, self.strides[axis]
        last = -(-(extent + before + after - reach) // stride)
        if last * stride >= extent + before:
            last -= 1
        return max(0, last * stride + reach - (extent + before + after))

    def same_padding(self, *sizes: Extent, upper: bool) -> tuple[int, ...]:
        """ONNX auto_pad SAME_UPPER or SAME_LOWER: the odd element goes to the end or the start."""
        begins, ends = [], []
        for axis, extent in enumerate(sizes):
            reach, stride = (self.size[axis] - 1) * self.dilation[axis] + 1, self.strides[axis]
            total = reach - 1
            if stride > 1:
                known = _known(extent)
                total = max(0, (-(-known // stride) - 1) * stride + reach - known)
            begins.append(total // 2 if upper else total - total // 2)
            ends.append(total - begins[-1])
        return (*begins, *ends)


def _known(extent: Extent) -> int:
    if isinstance(extent, Symbolic):
        raise Refused("needs a known size for its padding")
    return extent
