"""Drawings with one column for every layer of the network, in order of computation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nybble.report import svg, units
from nybble.report.study import Study, bits, in_words
from nybble.report.svg import Box, Scale

LEFT, RIGHT, TOP = 76.0, 8.0, 10.0
ROOM = 990 - LEFT - RIGHT  # the page's width
NARROWEST, WIDEST = 4.5, 46.0
RINGED = 8.0  # a column narrower than this has no room for a ring
APART = 13.0  # between names that stand upright
LONGEST = 24  # letters of a name
ROW = 26.0
EMPTY = 0.0  # opacity of the least loss; the paper shows through
HIGHEST = 60.0  # dB: beyond that the errors are those of float32 itself, and all look alike


@dataclass(frozen=True)
class Columns:
    """Where each layer stands.

    Attributes:
        names: of the layers.
    """

    names: Sequence[str]

    @property
    def step(self) -> float:
        """The width of a column."""
        return min(max(ROOM / max(len(self.names), 1), NARROWEST), WIDEST)

    @property
    def gap(self) -> float:
        """Between two columns."""
        return 2.0 if self.step >= 10 else 0.6

    @property
    def width(self) -> float:
        """Of the whole drawing."""
        return max(LEFT + self.step * len(self.names) + RIGHT, 320.0)

    def frame(self, top: float, height: float) -> Box:
        """The plot of a panel."""
        return Box(LEFT, top, self.step * len(self.names), height)

    def column(self, index: int, y: float, height: float) -> Box:
        """A layer's part of a panel."""
        return Box(LEFT + index * self.step, y, self.step - self.gap, height)

    def middle(self, index: int) -> float:
        """The place of a layer's column."""
        return LEFT + (index + 0.5) * self.step - self.gap / 2

    def foot(self, y: float) -> list[str]:
        """The layers' names upright below ``y``, as many as have room, and the axis' title."""
        every = math.ceil(APART / self.step)
        parts = [
            svg.text(self.middle(i) + 4, y + 8, name, "end", -90)
            for i, name in enumerate(short(self.names))
            if i % every == 0
        ]
        few = "" if every == 1 else f" (one name in {every} is shown)"
        title = f"layers, from input to output{few}"
        middle = max(LEFT + self.step * len(self.names) / 2, LEFT + 90)
        return [*parts, svg.text(middle, y + self.depth, title, "mid title")]

    @property
    def depth(self) -> float:
        """What the names take below a panel."""
        return 26 + svg.GLYPH * max(map(len, short(self.names)))


def short(names: Sequence[str]) -> list[str]:
    """What tells layers apart: without what exporters repeat, and the end where that is long.

    >>> short(["/blocks/blocks.0/conv1/Conv", "/blocks/blocks.1/conv1/Conv", "/fc/Gemm"])
    ['blocks.0/conv1', 'blocks.1/conv1', 'fc']
    """
    pieces = [_pieces(name) for name in names]
    cut = ["/".join(p[:-1]) for p in pieces]
    whole = ["/".join(p) for p in pieces]
    found = cut if all(cut) and len(set(cut)) == len(cut) else whole
    return [n if len(n) <= LONGEST else "…" + n[1 - LONGEST :] for n in found]


def _pieces(name: str) -> list[str]:
    """The parts of a path; ``blocks`` before ``blocks.0`` says nothing."""
    found = [piece for piece in name.split("/") if piece]
    following = [*found[1:], ""]
    return [p for p, n in zip(found, following, strict=True) if not n.startswith(f"{p}.")]


# ---------------------------------------------------------------- losses


def heat_map(study: Study) -> str:
    """Losses by layer and width: the darker, the more is lost; what was chosen is ringed."""
    columns, widths = Columns(list(study.losses)), study.widths
    shade, parts = _shade(study), []
    for row, width in enumerate(widths):
        y = TOP + row * ROW
        parts.append(svg.text(LEFT - 8, y + ROW / 2 + 3, in_words(width), "end"))
        for index, (layer, losses) in enumerate(study.losses.items()):
            box = columns.column(index, y, ROW - 2)
            if width not in losses:
                continue
            chosen = study.allocation.widths[layer] == width
            said = f"{losses[width]:.3g}" if len(losses) > 1 else "the only one it may have"
            tip = f"{layer}, {in_words(width)}: {said}{', chosen' if chosen else ''}"
            parts.append(svg.rect(box, "cell" if len(losses) > 1 else "cell fixed", tip,
                                  shade(losses[width]) if len(losses) > 1 else EMPTY))  # fmt: skip
            if chosen:
                parts.append(_chosen(box))
    foot = TOP + ROW * len(widths)
    parts.append(svg.text(13, TOP + ROW * len(widths) / 2, "width", "mid title", -90))
    parts += columns.foot(foot)
    height = foot + columns.depth + 8
    label = f"Loss of {len(study.losses)} layers at {len(widths)} widths"
    return _legend(study) + svg.picture(columns.width, height, label, parts)


def _chosen(box: Box) -> str:
    """A ring, or where it would hide the colour a dash at the cell's foot."""
    if box.width >= RINGED:
        inner = Box(box.x + 1, box.y + 1, box.width - 2, box.height - 2)
        return svg.rect(inner, "ring")
    return svg.rect(Box(box.x, box.y + box.height - 6, box.width, 6), "pick")


