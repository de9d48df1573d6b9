"""Shapes with a symbolic batch: extents are ints or multiples of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax


class Refused(ValueError):  # noqa: N818  # becomes an entry of UnsupportedOpError, never escapes
    """A node cannot be translated; the message is the reason shown to the user."""


@dataclass(frozen=True)
class Batch:
    """``factor`` · n, where n is the symbolic batch size of the model."""

    symbol: Any
    factor: int = 1

    def __mul__(self, other: Any) -> Batch:
        """Only integers: no shape of a network holds the batch twice."""
        if not isinstance(other, int | np.integer):
            return NotImplemented
        return Batch(self.symbol, self.factor * int(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        """Exact division by an integer, or by a multiple of n (the result is an integer)."""
        divisor = other.factor if isinstance(other, Batch) else int(other)
        if divisor == 0 or self.factor % divisor:
            raise Refused(f"divides {self} by {other}")
        quotient = self.factor // divisor
        return quotient if isinstance(other, Batch) else Batch(self.symbol, quotient)

    def __str__(self) -> str:
        name = str(self.symbol.name)
        return name if self.factor == 1 else f"{self.factor}*{name}"

    def expression(self) -> Any:
        """The extent as a TIR expression."""
        return self.symbol if self.factor == 1 else self.symbol * self.factor


Extent = int | Batch


def shape(value: Any) -> list[Extent]:
    """Extents of a Relax variable or a NumPy array.

    Raises:
        Refused: an extent is neither a number nor a multiple of the batch.
    """
    if not isinstance(value, relax.Var):
        return [int(size) for size in value.shape]
    return [_extent(size) for size in value.ty.shape]


def _extent(size: Any) -> Extent:
    if isinstance(size, int | tvm.tirx.IntImm):
        return int(size)
    if isinstance(size, relax.Var):
        return Batch(size)
    if isinstance(size, tvm.tirx.Mul) and isinstance(size.b, tvm.tirx.IntImm):
        return Batch(size.a, int(size.b))
    raise Refused(f"has an extent {size} that is no multiple of the batch")


def expressions(sizes: Sequence[Extent]) -> list[Any]:
    """Extents as Relax takes them."""
    return [size.expression() if isinstance(size, Batch) else size for size in sizes]


def rank(value: Any) -> int:
    """Number of axes of a Relax variable or a NumPy array."""
    return len(value.ty.shape) if isinstance(value, relax.Var) else np.ndim(value)


def image(x: Any) -> tuple[int, int]:
    """Height and width of an NCHW activation.

    Raises:
        Refused: the activation is no image with static height and width.
    """
    sizes = shape(x)
    if len(sizes) != 4 or isinstance(sizes[2], Batch) or isinstance(sizes[3], Batch):
        raise Refused(f"needs an image (N, C, H, W) of known size, got {words(sizes)}")
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
    sizes = [size if isinstance(size, Batch) else int(size) for size in target]
    wild = [axis for axis, size in enumerate(sizes) if size == -1]
    if len(wild) > 1:
        raise Refused(f"reshapes to {words(sizes)} with more than one -1")
    try:
        total = prod(before)
        if wild:
            known: Any = prod(size for size in sizes if size != -1)
            sizes[wild[0]] = total // known
        fits = prod(sizes) == total
    except (TypeError, ValueError, ZeroDivisionError):
        fits = False  # a product or quotient that the batch does not allow
    if not fits:
        every = " for every batch size" if any(isinstance(s, Batch) for s in before) else ""
        raise Refused(f"reshapes {words(before)} to {words(sizes)}: not equal in size{every}")
    return sizes


@dataclass(frozen=True)
class Window:
    """A sliding window.

    Attributes:
        size: kernel height and width.
        strides: rows and columns.
        padding: top, left, bottom, right.
        dilation: rows and columns.
        ceil_mode: whether a last window may hang over the end.
    """

    size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    def full_padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The padding with what ``ceil_mode`` adds at the bottom and the right."""
        top, left, bottom, right = self.padding
        if not self.ceil_mode:
            return self.padding
        return (
            top, left,
            bottom + self._overhang(0, height, top, bottom),
            right + self._overhang(1, width, left, right),
        )  # fmt: skip

    def _overhang(self, axis: int, extent: int, before: int, after: int) -> int:
        """Extra end padding of the last window; a window that starts in it is dropped."""
        reach, stride = (self.size[axis] - 1) * self.dilation[axis] + 1, self.strides[axis]
        last = -(-(extent + before + after - reach) // stride)
        if last * stride >= extent + before:
            last -= 1
        return max(0, last * stride + reach - (extent + before + after))

    def same_padding(self, height: int, width: int, *, upper: bool) -> tuple[int, int, int, int]:
        """ONNX auto_pad SAME_UPPER or SAME_LOWER: the odd element goes to the end or the start."""
        begins, ends = [], []
        for axis, extent in enumerate((height, width)):
            reach, stride = (self.size[axis] - 1) * self.dilation[axis] + 1, self.strides[axis]
            total = max(0, (-(-extent // stride) - 1) * stride + reach - extent)
            begins.append(total // 2 if upper else total - total // 2)
            ends.append(total - begins[-1])
        return (begins[0], begins[1], ends[0], ends[1])
