"""Where a layer stands in the network, and what it aims at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nybble.passes.correction.rows import Product, product_of
from nybble.passes.plan import clamp_bounds
from nybble.passes.settle import Settled
from nybble.passes.view import View


@dataclass(frozen=True)
class Place:
    """Where a layer stands.

    Attributes:
        name: of the layer.
        product: what it computes.
        source: the tensor it reads.
        end: the binding whose float value it aims at: behind its bias, the residual add that its
            accumulators enter, and the clamps that follow.
        beside: the other operand of that add.
        bounds: of the clamps.
        owner: of its input's grid, where no other binding depends on it.
    """

    name: str
    product: Product
    source: str
    end: str
    beside: str | None
    bounds: tuple[float, float]
    owner: str | None


def place_of(view: View, settled: Settled, name: str) -> Place:
    """Where a layer stands.

    A residual add belongs to the layer whose accumulators enter it, if its other operand is
    computed before the layer: then the layer mends that operand's error too.
    """
    kinds, order = settled.plan.kinds, list(view.calls)
    end, beside, source = name, None, view.sources(name)[0]
    lo, hi = -np.inf, np.inf
    while (reader := view.sole_reader(end)) is not None:
        kind = kinds[reader]
        if kind == "add" and beside is None and end not in settled.plan.owner:
            other = next((s for s in view.sources(reader) if s != end), None)
            if other is None or (other in order and order.index(other) > order.index(name)):
                break
            beside = other
        elif kind == "activation":
            below, above = clamp_bounds(view.calls[reader])
            lo, hi = min(max(lo, below), above), max(min(hi, above), below)
        elif kind != "bias":
            break
        end = reader
    owner = settled.plan.owner[source]
    alone = _readers(view, settled, owner) == [name]
    return Place(
        name, product_of(view, name), source, end, beside, (lo, hi), owner if alone else None
    )


def _readers(view: View, settled: Settled, owner: str) -> list[str]:
    """The bindings that read a grid's tensors and have none of the same grid."""
    points = [point for point, owning in settled.plan.owner.items() if owning == owner]
    readers = [reader for point in points for reader in view.readers[point]]
    outputs = [point for point in points if point in view.outputs]
    return [r for r in readers if r not in points] + outputs
