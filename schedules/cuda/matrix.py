"""Convolution and linear layers as matrix products: (rows × depth) · (channels × depth)ᵀ.

A row is an output pixel (or a token), and its operands are the input under the window, gathered
while loading: implicit GEMM. Along the depth the taps of the window follow one another, each with
all input channels of one pixel, in OHWI order as weights lie anyway:

    depth   tap 0: c0 c1 … | tap 1: c0 c1 … | …        one *line* of bytes for each tap

A linear layer, and a 1x1 convolution without strides and padding, is one tap of the whole depth.
Where a tap is no whole number of words (the image's three channels), `in_words` makes the taps of a
row of the window one, if they lie side by side, and fills its line up to words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from nybble.ir import numerics
from nybble.schedules.kernel import Extent, Problem

SLAB = 64
"""Bytes of depth that are a unit of shared memory: two steps of the tensor cores."""


@dataclass(frozen=True)
class Window:
    """How the rows of a convolution find their operands.

    Attributes:
        size: of the input, (H, W).
        out: of the output, (OH, OW).
        taps: (KH, KW).
        strides: along H and W.
        dilation: along H and W.
        padding: (top, left, bottom, right).
        fill: what stands in the padding.
    """

    size: tuple[int, int]
    out: tuple[int, int]
    taps: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    fill: int = 0

    @property
    def is_padded(self) -> bool:
        """Whether some taps lie outside the input."""
        return any(self.padding)


@dataclass(frozen=True)
class Matrix:
    """One layer.

    Attributes:
        rows: factors of the number of rows; a symbolic batch is a name.
        channels: of the output.
        elements: of one tap of one row: the input channels of a pixel, or of several.
        packing: elements in a byte of shared memory: 1, or 2 for tensor cores of 4 bits.
        window: None where there is one tap that lies as it is used.
        pixels: that a tap covers.
        loose: taps begin anywhere in memory; their lines are filled up to words.
    """

    rows: tuple[Extent, ...]
    channels: int
    elements: int
    packing: int = 1
    window: Window | None = None
    pixels: int = 1
    loose: bool = False

    @property
    def static_rows(self) -> int:
        """The number of rows, of one image if the batch is symbolic."""
        return prod(r for r in self.rows if isinstance(r, int))

    @property
    def taps(self) -> int:
        """Of the window."""
        return prod(self.window.taps) if self.window else 1

    @property
    def line(self) -> int:
        """Bytes of shared memory for one tap."""
        size = -(-self.elements // self.packing)
        return -(-size // 4) * 4 if self.loose else size

    @property
    def depth(self) -> int:
        """Bytes of shared memory for one row, in all."""
        return self.taps * self.line

    @property
    def slabs(self) -> int:
        """The depth in slabs, the last one filled up with weights of 0."""
        return -(-self.depth // SLAB)


def matrix_of(problem: Problem, packing: int = 1) -> Matrix:
    """The matrix product of a ``conv2d`` of one group, or of a ``linear`` problem."""
    assert problem.weights is not None
    shape, weights = problem.inputs[0].shape, problem.weights.shape
    if problem.op == "linear":
        return Matrix(shape[:-1], int(weights[0]), int(weights[1]), packing)
    attrs: dict[str, Any] = dict(problem.attrs)
    channels, kh, kw, elements = (int(extent) for extent in weights)
    strides, padding = _pair(attrs["strides"]), tuple(map(int, attrs["padding"]))
    assert len(padding) == 4
    if kh == kw == 1 and strides == (1, 1) and not any(padding):
        return Matrix(shape[:-1], channels, elements, packing)
    out = _pair(problem.output.shape[1:3])
    window = Window(
        _pair(shape[1:3]), out, (kh, kw), strides, _pair(attrs["dilation"]), padding,
        int(attrs.get("pad_value", 0)),
    )  # fmt: skip
    return Matrix((shape[0], *out), channels, elements, packing, window)


def in_words(matrix: Matrix) -> Matrix:
    """The same layer with lines of whole words."""
    if matrix.elements % (4 * matrix.packing) == 0:
        return matrix
    window = matrix.window
    if window is None or window.dilation[1] != 1:
        return replace(matrix, loose=True)
    (kh, kw), elements = window.taps, matrix.elements
    rows = replace(window, taps=(kh, 1))
    return replace(matrix, window=rows, elements=kw * elements, pixels=kw, loose=True)


def refuse(problem: Problem) -> str | None:
    """Why a layer is no matrix product of integers of up to 8 bits; None when it is."""
    assert problem.weights is not None
    for name, dtype in (("x", problem.inputs[0].dtype), ("w", problem.weights.dtype)):
        if dtype.startswith("float") or numerics.width(dtype)[1] > 8:
            return f"computes integers of up to 8 bits, not {name}: {dtype}"
    if problem.op == "conv2d":
        if int(problem.attr("groups")) != 1:
            return f"{problem.attr('groups')} groups: each would be a product of its own"
        if any(isinstance(extent, str) for extent in problem.inputs[0].shape[1:]):
            return "more than the batch is symbolic"
    sizes = [prod(int(e) for e in spec.shape if not isinstance(e, str)) for spec in problem.tensors]
    return "a tensor of 2^31 elements and more" if max(sizes) >= 1 << 31 else None


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
