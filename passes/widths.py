"""Which width every layer's weights and every tensor get from the recipe."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nybble.budget import MIXED
from nybble.errors import NybbleError, near_pattern
from nybble.ir import graph
from nybble.passes.resize import copies
from nybble.passes.view import View, repeats
from nybble.recipe import Recipe, Weights, Widths

SHARES_GRID = {
    "relax.reshape", "relax.permute_dims", "relax.nn.pad", "relax.nn.max_pool2d",
    "relax.strided_slice",
}  # fmt: skip


@dataclass(frozen=True)
class LayerWidths:
    """The widths of one convolution or linear layer.

    Attributes:
        weights: bits, or ternary.
        activations: bits of its input.
    """

    weights: Weights
    activations: int


def layer_widths(view: View, kinds: Mapping[str, str], recipe: Recipe) -> dict[str, LayerWidths]:
    """The widths of every convolution and linear layer that is quantized.

    Raises:
        NybbleError: a pattern of ``recipe.layers`` matches no such layer, or the recipe quantizes
            weights only.
    """
    if not recipe.is_calibrated:
        raise NybbleError(
            f"Recipe: with activations='{recipe.activations}' nothing is calibrated. Use "
            "nybble.quantize, or the pass weights_only."
        )
    assert isinstance(recipe.activations, int)  # or nothing were calibrated
    linear = [name for name in view.calls if kinds[name] == "linear"]
    check_patterns(linear, recipe)
    ends = {linear[0], linear[-1]} if linear else set[str]()
    found: dict[str, LayerWidths] = {}
    for name in linear:
        asked = Widths(None if recipe.weights == MIXED else recipe.weights, recipe.activations)
        if name in ends and recipe.first_last is not None:
            asked = Widths(recipe.first_last, recipe.first_last)
        weights, activations = overridden(name, asked, recipe)
        if weights is None:
            raise NybbleError(
                f"Recipe: the width of '{name}' is still to be chosen. nybble.quantize chooses it, "
                "given choices and a budget."
            )
        found[name] = LayerWidths(weights, activations)
    return found


def overridden(name: str, asked: Widths, recipe: Recipe) -> tuple[Any, Any]:
    """(weights, activations) of a layer after the overrides that match it, the last one last."""
    weights, activations = asked.weights, asked.activations
    for pattern, override in recipe.overrides:
        if fnmatch.fnmatchcase(name, pattern):
            weights = override.weights or weights
            activations = override.activations or activations
    return weights, activations


def check_patterns(layers: Collection[str], recipe: Recipe) -> None:
    """Refuses overrides that match none of the quantized layers.

    Raises:
        NybbleError: one does; the layers are listed.
    """
    for pattern, _ in recipe.overrides:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in layers):
            raise NybbleError(
                f"Recipe: layers pattern '{pattern}' matches no quantized convolution or linear "
                f"layer{near_pattern(pattern, layers)}. These are: {', '.join(layers) or 'none'}."
            )


def activation_bits(
    view: View, owner: Mapping[str, str], widths: Mapping[str, LayerWidths], recipe: Recipe
) -> dict[str, int]:
    """The width of every grid, by the tensor that owns it.

    A tensor has the width that the layers that read it ask for, the largest of them; max pooling
    and reshapes keep their operand's grid and pass the question on. Where only adds, average
    pools, concats and the like read it, it has the width of their results.
    """
    asked = _Asked(view, widths, recipe)
    bits: dict[str, int] = {}
    for point, owning in owner.items():
        bits[owning] = max(bits.get(owning, 0), asked.of(point))
    return bits


class _Asked:
    """What the readers of a tensor ask for."""

    def __init__(self, view: View, widths: Mapping[str, LayerWidths], recipe: Recipe):
        assert isinstance(recipe.activations, int)
        self.view, self.widths, self.default = view, widths, recipe.activations
        self.known: dict[str, int] = {}
        for name in reversed([*view.inputs, *view.calls]):  # readers come later
            self.known[name] = self._of(name)

    def of(self, name: str) -> int:
        return self.known[name]

    def _of(self, name: str) -> int:
        direct = self._by_layers(name)
        if direct:
            return max(direct)
        readers = self.view.readers[name]
        return max((self.known[reader] for reader in readers), default=self.default)

    def _shares_grid(self, name: str) -> bool:
        call = self.view.calls[name]
        return graph.op_name(call) in SHARES_GRID or copies(call) or repeats(call)

    def _by_layers(self, name: str) -> list[int]:
        """What layers ask for that read the tensor itself, or it through ops of the same grid."""
        found: list[int] = []
        for reader in self.view.readers[name]:
            if reader in self.widths:
                found.append(self.widths[reader].activations)
            elif self._shares_grid(reader):
                found += self._by_layers(reader)
        return found
