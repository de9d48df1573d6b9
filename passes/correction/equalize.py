"""Moves range between layers that follow each other, where the function between them allows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from torch import Tensor
from tvm import relax

from nybble.errors import NybbleError
from nybble.ir import graph
from nybble.ir.graph import Emitter
from nybble.passes.base import module_pass
from nybble.passes.biases import bias_name
from nybble.passes.correction.front import IMAGES
from nybble.passes.differentiable import Differentiable
from nybble.passes.fold_batch_norm import affine, is_linear
from nybble.passes.plan import clamp_bounds
from nybble.passes.settle import Settled, channel_axis, rows_of
from nybble.passes.view import View
from nybble.stages import Equalize

if TYPE_CHECKING:
    from nybble.passes.correction.run import Work

Vector = NDArray[np.float64]
POOLS = {"relax.nn.max_pool2d", "relax.nn.avg_pool2d", "relax.nn.adaptive_avg_pool2d"}
RESHAPES = {"relax.reshape", "relax.squeeze"}
MOST = 256.0  # by which a channel is scaled, up or down, in all


def equalize(settled: Settled, stage: Equalize, work: Work) -> Settled:
    """Scales channels between layers, calibrates anew and rounds to nearest.

    Raises:
        NybbleError: no two layers follow each other with nothing between that forbids it.
    """
    net = _Network(settled.module)
    if not net.classes:
        raise NybbleError(
            "Recipe: correct, 'equalize' finds no two layers with only ReLU, pools and adds "
            "between them: nothing can be scaled. Leave it out."
        )
    if stage.by == "activations":
        _meet(net, settled.module, work)
    scales = net.balanced(stage.sweeps, stage.by)
    work.report(1, 2)
    return work.resettled(scaled(settled.module, scales))


@dataclass
class Between:
    """Tensors whose channels can only be scaled together.

    Attributes:
        names: the tensors.
        writers: layers that compute one of them.
        readers: layers that read one of them.
        largest: of every channel's values, on the samples.
        scale: what each channel is divided by, so far.
    """

    names: list[str]
    writers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    largest: Vector | None = None
    scale: Vector = field(default_factory=lambda: np.ones(1))


class _Network:
    """Layers, and what lies between them.

    Attributes:
        view: the module.
        classes: what can be scaled.
        weights: of every layer, (O, …) float64, as scaled so far.
    """

    def __init__(self, mod: tvm.IRModule):
        self.view = View(mod)
        self.weights = {
            name: rows_of(call).astype(np.float64)
            for name, call in self.view.calls.items()
            if is_linear(call)
        }
        joined = _Joined([*self.view.inputs, *self.view.calls])
        self.biases = {bias_name(self.view, name) for name in self.weights}
        joined.fix([*self.view.inputs, *self.view.outputs])
        for name in self.view.calls:
            self._join(joined, name)
        self.classes = list(self._between(joined))

    def _join(self, joined: _Joined, name: str) -> None:
        sources = self.view.sources(name)
        if name in self.weights:
            return
        if _is_homogeneous(self.view, name) or name in self.biases:
            joined.join([name, *sources])
        else:
            joined.fix([name, *sources])

    def _between(self, joined: _Joined) -> list[Between]:
        found: dict[str, Between] = {}
        for root, names in joined.classes().items():
            found[root] = Between(names)
        for name in self.weights:
            for where, kind in ((name, "writers"), (self.view.sources(name)[0], "readers")):
                root = joined.root(where)
                if root in found:
                    getattr(found[root], kind).append(name)
        return [b for b in found.values() if b.writers and b.readers]

    def balanced(self, sweeps: int, by: str) -> dict[str, Vector]:
        """What each tensor of a class is divided by, per channel.

        s = √(r1 / r2), r1 the range of the rows (or of the values) that a channel comes from, r2
        that of the weights that read it: then both are √(r1 r2).

        Source: Nagel et al., arXiv 1906.04721, equation 11; by values as in SmoothQuant, arXiv
        2211.10438, equation 4.
        """
        for one in self.classes:
            one.scale = np.ones(len(self._written(one)))
        for _ in range(sweeps):
            for one in self.classes:
                before = self._written(one) if by == "weights" else one.largest
                assert before is not None
                after = self._read(one)
                alive = (before > 0) & (after > 0)
                ratio = np.sqrt(np.where(alive, before, 1) / np.where(alive, after, 1))
                ratio = np.where(alive, np.clip(one.scale * ratio, 1 / MOST, MOST) / one.scale, 1)
                self._scale(one, ratio)
        return {name: one.scale for one in self.classes for name in one.names}

    def _written(self, one: Between) -> Vector:
        """The largest weight of each channel's rows."""
        rows = [self.weights[name] for name in one.writers]
        return np.max([np.abs(r.reshape(len(r), -1)).max(axis=1) for r in rows], axis=0)

    def _read(self, one: Between) -> Vector:
        """The largest weight that reads each channel."""
        columns = [np.abs(self._columns(name)).max(axis=(1, 2)) for name in one.readers]
        return np.max([c.reshape(-1) for c in columns], axis=0)

    def _columns(self, name: str) -> Vector:
        """A view of a layer's weights, (groups, O / groups, pixels, C / groups)."""
        weights = self.weights[name]
        groups = groups_of(self.view.calls[name])
        return weights.reshape(groups, len(weights) // groups, -1, weights.shape[-1])

    def _scale(self, one: Between, ratio: Vector) -> None:
        for name in one.writers:
            weights = self.weights[name]
            weights /= ratio.reshape(-1, *[1] * (weights.ndim - 1))
        for name in one.readers:
            columns = self._columns(name)
            columns *= ratio.reshape(len(columns), 1, 1, -1)
        one.scale = one.scale * ratio
        if one.largest is not None:
            one.largest = one.largest / ratio


class _Joined:
    """Sets of names that are merged; some are fixed."""

    def __init__(self, names: list[str]):
        self._parent = {name: name for name in names}
        self._fixed: list[str] = []

    def root(self, name: str) -> str:
        while self._parent[name] != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name

    def join(self, names: list[str]) -> None:
        for name in names[1:]:
            self._parent[self.root(name)] = self.root(names[0])

    def fix(self, names: list[str]) -> None:
        self._fixed += names

    def classes(self) -> dict[str, list[str]]:
        """The sets without a fixed name, by their roots."""
        fixed = {self.root(name) for name in self._fixed}
        found: dict[str, list[str]] = {}
        for name in self._parent:
            if self.root(name) not in fixed:
                found.setdefault(self.root(name), []).append(name)
        return found


def _is_homogeneous(view: View, name: str) -> bool:
    """Whether f(s·x) = s·f(x) for every s > 0, channel by channel along the last axis."""
    call, op, sources = view.calls[name], view.op(name), view.sources(name)
    attributes = graph.attributes(call) if isinstance(call, relax.Call) else {}
    shape, before = view.shape(name), view.shape(sources[0])
    kept = isinstance(shape[-1], int) and shape[-1:] == before[-1:] if shape else False
    if op in ("relax.nn.relu", "relax.clip"):
        return clamp_bounds(call) in ((0.0, np.inf), (-np.inf, 0.0))
    if op == "relax.nn.pad":
        return kept and attributes["pad_mode"] == "constant" and attributes["pad_value"] == 0
    if op == "relax.mean":
        axes = attributes["axis"] or (-1,)
        return all(axis % len(before) != len(before) - 1 for axis in axes)
    if op in POOLS | RESHAPES:
        return kept and attributes.get("layout", "NHWC") == "NHWC"
    if op == "relax.add":
        return len(sources) == 2 and shape == view.shape(sources[1])
    step = affine(call)
    return op == "relax.nn.leakyrelu" or (step is not None and not np.any(step[1]))


def groups_of(call: Any) -> int:
    """Of a convolution; 1 for a linear layer."""
    return int(graph.attributes(call)["groups"]) if channel_axis(call) == 0 else 1


def _meet(net: _Network, mod: tvm.IRModule, work: Work) -> None:
    """Notes the largest value of each channel that a layer reads."""
    readers = [name for one in net.classes for name in one.readers]
    read = {net.view.sources(name)[0] for name in readers}
    owners = {name: one for one in net.classes for name in one.names if name in read}

    def observe(name: str, values: Tensor) -> None:
        if name in owners:
            largest = values.abs().amax(dim=tuple(range(values.dim() - 1))).double().numpy()
            before = owners[name].largest
            owners[name].largest = largest if before is None else np.maximum(before, largest)

    torched = Differentiable(mod)
    fixed = (n for i in net.view.inputs if isinstance(n := net.view.shape(i)[0], int))
    with torch.no_grad():
        for batch in work.samples.batches(next(fixed, IMAGES)):
            torched(batch, observe)


@module_pass
def scaled(mod: tvm.IRModule, scales: dict[str, Vector]) -> tvm.IRModule:
    """Divides channels of tensors by ``scales``: layers that write them, biases, layers that read.

    before: conv2d(relu(add(conv2d(x, w), b)), v)
    --->
    after: conv2d(relu(add(conv2d(x, w / s), b / s)), v * s)
    """
    view = View(mod)
    biases = {bias_name(view, name) for name, call in view.calls.items() if is_linear(call)}

    def visit(_: Emitter, name: str, call: Any) -> Any:
        original = view.calls[name]
        if is_linear(original):
            return _scaled_layer(view, name, call, scales)
        if name not in biases or name not in scales:
            return None
        args = [
            graph.constant((graph.numpy_of(a) / scales[name]).astype(np.float32))
            if graph.is_constant(a)
            else a
            for a in call.args
        ]
        return relax.Call(call.op, args, call.attrs)

    return graph.rewrite(mod, visit)


def _scaled_layer(view: View, name: str, call: Any, scales: dict[str, Vector]) -> Any:
    original = view.calls[name]
    weights, source = rows_of(original).astype(np.float64), view.sources(name)[0]
    if name in scales:
        weights = weights / scales[name].reshape(-1, *[1] * (weights.ndim - 1))
    if source in scales:
        groups = groups_of(original)
        grouped = weights.reshape(groups, len(weights) // groups, -1, weights.shape[-1])
        weights = (grouped * scales[source].reshape(groups, 1, 1, -1)).reshape(weights.shape)
    laid_out = np.moveaxis(weights, 0, channel_axis(original)).astype(np.float32)
    return relax.Call(call.op, [call.args[0], graph.constant(laid_out)], call.attrs)
