"""Influence: how much a block changes what passes through it; one forward pass in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble.ir import interpreter
from nybble.passes.biases import bias_name
from nybble.passes.plan import ACTIVATIONS
from nybble.passes.sensitivity.task import Losses, Task
from nybble.passes.view import View
from nybble.sensitivity_table import Effort

Array = NDArray[Any]
Block = tuple[str, str]


def influence_effort(samples: int) -> Effort:
    """What `influence` takes."""
    return Effort(samples, forward=1)


def influence(task: Task) -> Losses:
    """(1 - cosine) · (1 - share) · ‖Q_b(W) - W‖² / ‖W‖² for every layer and width.

    The cosine is that of the input and the output of the layer's block, a mean over samples: a
    block that turns what it gets matters, one that passes it on does not. The share is that of
    weights more than one standard deviation above the mean: few such weights mean that all matter.
    Both are importances without a width; the relative error of the weights brings it in. A layer
    whose block changes the shape counts as one that keeps nothing, with cosine 0.

    Source: Dumitru et al., arXiv 2406.17415, sections 3.1 and 3.2, who rank by either of the two.
    """
    found = task.units.do("cosines", len(task.samples), partial(_cosines, task))
    return {
        layer: {w: (1 - found[layer]) * _weighted(task, layer, w) for w in task.widths}
        for layer in task.layers
    }


def _weighted(task: Task, layer: str, width: Any) -> float:
    weights = task.weights(layer).astype(np.float64)
    share = float(np.mean(weights > weights.mean() + weights.std())) if weights.std() > 0 else 0.0
    power = float(np.square(weights).sum())
    lost = float(np.square(task.error(layer, width)).sum())
    return (1 - share) * lost / power if power > 0 else 0.0


def blocks(view: View, layers: tuple[str, ...]) -> dict[str, Block | None]:
    """The block of each layer as (input, output): tensors of one shape; None where none is.

    That is the innermost residual branch around the layer: from where the operands of an add part
    to the add, with the activation behind it. Outside of such, it is the layer itself, with its
    bias and activation.
    """
    found: dict[str, Block | None] = {}
    residuals = [r for name in view.calls if (r := _residual(view, name)) is not None]
    for layer in layers:
        block = next((block for block, inside in residuals if layer in inside), None)
        own = (view.sources(layer)[0], _end(view, bias_name(view, layer) or layer))
        block = block or own
        found[layer] = block if view.shape(block[0]) == view.shape(block[1]) else None
    return found


def _residual(view: View, add: str) -> tuple[Block, set[str]] | None:
    """A residual block that ends in an add, and what is inside of it."""
    sources = view.sources(add)
    if view.op(add) != "relax.add" or len(sources) != 2:
        return None
    one, other = (_behind(view, source) for source in sources)
    shared = one & other
    order = [*view.inputs, *view.calls]
    start = next((name for name in reversed(order) if name in shared), None)
    if start is None or view.shape(start) != view.shape(add):
        return None
    return (start, _end(view, add)), (one | other) - shared


def _behind(view: View, name: str) -> set[str]:
    """A tensor and all that it is computed from."""
    found, left = set[str](), [name]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += view.sources(one)
    return found


def _end(view: View, name: str) -> str:
    """A tensor behind the activation that follows, if one does."""
    reader = view.sole_reader(name)
    return reader if reader is not None and view.op(reader) in ACTIVATIONS else name


def _cosines(task: Task) -> dict[str, float]:
    """Of every layer's block, a mean over samples."""
    of_layer = blocks(task.view, task.layers)
    wanted = {block for block in of_layer.values() if block is not None}
    sums, done = dict.fromkeys(wanted, 0.0), 0
    ends = {name for block in wanted for name in block}
    for batch in task.samples:
        values: dict[str, Array] = {k: v.numpy() for k, v in batch.items()}
        count = len(next(iter(values.values())))

        def keep(name: str, value: Array, values: dict[str, Array] = values) -> None:
            if name in ends:
                values[name] = value

        interpreter.run(task.module, dict(values), observe=keep)
        for block in wanted:
            sums[block] += float(_cosine(values, block).sum())
        done += count
        task.units.within(done)
    task.units.passed(forward=1)
    return {
        layer: 0.0 if block is None else sums[block] / done for layer, block in of_layer.items()
    }


def _cosine(values: Mapping[str, Array], block: Block) -> Array:
    """Of every sample; 0 where either end is all zeros."""
    one, other = (values[name].reshape(len(values[name]), -1).astype(np.float64) for name in block)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / np.where(norms > 0, norms, 1.0))
