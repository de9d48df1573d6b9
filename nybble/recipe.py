"""Everything a user may ask of quantization, in one frozen record."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from nybble.budget import (
    EXAMPLE,
    MEASURES,
    MIXED,
    SOLVERS,
    bits_of,
    check_choices,
    is_budget,
)
from nybble.errors import NybbleError, near
from nybble.stages import as_data, stages_of

Calibrator = Literal["minmax", "percentile", "mse", "entropy"]
CALIBRATORS: tuple[str, ...] = ("minmax", "percentile", "mse", "entropy")
_RANGES_BY_BITS = ("mse", "entropy")
ROUNDINGS: tuple[str, ...] = ("half_up", "half_even", "tflite")
Book = Literal["nf4", "fp4"]
Weights = int | Literal["ternary", "mixed"] | Book
Activations = int | Literal["float", "dynamic"]
Choice = int | str  # bits of weights, "ternary", or both widths: "w4a8"
TERNARY: Literal["ternary"] = "ternary"
FLOAT: Literal["float"] = "float"
DYNAMIC: Literal["dynamic"] = "dynamic"
BOOKS: tuple[Book, ...] = ("nf4", "fp4")
"""Code books of 16 levels (`nybble.ir.code_books`)."""


@dataclass(frozen=True)
class Widths:
    """What the recipe says of some layers; None leaves it as it is.

    Attributes:
        weights: bits of weights, 1 to 8, ``"ternary"``, or a code book.
        activations: bits of input activations, 1 to 8.
    """

    weights: Weights | None = None
    activations: int | None = None

    def __post_init__(self) -> None:
        """Refuses what is no width."""
        if not (self.weights is None or _is_weights(self.weights)):
            raise NybbleError(f"Recipe: weights={self.weights!r} is not one of: {_WEIGHTS}.")
        if not (self.activations is None or _is_width(self.activations)):
            raise NybbleError(f"Recipe: activations={self.activations!r} is not one of: 1 to 8.")


Layers = Mapping[str, Mapping[str, Any]] | tuple[tuple[str, Widths], ...]
_WEIGHTS = "1 to 8, 'ternary', 'nf4', 'fp4'"
_NAMED: dict[str, Weights] = {
    "t": TERNARY, TERNARY: TERNARY, MIXED: "mixed", "nf4": "nf4", "fp4": "fp4",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How to quantize a network.

    Attributes:
        weights: bits of weights, 1 to 8, or ``"ternary"`` (the values -1, 0 and 1 in 2 bits);
            symmetric per output channel. How each width is rounded: docs/quantization.md.
            ``"mixed"`` chooses one of ``choices`` for every layer. ``"nf4"`` and ``"fp4"``, with
            ``activations="float"``, are 4 bits that number 16 levels (`nybble.ir.code_books`).
        activations: bits of activations, 1 to 8: unsigned after ReLU, else symmetric. ``"float"``
            quantizes the weights of linear layers only; ``"dynamic"`` does too, and their inputs
            to 8 bits at run time, each row by its own scale. Neither needs calibration.
        first_last: bits of the weights and the input activations of the first and of the last
            convolution or linear layer; None treats them like the others. Without effect where
            activations are float.
        layers: {shell-style pattern of layer names: {"weights": …, "activations": …}}. The last
            pattern that matches a layer decides, also over ``first_last``. Kept as pairs of a
            pattern and its `Widths`.
        group: weights that share a scale along the inputs of a layer, with
            ``activations="float"``; None is one scale per output channel. With integer activations
            it gives linear layers of 4 bits a second level (`nybble.ir.two_levels`): an integer
            step and base for each group, within 8-bit arithmetic.
        symmetric: no zero points for weights, with ``activations="float"``.
        calibrator: how an activation's range is chosen from the calibration data.
        percentile: share of values inside the range, in percent, for ``calibrator="percentile"``.
        rounding: the convention of integer requantization (`nybble.ir.numerics.scaled`).
        keep_float: shell-style patterns of layer names that stay float.
        correct: stages of correction in order (`nybble.stages`): names, or {name: options}. Kept
            as the stages themselves. They need torch.
        seed: of everything random: the same recipe and data give the same bits.
        choices: what a layer may get, with ``weights="mixed"``: widths of weights such as
            (2, 4, 8), or of weights and input activations together such as ("w4a4", "w8a8").
        budget: what the whole network may cost, with ``weights="mixed"``: ``size``, ``bops`` and
            ``latency`` as shares from 0 (all layers at their cheapest) to 1 (at their dearest), or
            as "4MB", "20G", "8ms". Kept as pairs.
        sensitivity: how the loss of a width is measured (`nybble.sensitivity`).
        solver: of the allocation (`nybble.allocate`).
    """

    weights: Weights = 8
    activations: Activations = 8
    first_last: int | None = 8
    layers: Layers = ()
    group: int | None = None
    symmetric: bool = True
    calibrator: Calibrator = "minmax"
    percentile: float = 99.99
    rounding: Literal["half_up", "half_even", "tflite"] = "half_up"
    keep_float: tuple[str, ...] = ()
    correct: tuple[Any, ...] = ()
    seed: int = 0
    choices: tuple[Choice, ...] = ()
    budget: Mapping[str, float | str] | tuple[tuple[str, float | str], ...] = ()
    sensitivity: str = "perturbation"
    solver: str = "ilp"

    def __post_init__(self) -> None:
        """Refuses values that no later stage could honour."""
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, (is_fine, allowed) in _RULES.items():
            if not is_fine(given[name]):
                raise NybbleError(f"Recipe: {name}={given[name]!r} is not one of: {allowed}.")
        object.__setattr__(self, "keep_float", tuple(self.keep_float))
        object.__setattr__(self, "layers", tuple(_pairs(self.layers)))
        object.__setattr__(self, "correct", stages_of(self.correct))
        object.__setattr__(self, "choices", tuple(self.choices))
        object.__setattr__(self, "budget", tuple(dict(self.budget).items()))
        _check_mixture(self)
        if not self.is_calibrated:
            _check_weight_only(self)
        if self.activations != FLOAT and any(weights in BOOKS for weights in _asked(self)):
            raise NybbleError(
                "Recipe: the code books nf4 and fp4 are for weight-only quantization. Add "
                "activations='float', or give weights 1 to 8 bits."
            )
        if self.is_calibrated:
            _check_two_levels(self)
        elif self.activations == DYNAMIC and (self.group is not None or not self.symmetric):
            raise NybbleError(
                "Recipe: group and symmetric=False do not go with activations='dynamic'. Take "
                "activations='float', or leave them out."
            )

    @property
    def is_calibrated(self) -> bool:
        """Whether activations have ranges, and the network needs data to find them."""
        return self.activations not in (FLOAT, DYNAMIC)

    @property
    def overrides(self) -> tuple[tuple[str, Widths], ...]:
        """``layers`` as it is kept."""
        return tuple(_pairs(self.layers))

    @property
    def limits(self) -> dict[str, float | str]:
        """``budget`` as a mapping."""
        return dict(self.budget)

    def as_dict(self) -> dict[str, Any]:
        """The recipe in plain Python, as JSON has it."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values["layers"] = {
            pattern: {k: v for k, v in vars(widths).items() if v is not None}
            for pattern, widths in self.overrides
        }
        values |= {"correct": as_data(self.correct), "budget": self.limits}
        return values

    def to_json(self) -> str:
        """The recipe as one JSON object."""
        return json.dumps(self.as_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Reads what `to_json` wrote.

        Raises:
            NybbleError: the text is no JSON object, or holds an unknown field or a bad value.
        """
        try:
            values: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise NybbleError(f"Recipe: not JSON ({error}).") from error
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict):
            raise NybbleError(f"Recipe: expected an object with fields among {sorted(known)}.")
        for name in values.keys() - known:
            raise NybbleError(
                f"Recipe: there is no field '{name}'{near(name, known)}. "
                f"The fields are: {', '.join(sorted(known))}."
            )
        return cls(**values)


