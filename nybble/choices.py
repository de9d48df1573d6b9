"""What a recipe of mixed widths leaves open: which layers, and which of them must agree."""

from __future__ import annotations

from dataclasses import replace

import tvm

from nybble.budget import MIXED, bits_of
from nybble.errors import NybbleError
from nybble.passes.plan import classify, plan
from nybble.passes.view import View
from nybble.passes.widths import LayerWidths, layer_widths
from nybble.recipe import Choice, Recipe


def uniform(recipe: Recipe, choice: Choice) -> Recipe:
    """The recipe with one choice wherever it leaves one."""
    weights, activations = bits_of(choice)
    asked = recipe.activations if activations is None else activations
    return replace(recipe, weights=weights, activations=asked, choices=(), budget=())


def free_layers(canonical: tvm.IRModule, recipe: Recipe) -> list[str]:
    """The layers whose widths are still to be chosen, in order.

    Raises:
        NybbleError: the recipe fixes one of two widths that its choices leave open together.
    """
    if recipe.weights != MIXED:
        return []
    found = {choice: _widths(canonical, uniform(recipe, choice)) for choice in recipe.choices}
    layers = next(iter(found.values()))
    free = [layer for layer in layers if len({of[layer] for of in found.values()}) > 1]
    for layer in free:
        for choice, of in found.items():
            weights, activations = bits_of(choice)
            given = of[layer]
            if given.weights != weights or activations not in (None, given.activations):
                raise NybbleError(
                    f"Recipe: '{layer}' would have w{given.weights}a{given.activations} with the "
                    f"choice {choice}: the recipe fixes one of its two widths, and the choices "
                    "leave both open. Fix both in layers, or neither."
                )
    return free


def _widths(canonical: tvm.IRModule, recipe: Recipe) -> dict[str, LayerWidths]:
    view = View(canonical)
    return layer_widths(view, classify(view, recipe)[0], recipe)


def tied_layers(canonical: tvm.IRModule, recipe: Recipe) -> list[tuple[str, ...]]:
    """Groups of open layers that read the same grid, where choices name activations too.

    A tensor has one width: that of the reader that asks for most.
    """
    if all(bits_of(choice)[1] is None for choice in recipe.choices):
        return []
    view, owner = View(canonical), plan(canonical, uniform(recipe, recipe.choices[0])).owner
    groups: dict[str, list[str]] = {}
    for layer in free_layers(canonical, recipe):
        groups.setdefault(owner[view.sources(layer)[0]], []).append(layer)
    return [tuple(layers) for layers in groups.values() if len(layers) > 1]
