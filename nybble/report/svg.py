"""Marks of a drawing as SVG text; colours and sizes of type come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

GLYPH = 6.2  # the mean width of a letter of 11 px
LINE = 13.0  # the height of a line of it


@dataclass(frozen=True)
class Scale:
    """Values along an axis, as places in pixels.

    Attributes:
        lo: the value at ``start``.
        hi: the value at ``end``; above ``lo``.
        start: pixels.
        end: pixels; below ``start`` for an axis that goes up.
        log: equal ratios are equal distances; both values are positive then.
    """

    lo: float
    hi: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; what lies outside is put on the edge."""
        held = min(max(value, self.lo), self.hi)
        share = (self._of(held) - self._of(self.lo)) / (self._of(self.hi) - self._of(self.lo))
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values between the two ends, about so many at most."""
        if not self.log:
            step = _step((self.hi - self.lo) / most)
            first, last = math.ceil(self.lo / step - 1e-9), math.floor(self.hi / step + 1e-9)
            return [round(i * step, 12) for i in range(first, last + 1)]
        decades = range(math.floor(math.log10(self.lo)), math.ceil(math.log10(self.hi)) + 1)
        for some in ((1, 2, 5), (1,)):
            every = [m * 10.0**d for d in decades for m in some]
            found = [v for v in every if self.lo * (1 - 1e-9) <= v <= self.hi * (1 + 1e-9)]
            if len(found) <= most:
                return found
        return found[:: -(-len(found) // most)]

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value


def _step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least this."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))


def scale(values: Sequence[float], start: float, end: float, log: bool = False) -> Scale:
    """An axis that holds these values with a little room; values of no extent get some."""
    lo, hi = min(values), max(values)
    if log:
        room = max((hi / lo) ** 0.06, 1.2)
        return Scale(lo / room, hi * room, start, end, True)
    room = 0.06 * (hi - lo) or abs(hi) or 1.0
    return Scale(lo - room, hi + room, start, end)


def picture(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """A drawing of fixed size in a box that scrolls sideways where the page is narrower."""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return (
        f'<div class="scroll" tabindex="0"><svg {size} role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg></div>"
    )


def text(x: float, y: float, content: str, kind: str = "", turn: float = 0) -> str:
    """A line of text; ``kind`` aligns it: ``mid`` or ``end``, else it starts at ``x``."""
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{turned}>{escape(content)}</text>'


@dataclass(frozen=True)
class Box:
    """A rectangle: its upper left corner and its size, in pixels."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        across = self.x < other.x + other.width and other.x < self.x + self.width
        return across and self.y < other.y + other.height and other.y < self.y + self.height

    def within(self, other: Box) -> bool:
        """Whether it lies in the other one."""
        across = other.x <= self.x and self.x + self.width <= other.x + other.width
        return across and other.y <= self.y and self.y + self.height <= other.y + other.height


def rect(box: Box, kind: str, tip: str = "", opacity: float | None = None) -> str:
    """A rectangle; ``tip`` shows under the pointer."""
    inside = f"<title>{escape(tip)}</title>" if tip else ""
    faint = "" if opacity is None else f' fill-opacity="{opacity:.3f}"'
    place = f'x="{box.x:.2f}" y="{box.y:.2f}" width="{box.width:.2f}" height="{box.height:.2f}"'
    return f'<rect {place} class="{kind}"{faint}>{inside}</rect>'


def dot(x: float, y: float, radius: float, kind: str, tip: str = "") -> str:
    """A disc; ``tip`` shows under the pointer."""
    inside = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}">{inside}</circle>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def path(points: Sequence[tuple[float, float]], kind: str) -> str:
    """Lines from point to point."""
    steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{steps}" class="{kind}"/>'


def left_axis(
    frame: Box, up: Scale, title: str, words: Callable[[float], str], most: int = 5
) -> list[str]:
    """Grid lines over the frame, their values to its left, and the title along them."""
    parts = []
    for value in up.ticks(most):
        y = up(value)
        parts.append(line(frame.x, y, frame.x + frame.width, y, "grid"))
        parts.append(text(frame.x - 8, y + 4, words(value), "end"))
    middle = frame.y + frame.height / 2
    return [*parts, text(13, middle, title, "mid title", -90)]


def bottom_axis(
    frame: Box, across: Scale, title: str, words: Callable[[float], str], most: int = 6
) -> list[str]:
    """Grid lines over the frame, their values below it, and the title under them."""
    foot, parts = frame.y + frame.height, []
    for value in across.ticks(most):
        x = across(value)
        parts.append(line(x, frame.y, x, foot, "grid"))
        parts.append(text(x, foot + 16, words(value), "mid"))
    return [*parts, text(frame.x + frame.width / 2, foot + 36, title, "mid title")]


def label(
    spot: tuple[float, float], content: str, kind: str, room: Box, taken: Sequence[list[Box]]
) -> str:
    """A name beside a spot, where it covers least; its box is added to what is taken.

    Args:
        spot: the middle of the mark.
        content: the name.
        kind: its style.
        room: where the name must lie, if that can be.
        taken: boxes that it should not meet, in lists: the first list counts before the second.
    """
    x, y = spot
    width = GLYPH * 1.15 * len(content)
    boxes = [
        Box(x + (gap if side > 0 else -gap - width), y + rise, width, LINE)
        for gap in (10, 16, 24)
        for rise in (-16, 4, -30, 18, -44, 32)
        for side in (1, -1)
    ]
    fine = [box for box in boxes if box.within(room)] or boxes
    box = min(fine, key=lambda b: [sum(b.meets(t) for t in some) for some in taken])
    taken[0].append(box)
    return text(box.x, box.y + LINE - 3, content, kind)