def _range(study: Study) -> tuple[float, float] | None:
    """The least and the greatest positive loss of layers whose width is open."""
    found = [v for n in study.open_layers for v in study.losses[n].values() if v > 0]
    return (min(found), max(found)) if found else None


def _shade(study: Study) -> Callable[[float], float]:
    """Opacity of a loss, by its logarithm; nothing for those at or below zero."""
    ends = _range(study)
    if ends is None or ends[0] == ends[1]:
        return lambda loss: 1.0 if loss > 0 else EMPTY
    opacity = Scale(*ends, 0.06, 1.0, log=True)
    return lambda loss: opacity(loss) if loss > 0 else EMPTY


def _legend(study: Study) -> str:
    ends = _range(study)
    ramp = ""
    if ends is not None:
        ramp = f'<li>loss {ends[0]:.1e} <i class="ramp"></i> {ends[1]:.1e} (logarithmic)</li>'
    columns = Columns(list(study.losses))
    mark = "ringed" if columns.step - columns.gap >= RINGED else "picked"
    return (
        f'<ul class="legend">{ramp}<li><i class="{mark}"></i>chosen</li>'
        '<li><i class="shut"></i>the only width the layer may have</li></ul>'
    )


# ---------------------------------------------------------------- widths


def kind(study: Study, width: int | str) -> str:
    """The style of a width: the same in every drawing of the page."""
    return f"w{min(study.widths.index(width), 5)}"


def key(study: Study) -> str:
    """Which colour is which width, and how many layers got it."""
    given = list(study.allocation.widths.values())
    items = (
        f'<li><i class="{kind(study, w)}"></i>{in_words(w)} <b>{given.count(w)}</b></li>'
        for w in study.widths
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def widths_along(study: Study) -> str:
    """Bits of every layer; below them the bytes of its weights, among those at the widest."""
    columns, chosen = Columns(list(study.losses)), study.allocation.widths
    upper, lower = columns.frame(TOP, 110), columns.frame(TOP + 140, 110)
    tall = Scale(0, max(bits(w) for w in study.widths), upper.y + upper.height, upper.y)
    sizes = study.costs["size"]
    most = max(max(row.values()) for row in sizes.values()) or 1.0
    big = Scale(0, most * 1.04, lower.y + lower.height, lower.y)
    parts = svg.left_axis(upper, tall, "bits of weights", lambda v: f"{v:g}", 4)
    parts += svg.left_axis(lower, big, "size", units.size, 4)
    for index, (layer, width) in enumerate((n, chosen[n]) for n in columns.names):
        size, full = sizes[layer][width], max(sizes[layer].values())
        of = f", {in_words(width)}: {units.size(size)}"
        tip = layer + of + (f" of {units.size(full)}" if full > size else "")
        bar = columns.column(index, tall(bits(width)), tall(0) - tall(bits(width)))
        parts.append(svg.rect(bar, kind(study, width), tip))
        parts.append(svg.rect(columns.column(index, big(full), big(0) - big(full)), "full", tip))
        bar = columns.column(index, big(size), big(0) - big(size))
        parts.append(svg.rect(bar, kind(study, width), tip))
    foot = lower.y + lower.height
    parts += columns.foot(foot)
    label = f"Bits and bytes of {len(chosen)} layers"
    drawn = svg.picture(columns.width, foot + columns.depth + 8, label, parts)
    return key(study) + drawn


# ---------------------------------------------------------------- fidelity


def signals(study: Study) -> str:
    """Signal to noise of every layer's output, and its cosine below."""
    columns = Columns(list(study.fidelity))
    found = list(study.fidelity.values())
    upper, lower = columns.frame(TOP, 130), columns.frame(TOP + 164, 90)
    heights = [min(max(f.snr, -HIGHEST), HIGHEST) for f in found]
    foot = upper.y + upper.height
    high = Scale(min(0.0, *heights) * 1.1, max(10.0, *heights) * 1.06, foot, upper.y)
    least = min(f.cosine for f in found)
    near = Scale(_below(least), 1.0, lower.y + lower.height, lower.y)
    parts = svg.left_axis(upper, high, "SNR (dB)", lambda v: f"{v:g}")
    parts += svg.left_axis(lower, near, "cosine", lambda v: f"{v:.4g}", 4)
    for index, (layer, (snr, cosine)) in enumerate(study.fidelity.items()):
        width = study.allocation.widths.get(layer)
        style = kind(study, width) if width is not None else "k5"
        tip = f"{layer}: {units.decibels(snr)}, cosine {cosine:.5f}"
        end, base = high(heights[index]), high(0)
        bar = columns.column(index, min(end, base), max(abs(base - end), 1.0))
        parts.append(svg.rect(bar, style, tip))
        x, radius = columns.middle(index), min(4.0, max(columns.step / 2 - 0.5, 1.6))
        parts.append(svg.dot(x, near(cosine), radius, style, tip))
    foot = lower.y + lower.height
    parts += columns.foot(foot)
    label = f"Signal to noise and cosine of {len(found)} layers"
    drawn = svg.picture(columns.width, foot + columns.depth + 8, label, parts)
    return key(study) + drawn


def _below(cosine: float) -> float:
    """A round number below a cosine, at a distance from 1 that shows its differences."""
    for floor in (0.999, 0.99, 0.98, 0.95, 0.9, 0.8, 0.5, 0.0):
        if cosine >= floor:
            return floor
    return -1.0
