"""The measures of sensitivity and their options, in one frozen record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nybble.budget import MEASURES
from nybble.errors import NybbleError
from nybble.sensitivity_table import Effort

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What a loss may look at beside the outputs.

    Attributes:
        inputs: by name, the batch in front.
        wanted: the float network's outputs, in order.
        first: index of the batch's first sample in the calibration data, to find labels by.
    """

    inputs: dict[str, Tensor]
    wanted: list[Tensor]
    first: int


Loss = Callable[[list[Any], Batch], Any]
"""A scalar tensor, the mean over the batch, from the outputs (float32, in order) and the batch."""


@dataclass(frozen=True)
class Measure:
    """How sensitivity is measured.

    Attributes:
        name: ``hessian``, ``perturbation``, ``pairwise``, ``hessian_proxy`` or ``influence``.
        layers: shell-style patterns of the layers to measure.
        loss: of the network's outputs, for the first three; None for their distance from the float
            network's own: KL of the softmax where an output is (N, classes), else the squared
            error relative to the variance.
        loss_name: names a ``loss`` of one's own in the cache; without it nothing is cached then.
        cache: the folder of finished work; None for ``sensitivity`` in Nybble's cache folder.
        remember: whether finished work is kept and looked for at all.
        batch: samples evaluated together, where the model leaves that open.
        tolerance: ``hessian`` stops when another random vector changes the mean of a layer's
            traces by less than this share of it.
        fewest: vectors of ``hessian`` for each layer, before it may stop.
        most: vectors of ``hessian`` for each layer.
        announce: called with the effort beforehand, and again when its time can be told.
    """

    name: str = "perturbation"
    layers: tuple[str, ...] = ("*",)
    loss: Loss | None = None
    loss_name: str = ""
    cache: Path | None = None
    remember: bool = True
    batch: int = 16
    tolerance: float = 1e-3
    fewest: int = 16
    most: int = 128
    announce: Callable[[Effort], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        if self.name not in MEASURES:
            raise NybbleError(f"measure={self.name!r} is not one of: {', '.join(MEASURES)}.")
        patterns: Any = self.layers
        if isinstance(patterns, str):  # it would be letters
            raise NybbleError(f"Measure: layers={patterns!r}: give a tuple of patterns.")
        object.__setattr__(self, "layers", tuple(patterns))
        if self.batch < 1 or not 2 <= self.fewest <= self.most or not self.tolerance >= 0:
            raise NybbleError(
                "Measure: batch is at least 1, fewest at least 2 and at most most, tolerance at "
                f"least 0; got {self.batch}, {self.fewest}, {self.most}, {self.tolerance}."
            )
        if self.loss is not None and self.name in ("hessian_proxy", "influence"):
            raise NybbleError(
                f"measure='{self.name}' looks at layers, not at the outputs: it takes no loss. Use "
                "perturbation, pairwise or hessian."
            )
