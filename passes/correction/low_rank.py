"""Adds a thin product beside a layer that makes up for most of its weights' rounding."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from nybble.errors import NybbleError
from nybble.ir import graph
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.biases import bias_name
from nybble.passes.settle import Settled, channel_axis, rows_of
from nybble.passes.view import View
from nybble.recipe import Recipe, Widths
from nybble.stages import LowRank

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work

BITS = 8  # of the product's weights, and of the tensor between its two layers


@dataclass(frozen=True)
class Thin:
    """Two layers whose product makes up for an error (O, K).

    Attributes:
        down: (rank, …) weights, shaped like the layer's.
        up: (O, rank).
    """

    down: NDArray[np.float32]
    up: NDArray[np.float32]

    def product(self) -> NDArray[np.float64]:
        """(O, …)."""
        found = np.tensordot(self.up.astype(np.float64), self.down.astype(np.float64), 1)
        return np.asarray(found)


def add_low_rank(settled: Settled, stage: LowRank, work: Work) -> Settled:
    """Lets W - U·V be what the layer's integers stand for, and adds U·V in 8 bits beside it.

    U·V is the best product of its rank for W - Q, Q the weights as they are rounded so far. Layers
    of groups, of 8 bits, or too small for it stay as they are. All of it is integers when deployed.

    Raises:
        NybbleError: there is no layer for it.

    Source: Yao et al., arXiv 2303.08302, section 5 (LoRC), there for linear layers; of a
    convolution, V is one of fewer channels and U one of 1x1.
    """
    view = View(settled.module)
    added = {n: t for n in settled.weights if (t := thin(view, settled, n, stage.rank)) is not None}
    if not added:
        raise NybbleError(
            f"Recipe: correct, 'low_rank' of rank {stage.rank} has no layer to mend: it takes "
            f"convolutions without groups and linear layers, of fewer than {BITS} bits, whose "
            "weights have more than twice its rank of inputs and outputs."
        )
    module = beside(settled.module, added)
    goal = None if settled.goal is None else beside(settled.goal, added)
    fresh = work.resettled(module, _recipe(settled, view, work.recipe, added))
    grids = {owner: settled.grids.get(owner, grid) for owner, grid in fresh.grids.items()}
    weights = {name: settled.weights.get(name, rounded) for name, rounded in fresh.weights.items()}
    return replace(fresh, grids=grids, weights=weights, goal=goal)


def thin(view: View, settled: Settled, name: str, rank: int) -> Thin | None:
    """What to add beside a layer; None where there is no error, or nothing to gain."""
    call, rounded = view.calls[name], settled.weights[name]
    grouped = channel_axis(call) == 0 and graph.attributes(call)["groups"] != 1
    if grouped or settled.plan.weights[name] == BITS:
        return None
    error = rows_of(call).astype(np.float64) - rounded.values()
    rows = error.reshape(len(error), -1)
    if min(rows.shape) <= 2 * rank or not np.any(rows):
        return None
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    shared = np.sqrt(values[:rank])
    down = (shared[:, None] * right[:rank]).reshape(rank, *error.shape[1:])
    return Thin(down.astype(np.float32), (left[:, :rank] * shared).astype(np.float32))


@module_pass
def beside(mod: tvm.IRModule, added: Mapping[str, Thin]) -> tvm.IRModule:
    """Adds thin products beside layers, whose weights lose as much: the function stays.

    before: add(conv2d(x, w), b)
    --->
    after: add(add(conv2d(add(conv2d(x, v), 0), u), 0), add(conv2d(x, w - u v), b))
    """
    view = View(mod)
    branches: dict[str, Any] = {}
    behind = {bias_name(view, name): name for name in added}

    def visit(emitter: Emitter, name: str, call: Any) -> Any:
        if name in added:
            branches[name] = _branch(emitter, name, call, added[name])
            axis, product = channel_axis(call), added[name].product()
            weights = graph.numpy_of(call.args[1]) - np.moveaxis(product, 0, axis)
            constant = graph.constant(weights.astype(np.float32))
            return relax.Call(call.op, [call.args[0], constant], call.attrs)
        if name not in behind:
            return None
        layer = behind[name]
        main = emitter.emit(call, name)  # the later branch: its accumulators enter the sum
        return emitter.emit(relax.op.add(branches[layer], main), f"{layer}.low_rank")

    return graph.rewrite(mod, visit)


def _branch(emitter: Emitter, name: str, call: Any, thin: Thin) -> Any:
    """Emits the two layers, each with a bias of zeros."""
    axis = channel_axis(call)
    down = graph.constant(np.moveaxis(thin.down, 0, axis))
    made = relax.Call(call.op, [call.args[0], down], call.attrs)
    made = _with_zeros(emitter, made, f"{name}.low_rank.down", len(thin.down))
    if axis == 1:
        made = relax.op.matmul(made, graph.constant(thin.up.T))
    else:
        up = graph.constant(thin.up[:, None, None])
        made = relax.op.nn.conv2d(made, up, data_layout="NHWC", kernel_layout="OHWI")
    return _with_zeros(emitter, made, f"{name}.low_rank.up", len(thin.up))


def _with_zeros(emitter: Emitter, call: Any, name: str, channels: int) -> Any:
    zeros = graph.constant(np.zeros(channels, np.float32))
    return emitter.emit(relax.op.add(emitter.emit(call, name), zeros), f"{name}.bias")


def _recipe(settled: Settled, view: View, recipe: Recipe, added: Mapping[str, Thin]) -> Recipe:
    """The widths that all layers have, and those of the new ones."""
    bits, owner = settled.plan.bits, settled.plan.owner
    widths: dict[str, Widths] = {}
    for name, width in settled.plan.weights.items():
        arriving = bits[owner[view.sources(name)[0]]]
        widths[name] = Widths(width, arriving)
        if name in added:
            widths[f"{name}.low_rank.down"] = Widths(BITS, arriving)
            widths[f"{name}.low_rank.up"] = Widths(BITS, BITS)
    named = tuple((glob.escape(name), asked) for name, asked in widths.items())
    return replace(recipe, layers=(*recipe.overrides, *named))
