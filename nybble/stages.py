"""The stages of correction that a recipe may list, each with its options."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nybble.errors import NybbleError, near


@dataclass(frozen=True)
class Equalize:
    """Cross-layer equalisation: moves range between neighbouring layers (arXiv 1906.04721).

    Comes first: what other stages learned would be lost.

    Attributes:
        by: what is made equal to the range of the weights that read a channel: ``weights`` that
            of the weights it comes from, ``activations`` that of its values.
        sweeps: over the network.
    """

    by: str = "activations"
    sweeps: int = 10

    def __post_init__(self) -> None:
        """Refuses an unknown way."""
        _one_of(self, "by", ("weights", "activations"))
        _at_least(self, "sweeps", 1)


@dataclass(frozen=True)
class Scales:
    """Scales of least error in place of those of the largest value.

    Attributes:
        by: ``mse`` of the weights themselves, ``output`` of the layer's outputs, ``prediction``
            for PD-Quant's difference of the network's outputs (arXiv 2212.07048), which also
            moves the activations' scales.
        candidates: scales tried for each channel or tensor, from a fifth of the largest value up.
    """

    by: str = "mse"
    candidates: int = 20

    def __post_init__(self) -> None:
        """Refuses an unknown criterion."""
        _one_of(self, "by", ("mse", "output", "prediction"))
        _at_least(self, "candidates", 1)


@dataclass(frozen=True)
class Gptq:
    """Column by column, the error of each spread over the later ones (arXiv 2210.17323).

    Attributes:
        damping: share of the Hessian's mean diagonal that is added to it.
        order: ``act`` takes columns by falling diagonal, ``natural`` as they stand.
        block: columns updated together.
    """

    damping: float = 0.01
    order: str = "act"
    block: int = 128

    def __post_init__(self) -> None:
        """Refuses an unknown order, and what has no inverse."""
        _one_of(self, "order", ("act", "natural"))
        _at_least(self, "damping", 1e-6)
        _at_least(self, "block", 1)


@dataclass(frozen=True)
class AdaRound:
    """Learns which weights round up (arXiv 2004.10568).

    Attributes:
        iterations: of each layer.
        batch: rows of the layer's product in an iteration.
        rate: learning rate.
        regularizer: weight of the term that drives each choice to one side.
    """

    iterations: int = 300
    batch: int = 256
    rate: float = 0.01
    regularizer: float = 0.01

    def __post_init__(self) -> None:
        """Refuses what cannot learn."""
        _can_learn(self)
        _at_least(self, "regularizer", 0.0)


@dataclass(frozen=True)
class AdaQuant:
    """Learns weights, bias and both scales of each layer (arXiv 2006.10518).

    Attributes:
        iterations: of each layer.
        batch: rows of the layer's product in an iteration.
        rate: how far a weight moves in an iteration, in steps of its scale; falls to 0.
        sequential: inputs come from the quantized layers before; otherwise from the float ones.
    """

    iterations: int = 300
    batch: int = 256
    rate: float = 0.01
    sequential: bool = True

    def __post_init__(self) -> None:
        """Refuses what cannot learn."""
        _can_learn(self)


@dataclass(frozen=True)
class FlexRound:
    """Learns what each weight is divided by before rounding (arXiv 2306.00317).

    Attributes:
        iterations: of each layer.
        batch: rows of the layer's product in an iteration.
        rate: learning rate of the divisors' logarithms; falls to 0.
    """

    iterations: int = 300
    batch: int = 256
    rate: float = 0.01

    def __post_init__(self) -> None:
        """Refuses what cannot learn."""
        _can_learn(self)


@dataclass(frozen=True)
class LowRank:
    """Adds a thin 8-bit product that mends a layer's weights (LoRC, arXiv 2303.08302).

    For linear layers, and for convolutions without groups.

    Attributes:
        rank: of the product.
    """

    rank: int = 8

    def __post_init__(self) -> None:
        """Refuses a product of nothing."""
        _at_least(self, "rank", 1)


@dataclass(frozen=True)
class BiasCorrection:
    """Takes each channel's mean error, behind the activation, out of its bias (arXiv 1906.04721).

    Measured behind weights of 2 bits that were rounded with care; alone it is no remedy for them,
    and ``statistics`` mends more (docs/corrections.md).
    """


@dataclass(frozen=True)
class Statistics:
    """Re-estimates mean and deviation of every channel, as batch norm would (arXiv 2006.10518).

    Attributes:
        deviation: correct the deviation too, by the channel's scale.
    """

    deviation: bool = True


Stage = (
    Equalize | Scales | Gptq | AdaRound | AdaQuant | FlexRound | LowRank | BiasCorrection
    | Statistics
)  # fmt: skip
STAGES: dict[str, type[Any]] = {
    "equalize": Equalize,
    "scales": Scales,
    "gptq": Gptq,
    "adaround": AdaRound,
    "adaquant": AdaQuant,
    "flexround": FlexRound,
    "low_rank": LowRank,
    "bias_correction": BiasCorrection,
    "statistics": Statistics,
}
NAMES = {kind: name for name, kind in STAGES.items()}


def stages_of(given: Iterable[Any]) -> tuple[Any, ...]:
    """Stages from their names, from {name: options}, or as they are.

    Raises:
        NybbleError: an unknown stage or option, or equalisation behind another stage.
    """
    stages = tuple(stage for one in given for stage in _read(one))
    for before, stage in itertools.pairwise(stages):
        if isinstance(stage, Equalize) and not isinstance(before, Equalize):
            raise NybbleError(
                f"Recipe: correct, 'equalize' comes after '{NAMES[type(before)]}', whose work it "
                "would undo: it changes the float weights. Put it first."
            )
    return stages


def _read(given: Any) -> Iterable[Any]:
    if type(given) in NAMES:
        yield given
        return
    for name, options in given.items() if isinstance(given, Mapping) else [(given, {})]:
        if name not in STAGES:
            raise NybbleError(
                f"Recipe: correct={name!r} is not one of: {', '.join(STAGES)}"
                f"{near(str(name), STAGES)}."
            )
        known = {field.name for field in dataclasses.fields(STAGES[name])}
        if not set(options) <= known:
            raise NybbleError(
                f"Recipe: correct, '{name}' has no option {sorted(set(options) - known)}; it has: "
                f"{', '.join(sorted(known)) or 'none'}."
            )
        yield STAGES[name](**options)


def _one_of(stage: Any, option: str, allowed: tuple[str, ...]) -> None:
    given = getattr(stage, option)
    if given not in allowed:
        raise NybbleError(
            f"Recipe: correct, '{NAMES[type(stage)]}': {option}={given!r} is not one of: "
            f"{', '.join(allowed)}."
        )


def _can_learn(stage: Any) -> None:
    _at_least(stage, "iterations", 1)
    _at_least(stage, "batch", 1)
    _at_least(stage, "rate", 1e-9)


def _at_least(stage: Any, option: str, least: float) -> None:
    """Refuses smaller numbers, and fractions where ``least`` is whole."""
    given, whole = getattr(stage, option), isinstance(least, int)
    is_number = isinstance(given, int if whole else int | float) and not isinstance(given, bool)
    if not is_number or given < least:
        raise NybbleError(
            f"Recipe: correct, '{NAMES[type(stage)]}': {option}={given!r} is not a number "
            f"from {least} up{', and whole' if whole else ''}."
        )


def as_data(stages: Iterable[Any]) -> list[Any]:
    """Stages as JSON has them: a name, or {name: options that differ from the defaults}."""
    found: list[Any] = []
    for stage in stages:
        options = {k: v for k, v in vars(stage).items() if v != getattr(type(stage)(), k)}
        name = NAMES[type(stage)]
        found.append({name: options} if options else name)
    return found
