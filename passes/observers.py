"""Streaming observers: what they keep does not grow with the number of samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import numerics
from nybble.recipe import Recipe

Array = NDArray[Any]
BINS = 2048
THRESHOLDS = 128  # candidates that `mse` and `entropy` try


@dataclass
class MinMax:
    """Smallest and largest value seen, zero included."""

    lo: float = 0.0
    hi: float = 0.0

    def update(self, values: Array) -> None:
        """Takes in one tensor."""
        self.lo = min(self.lo, float(values.min()))
        self.hi = max(self.hi, float(values.max()))

    def range(self) -> tuple[float, float]:
        """The range to quantize."""
        return self.lo, self.hi


@dataclass
class Histogram(MinMax, ABC):
    """Counts of |x| in ``BINS`` equal bins over [0, reach]; ``reach`` is a power of two.

    A larger value doubles the reach as often as needed: pairs of bins merge, nothing is lost.
    ``bits`` is the width of the grid to come.
    """

    bits: int = 8
    reach: float = 0.0
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def update(self, values: Array) -> None:
        """Takes in one tensor."""
        super().update(values)
        magnitude = np.abs(values, dtype=np.float32).reshape(-1)
        self._grow(float(magnitude.max()))
        if self.reach:
            self.counts += np.histogram(magnitude, BINS, (0.0, self.reach))[0]
        else:
            self.counts[0] += magnitude.size  # only zeros so far

    def _grow(self, largest: float) -> None:
        if largest <= self.reach:
            return
        needed = float(np.ldexp(1.0, int(np.frexp(largest)[1])))
        while self.reach and self.reach < needed:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2)])
            self.reach *= 2
        self.reach = needed

    @property
    def levels(self) -> int:
        """Steps above zero of the grid to come: signed where a negative value was seen."""
        return numerics.limits(f"{'' if self.lo < 0 else 'u'}int{self.bits}")[1]

    @abstractmethod
    def threshold(self) -> float:
        """The magnitude above which values are clipped."""

    def range(self) -> tuple[float, float]:
        """The observed range, clipped to the threshold."""
        limit = self.threshold() if self.reach else 0.0
        return max(self.lo, -limit), min(self.hi, limit)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Upper edge of every bin."""
        return np.arange(1, BINS + 1, dtype=np.float64) * np.float64(self.reach / BINS)

    @property
    def candidates(self) -> NDArray[np.int64]:
        """Numbers of bins to keep that are worth trying: up to the largest value seen."""
        used = int(np.flatnonzero(self.counts)[-1]) + 1
        return np.unique(np.linspace(max(1, used // 8), used, THRESHOLDS).astype(np.int64))


@dataclass
class Percentile(Histogram):
    """Keeps a share of all values inside the range."""

    percent: float = 99.99

    def threshold(self) -> float:
        """Upper edge of the bin where the share is reached."""
        share = np.cumsum(self.counts) / self.counts.sum()
        return float(self.edges[np.searchsorted(share, self.percent / 100).clip(max=BINS - 1)])


class MeanSquaredError(Histogram):
    """Minimises the squared error of quantization: rounding inside, clipping outside."""

    def threshold(self) -> float:
        """The candidate with the least error."""
        centres = self.edges - 0.5 * self.reach / BINS
        levels = self.levels

        def error(kept: int) -> float:
            step = self.edges[kept - 1] / levels
            rounded = np.minimum(np.rint(centres / step), levels) * step
            inside = np.where(centres < self.edges[kept - 1], step * step / 12, 0)  # within a bin
            return float(np.sum(self.counts * np.maximum((centres - rounded) ** 2, inside)))

        return float(self.edges[min(self.candidates, key=error) - 1])


class Entropy(Histogram):
    """Minimises the Kullback-Leibler divergence of the quantized from the true distribution."""

    def threshold(self) -> float:
        """The candidate with the least divergence."""
        levels = self.levels + 1
        fine_enough = [k for k in self.candidates if k >= levels]
        if not fine_enough:
            return float(self.edges[self.candidates[-1] - 1])
        best = min(fine_enough, key=lambda kept: _divergence(self.counts, int(kept), levels))
        return float(self.edges[best - 1])


def _divergence(counts: NDArray[np.float64], kept: int, levels: int) -> float:
    """KL(p || q): p clips what lies beyond ``kept`` bins, q merges those bins into ``levels``."""
    inside = counts[:kept]
    true = inside.copy()
    true[-1] += counts[kept:].sum()
    group = np.arange(kept) * levels // kept
    occupied = inside > 0
    mass = np.bincount(group, inside, levels)
    members = np.bincount(group, occupied, levels)
    spread = np.where(occupied, mass[group] / np.maximum(members[group], 1), 0)
    p, q = true / true.sum(), spread / max(spread.sum(), 1)
    both = (p > 0) & (q > 0)
    missed = p[(p > 0) & (q == 0)].sum()  # clipped mass in an empty bin: q must not get it for free
    return float(np.sum(p[both] * np.log(p[both] / q[both])) + missed * np.log(1 / 1e-9))


def observer(recipe: Recipe, bits: int = 8) -> MinMax:
    """The observer that a recipe asks for, for a tensor of a given width."""
    if recipe.calibrator == "minmax":
        return MinMax()
    if recipe.calibrator == "percentile":
        return Percentile(bits=bits, percent=recipe.percentile)
    return {"mse": MeanSquaredError, "entropy": Entropy}[recipe.calibrator](bits=bits)