def as_recipe(recipe: Any) -> Recipe:
    """The recipe that a caller gave; the default for None.

    Raises:
        NybbleError: it is something else, such as a dict.
    """
    if recipe is None:
        return Recipe()
    if not isinstance(recipe, Recipe):
        raise NybbleError(
            f"The recipe is a {type(recipe).__name__}; give a nybble.Recipe, such as "
            "nybble.Recipe(weights=4, activations=8)."
        )
    return recipe


def with_widths(recipe: Recipe, widths: Mapping[str, Any]) -> Recipe:
    """A recipe in which these layers have these widths, whatever it said before.

    Args:
        recipe: what it says of other layers remains.
        widths: {layer: a width of weights, or both widths such as ``"w4a8"``}.
    """
    named = tuple((glob.escape(layer), Widths(*bits_of(w))) for layer, w in widths.items())
    return replace(recipe, layers=(*recipe.overrides, *named))


def _check_mixture(recipe: Recipe) -> None:
    """Choices and a budget belong to mixed widths, and those to them."""
    if recipe.weights != MIXED:
        if recipe.choices or recipe.budget:
            raise NybbleError("Recipe: choices and budget belong to weights='mixed'. Add it.")
        return
    if not recipe.choices:
        raise NybbleError("Recipe: weights='mixed' needs choices, such as (2, 4, 8).")
    if not recipe.is_calibrated:
        raise NybbleError("Recipe: weights='mixed' needs activations of 1 to 8 bits.")
    names_activations = any(bits_of(choice)[1] is not None for choice in recipe.choices)
    if names_activations and recipe.calibrator in _RANGES_BY_BITS:
        raise NybbleError(
            f"Recipe: calibrator='{recipe.calibrator}' finds other ranges for every width, so it "
            "does not go with choices that name activations. Use 'minmax' or 'percentile'."
        )


