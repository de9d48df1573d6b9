"""One shape for every convolution and linear layer that the blocked template compiles.

    images × (rows × cols) outputs of ``groups`` groups of channels; each output is
    Σ over (tap_rows × tap_cols) runs of ``run`` consecutive elements of the NHWC input.

Without dilation along W the KW taps of one kernel row touch KW·C consecutive elements, so they
are a single run: a 7x7x3 kernel is 7 runs of 21, not 49 of 3. A 1x1 convolution without padding
and strides, and a linear layer, is a matrix product: its pixels become ``rows`` of one column.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from nybble.schedules.kernel import Extent, Problem

ENOUGH_ROWS = 16  # below, several images share a tile of a matrix product


@dataclass(frozen=True)
class Geometry:
    """Extents and steps of one layer; only ``images`` or ``rows`` can be symbolic.

    Attributes:
        images: number of separate images.
        rows: output rows of an image; a symbolic product is a tuple of factors, the first symbolic.
        cols: output columns.
        groups: groups of channels.
        c: input channels of a pixel, all groups.
        o: output channels of one group.
        tap_rows: kernel rows.
        tap_cols: runs in one kernel row.
        run: consecutive input elements of one run.
        stride: (along rows, along cols).
        dilation: (along rows, along cols).
        padding: (top, left, bottom, right).
        height: input rows.
        width: input columns.
        pad_value: what stands in the padding.
    """

    images: tuple[Extent, ...]
    rows: tuple[Extent, ...]
    cols: int
    groups: int
    c: int
    o: int
    tap_rows: int
    tap_cols: int
    run: int
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    height: int = 0
    width: int = 1
    pad_value: int = 0

    @property
    def static_rows(self) -> int | None:
        """The number of rows, None when symbolic."""
        return int(prod(self.rows)) if all(isinstance(r, int) for r in self.rows) else None

    @property
    def reach(self) -> int:
        """Input columns that one output row reads."""
        taps = self.run // self.c if self.tap_cols == 1 and self.groups == 1 else self.tap_cols
        return (self.cols - 1) * self.stride[1] + (taps - 1) * self.dilation[1] + 1

    def rows_read(self, rows: int) -> int:
        """Input rows that ``rows`` consecutive output rows read."""
        return (rows - 1) * self.stride[0] + (self.tap_rows - 1) * self.dilation[0] + 1

    def runs(self, depth: int) -> int:
        """Dot products in one run, the last one padded with zero weights."""
        return -(-self.run // depth)


def geometry_of(problem: Problem) -> Geometry:
    """The geometry of a ``conv2d`` or ``linear`` problem."""
    assert problem.weights is not None
    shape, weights = problem.inputs[0].shape, problem.weights.shape
    if problem.op == "linear":
        return _product(shape[:-1], int(weights[1]), int(weights[0]), 1)
    attrs: dict[str, Any] = dict(problem.attrs)
    groups, padding = int(attrs["groups"]), tuple(attrs["padding"])
    o, kh, kw, per_group = (int(d) for d in weights)
    if kh == kw == 1 and tuple(attrs["strides"]) == (1, 1) and not any(padding):
        return _product(shape[:-1], per_group, o, groups)
    merged = groups == 1 and attrs["dilation"][1] == 1
    return Geometry(
        (shape[0],),
        (problem.output.shape[1],),
        int(problem.output.shape[2]),
        groups,
        per_group * groups,
        o // groups,
        kh,
        1 if merged else kw,
        kw * per_group if merged else per_group,
        tuple(attrs["strides"]),
        tuple(attrs["dilation"]),
        padding,
        int(shape[1]),
        int(shape[2]),
        int(attrs.get("pad_value", 0)),
    )


def _product(leading: tuple[Extent, ...], k: int, o: int, groups: int) -> Geometry:
    """A matrix product of prod(leading) rows; the symbolic batch stays apart if images are big."""
    fixed = [d for d in leading if isinstance(d, int)]
    symbols = [d for d in leading if isinstance(d, str)]
    per_image = prod(fixed)
    images: tuple[Extent, ...] = (1,)
    rows: tuple[Extent, ...] = (per_image,)
    if symbols and per_image >= ENOUGH_ROWS:
        images = tuple(symbols)
    elif symbols:
        rows = (*symbols, per_image)
    return Geometry(images, rows, 1, groups, k * groups, o // groups, 1, 1, k, height=per_image)
