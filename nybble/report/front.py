"""The Pareto front of loss against a cost, with the choice and the uniform widths on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nybble.report import svg, units
from nybble.report.study import Point, Study, in_words
from nybble.report.svg import LINE, Box, Scale

WIDTH, HEIGHT = 474.0, 360.0  # two beside one another on a wide page
FRAME = Box(66, 12, WIDTH - 66 - 24, HEIGHT - 12 - 48)
TITLES = {"size": "size of weights", "bops": "bit operations of one sample",
          "latency": "latency of the layers' kernels, one sample"}  # fmt: skip
WORDS: dict[str, Callable[[Any], str]] = {
    "size": units.size, "bops": units.count, "latency": units.duration,
}  # fmt: skip


def front(study: Study, cost: str) -> str:
    """One drawing; a step of the line is the least loss that a cost allows."""
    curve, chosen, uniform = study.fronts[cost], study.chosen(cost), study.uniform(cost)
    points = [*curve, chosen, *uniform.values()]
    across = svg.scale([p.cost for p in points], FRAME.x, FRAME.x + FRAME.width)
    up = _up(points)
    words = WORDS[cost]
    parts = svg.bottom_axis(FRAME, across, TITLES[cost], words)
    parts += svg.left_axis(FRAME, up, _loss_title(study), lambda v: f"{v:.3g}")
    parts.append(svg.path(_steps(curve, across, up), "curve"))
    for point in curve:
        tip = f"{words(point.cost)}, loss {point.loss:.3g}"
        parts.append(svg.dot(across(point.cost), up(point.loss), 2.5, "spot", tip))
    line = [Box(across(p.cost) - 2, up(p.loss) - 2, 4, 4) for p in curve]
    limit = study.allocation.limits.get(cost)
    if limit is not None and across.lo <= limit <= across.hi:
        parts += _limit(across(limit))
        line.append(Box(across(limit) - 60, FRAME.y, 61, LINE))  # its name
        line += [Box(across(limit), y, 1, 1) for y in range(int(FRAME.y), int(HEIGHT))]
    marks = [("chosen", chosen, "mark-chosen")]
    marks += [(in_words(w), point, "mark-uniform") for w, point in uniform.items()]
    parts += _marks(marks, (across, up), words, line)
    label = f"Loss against {TITLES[cost]}: {len(curve)} points, and the choice"
    return svg.picture(WIDTH, HEIGHT, label, parts)


def _loss_title(study: Study) -> str:
    return f"loss ({study.measure})" if study.measure else "loss"


def _up(points: Sequence[Point]) -> Scale:
    """Logarithmic where losses differ much; what is not positive then lies on the floor."""
    losses = [p.loss for p in points]
    foot, head = FRAME.y + FRAME.height, FRAME.y
    positive = [v for v in losses if v > 0]
    if positive and max(positive) > 20 * min(positive):
        return svg.scale(positive, foot, head, log=True)
    return svg.scale(losses, foot, head)


def _steps(curve: Sequence[Point], across: Scale, up: Scale) -> list[tuple[float, float]]:
    """Between two points the loss is the cheaper one's."""
    found: list[tuple[float, float]] = []
    for point in curve:
        x, y = across(point.cost), up(point.loss)
        if found:
            found.append((x, found[-1][1]))
        found.append((x, y))
    return found


def _limit(x: float) -> list[str]:
    foot = FRAME.y + FRAME.height
    return [
        svg.line(x, FRAME.y, x, foot, "limit"),
        svg.text(x - 5, FRAME.y + 10, "budget", "end limit-name"),
    ]


def _marks(
    marks: Sequence[tuple[str, Point, str]],
    axes: tuple[Scale, Scale],
    words: Callable[[Any], str],
    line: list[Box],
) -> list[str]:
    """The uniform widths, then the choice on top, each with its name where there is room."""
    spots = [(axes[0](p.cost), axes[1](p.loss)) for _, p, _ in marks]
    taken = ([Box(x - 7, y - 7, 14, 14) for x, y in spots], line)
    parts: list[str] = []
    for (name, point, kind), (x, y) in reversed(list(zip(marks, spots, strict=True))):
        tip = f"{name}: {words(point.cost)}, loss {point.loss:.3g}"
        shape = svg.dot(x, y, 6.5, kind, tip)
        if kind == "mark-uniform":
            shape = svg.rect(Box(x - 5, y - 5, 10, 10), kind, tip)
        parts.append(shape)
        parts.append(svg.label((x, y), name, f"name {kind}-name", FRAME, taken))
    return parts