def _asked(recipe: Recipe) -> list[Any]:
    """What weights shall be, of any layer."""
    return [recipe.weights, *(widths.weights for _, widths in recipe.overrides)]


def _check_weight_only(recipe: Recipe) -> None:
    """What the weight-only form (`nybble.ir.weight_only`) cannot express."""
    asked = _asked(recipe)
    symmetric_only = any(weights in (TERNARY, *BOOKS) for weights in asked)
    if 1 in asked or (symmetric_only and not recipe.symmetric):
        raise NybbleError(
            f"Recipe: with activations='{recipe.activations}', weights have 2 to 8 bits, or are "
            "ternary or of a code book and symmetric."
        )
    if any(widths.activations is not None for _, widths in recipe.overrides):
        raise NybbleError(
            f"Recipe: activations='{recipe.activations}' holds for all layers; override weights "
            "only."
        )


def _check_two_levels(recipe: Recipe) -> None:
    """What a group means beside integer activations: a second level of 4-bit weights."""
    if not recipe.symmetric:
        raise NybbleError(
            "Recipe: symmetric=False belongs to weight-only quantization. Add activations='float', "
            "or leave it out."
        )
    if recipe.group is None:
        return
    if 4 not in _asked(recipe):
        raise NybbleError(
            "Recipe: beside integer activations, group is for weights of 4 bits. Give some, add "
            "activations='float', or leave group out."
        )
    if recipe.correct or recipe.weights == MIXED:
        raise NybbleError("Recipe: group goes neither with corrections nor with weights='mixed'.")


def parse_layer(text: str) -> tuple[str, Widths]:
    """Reads ``PATTERN=w4a8``; ``w`` or ``a`` alone changes only that, ``wt`` is ternary.

    Raises:
        NybbleError: the text has another form.
    """
    pattern, equals, widths = text.rpartition("=")
    found = re.fullmatch(r"(?:w(\d+|t|ternary|nf4|fp4))?(?:a(\d+))?", widths)
    if not equals or not pattern or not widths or found is None:
        raise NybbleError(
            f"'{text}' is no layer override. Write PATTERN=w4a8, with w1 to w8, wt (ternary), "
            "wnf4 or wfp4 for weights and a1 to a8 for activations; either may be left out: "
            "'layer1*=w4'."
        )
    weights, activations = found.groups()
    given = {
        "weights": None if weights is None else parse_weights(weights),
        "activations": None if activations is None else int(activations),
    }
    return next(iter(_pairs({pattern: given})))


