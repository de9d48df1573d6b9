"""The plain data behind the page about bits: what was measured, chosen, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from nybble.allocation.problem import Table
from nybble.allocation.result import Allocation
from nybble.budget import bits_of


class Fidelity(NamedTuple):
    """How alike a layer's output is to the float network's.

    Attributes:
        snr: signal to noise in dB, 10·log10(Σ y² / Σ (y - ŷ)²); infinite where nothing differs.
        cosine: of the angle between the two, over all samples at once.
    """

    snr: float
    cosine: float


@dataclass(frozen=True)
class Point:
    """A choice of widths on the plane of a cost and the loss."""

    cost: float
    loss: float


@dataclass(frozen=True)
class Outcome:
    """One deployed form of the network.

    Attributes:
        name: ``float``, ``8 bits``, …, ``chosen``.
        kind: ``float``, ``uniform`` or ``chosen``.
        weights: bytes of the quantized layers' weights in their own widths.
        size: bytes of the library.
        seconds: median latency of one sample.
        accuracy: share of samples whose largest output is the label, where there are labels.
        error: Σ (y - ŷ)² / Σ y² of the outputs, against float.
    """

    name: str
    kind: str
    weights: float | None = None
    size: int | None = None
    seconds: float | None = None
    accuracy: float | None = None
    error: float | None = None

    @property
    def snr(self) -> float:
        """The error as signal to noise, dB; infinite where there is none."""
        return -10 * math.log10(self.error) if self.error else math.inf


@dataclass(frozen=True)
class Study:
    """Everything on the page.

    Attributes:
        title: the network's name.
        allocation: the widths chosen, their predicted loss, what they cost, the limits.
        losses: {layer: {width: loss}} of every quantized layer in order; a layer whose width is
            not open has that one only.
        costs: {"size" | "bops" | "latency": {layer: {width: bytes, bit operations, seconds}}}.
        fronts: cost -> the Pareto front, by rising cost.
        fidelity: of every layer, in order; empty where it was not measured.
        outcomes: float first, then the uniform widths, then the choice.
        measure: of the sensitivity.
        samples: how many of the calibration data the fidelity is of.
        evaluated: how many samples the outcomes are of; 0 where there are none.
        facts: (what, value) pairs about network, recipe, target.
        decided: where the decisions of every kernel of the choice are from
            (`nybble.report.tuned.cells`); empty where none were recorded.
    """

    title: str
    allocation: Allocation
    losses: Table
    costs: Mapping[str, Table]
    fronts: Mapping[str, tuple[Point, ...]]
    fidelity: Mapping[str, Fidelity] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()
    measure: str = ""
    samples: int = 0
    evaluated: int = 0
    facts: tuple[tuple[str, str], ...] = ()
    decided: tuple[tuple[str, ...], ...] = ()

    @property
    def widths(self) -> list[int | str]:
        """The widths to choose from: most bits first, ternary below 2 bits."""
        found = {width for row in self.losses.values() for width in row}
        return sorted(found, key=bits, reverse=True)

    @property
    def open_layers(self) -> list[str]:
        """Layers with more than one width to choose from."""
        return [layer for layer, row in self.losses.items() if len(row) > 1]

    def chosen(self, cost: str) -> Point:
        """What was chosen, on the plane of a cost and the loss; without pairwise terms."""
        return self._point(cost, self.allocation.widths)

    def uniform(self, cost: str) -> dict[int | str, Point]:
        """One width wherever it can be chosen, for each that all open layers have."""
        shared = [w for w in self.widths if all(w in self.losses[n] for n in self.open_layers)]
        rows = self.losses.items()
        picked = {w: {n: w if w in row else next(iter(row)) for n, row in rows} for w in shared}
        return {w: self._point(cost, widths) for w, widths in picked.items()}

    def to_html(self) -> str:
        """One self-contained page; the same study gives the same text."""
        from nybble.report import bits as page  # noqa: PLC0415  (which draws this record)

        return page.render(self)

    def _point(self, cost: str, widths: Mapping[str, int | str]) -> Point:
        return Point(
            sum(self.costs[cost][layer][w] for layer, w in widths.items()),
            sum(self.losses[layer][w] for layer, w in widths.items()),
        )


def bits(choice: int | str) -> float:
    """A choice as a number, to put choices in order: ternary weights carry log2(3) bits.

    Of choices that name activations too, these decide between equal weights.
    """
    width, activations = bits_of(choice)
    return (math.log2(3) if isinstance(width, str) else float(width)) + (activations or 0) / 100


def in_words(width: int | str) -> str:
    """``4 bits``, ``ternary``."""
    if isinstance(width, str):
        return width.upper() if bits_of(width)[1] else width
    return f"{width} bit" if width == 1 else f"{width} bits"
