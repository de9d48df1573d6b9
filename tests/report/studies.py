"""Studies of networks that do not exist: what the pages about bits are tested on."""

from __future__ import annotations

import numpy as np

from nybble.allocation.allocate import allocate
from nybble.allocation.pareto import pareto
from nybble.report.study import Fidelity, Outcome, Point, Study, bits, in_words


def study_of(count: int, labels: bool = True, choices: tuple[int | str, ...] = (2, 4, 8)) -> Study:
    """``count`` layers, the first and the last with one width; two thirds of a real size budget."""
    rng = np.random.default_rng(count)
    names = [f"/layer{1 + 4 * i // count}/conv<{i}>/Conv" for i in range(count)]
    rows = [choices if 0 < i < count - 1 else (8,) for i in range(count)]
    sizes = dict(zip(names, 10 ** rng.uniform(2.5, 5.5, count), strict=True))
    losses = {
        n: {w: float(rng.uniform(0.1, 1) * 4.0 ** -bits(w)) if len(ws) > 1 else 0.0 for w in ws}
        for n, ws in zip(names, rows, strict=True)
    }
    costs = {
        "size": {n: {w: sizes[n] * bits(w) / 8 for w in losses[n]} for n in names},
        "bops": {n: {w: sizes[n] * bits(w) * 800 for w in losses[n]} for n in names},
        "latency": {n: {w: sizes[n] * (2 + bits(w)) * 1e-10 for w in losses[n]} for n in names},
    }
    least, most = (sum(f(c.values()) for c in costs["size"].values()) for f in (min, max))
    chosen = allocate(losses, costs, {"size": least + 0.4 * (most - least)})
    fronts = {
        axis: tuple(
            Point(a.costs[axis], a.objective) for a in pareto(losses, costs, axis, points=60)
        )
        for axis in costs
    }
    snr = 38 - 14 * np.arange(count) / count + rng.normal(0, 3, count)
    alike = {n: Fidelity(float(s), float(1 / np.sqrt(1 + 10 ** (-s / 10))))
             for n, s in zip(names, snr, strict=True)}  # fmt: skip
    return Study(
        f"{count} layers <&>", chosen, losses, costs, fronts, alike,
        _outcomes(sum(sizes.values()), chosen.costs["size"], choices, labels),
        "perturbation", 16, 2000, (("recipe", "weights=mixed & more"),),
    )  # fmt: skip


def _outcomes(
    size: float, chosen: float, choices: tuple[int | str, ...], labels: bool
) -> tuple[Outcome, ...]:
    def row(name: str, kind: str, weights: float, bits_: float) -> Outcome:
        top1 = 0.93 - 0.3 * 2.0**-bits_ if labels else None
        error = None if kind == "float" else 10 ** (-bits_ / 2)
        return Outcome(name, kind, weights, int(weights) + 60_000, 1e-3 + bits_ * 1e-4, top1, error)

    every = sorted(choices, key=bits, reverse=True)
    return (
        row("float", "float", 4 * size, 32),
        *(row(in_words(w), "uniform", size * bits(w) / 8, bits(w)) for w in every),
        row("chosen", "chosen", chosen, 5),
    )