def parse_weights(text: str) -> Weights:
    """Reads bits, ``ternary``, or a code book.

    Raises:
        NybbleError: none of them.
    """
    if text in _NAMED:
        return _NAMED[text]
    if not text.isdecimal():
        raise NybbleError(f"Recipe: weights={text!r} is not one of: {_WEIGHTS}.")
    return int(text)


def parse_choice(text: str) -> Choice:
    """Reads bits, ``ternary``, or both widths as ``w4a8``.

    Raises:
        NybbleError: none of them.
    """
    return parse_weights(text) if bits_of(text)[1] is None else text


def _pairs(layers: Any) -> Iterable[tuple[str, Widths]]:
    """Overrides as pairs, from pairs or from {pattern: {"weights": …}}."""
    for pattern, widths in layers.items() if isinstance(layers, Mapping) else layers:
        try:
            yield pattern, widths if isinstance(widths, Widths) else Widths(**widths)
        except NybbleError as error:
            reason = str(error).removeprefix("Recipe: ")
            raise NybbleError(f"Recipe: layers, '{pattern}': {reason}") from error


def _is_width(bits: Any) -> bool:
    return type(bits) is int and 1 <= bits <= 8


def _is_weights(width: Any) -> bool:
    return _is_width(width) or width in (TERNARY, *BOOKS)


def _are_overrides(layers: Any) -> bool:
    if isinstance(layers, Mapping):
        return all(isinstance(p, str) and _is_override(w) for p, w in layers.items())
    pairs = isinstance(layers, list | tuple) and all(
        isinstance(p, tuple) and len(p) == 2 for p in layers
    )
    return pairs and all(isinstance(p, str) and isinstance(w, Widths) for p, w in layers)


def _is_override(widths: Any) -> bool:
    known = {"weights", "activations"}
    return isinstance(widths, Widths) or (isinstance(widths, Mapping) and widths.keys() <= known)


def _are_patterns(patterns: Any) -> bool:  # a lone string would be letters
    return isinstance(patterns, list | tuple) and all(isinstance(p, str) for p in patterns)


_RULES: dict[str, tuple[Any, str]] = {
    "weights": (lambda w: _is_weights(w) or w == MIXED, f"{_WEIGHTS}, 'mixed'"),
    "activations": (lambda a: _is_width(a) or a in (FLOAT, DYNAMIC), "1 to 8, 'float', 'dynamic'"),
    "first_last": (lambda b: b is None or _is_width(b), "1 to 8, None"),
    "layers": (_are_overrides, "patterns with widths such as {'layer1*': {'weights': 4}}"),
    "group": (
        lambda g: g is None or (type(g) is int and 32 <= g <= 256 and g % 32 == 0),
        "a multiple of 32 up to 256, None",
    ),
    "symmetric": (lambda s: isinstance(s, bool), "True, False"),
    "calibrator": (lambda c: c in CALIBRATORS, ", ".join(CALIBRATORS)),
    "percentile": (
        lambda p: isinstance(p, int | float) and 50 < p <= 100,
        "a number in (50, 100]",
    ),
    "rounding": (lambda r: r in ROUNDINGS, ", ".join(ROUNDINGS)),
    "keep_float": (_are_patterns, "a tuple of patterns such as ('head*', '*/gate')"),
    "correct": (
        lambda stages: isinstance(stages, list | tuple),
        "a tuple of stages such as ('equalize', {'adaround': {'iterations': 2000}})",
    ),
    "choices": (
        lambda c: not c or check_choices(c),
        "at least two different widths such as (2, 4, 8), or pairs such as ('w4a4', 'w8a8')",
    ),
    "budget": (is_budget, f"limits such as {EXAMPLE}"),
    "sensitivity": (lambda m: m in MEASURES, ", ".join(MEASURES)),
    "solver": (lambda s: s in SOLVERS, ", ".join(SOLVERS)),
    "seed": (lambda seed: type(seed) is int and seed >= 0, "an integer from 0 up"),
}
