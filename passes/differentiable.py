"""A canonical float module as a torch module: for gradients, and for learning on whole batches.

Every op has the meaning of `nybble.ir.floats`, in NHWC as there. Weights and biases of convolutions
and linear layers are parameters, so a caller may take derivatives, or put others in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor, nn
from torch.nn import functional as F
from tvm import relax

from nybble.errors import StageError
from nybble.ir import graph
from nybble.ir.float_index import positions
from nybble.passes.fold_batch_norm import is_linear

Observe = Callable[[str, Tensor], Tensor | None]
Enter = Callable[[Tensor], Tensor]


class Differentiable(nn.Module):
    """Runs the bindings of a canonical float module in order.

    Attributes:
        weights: of every convolution and linear layer, by its name, as the module holds them:
            (O, height, width, C / groups) or (K, N).
        constants: all other constants, by "name.operand".
        layers: names of the convolutions and linear layers, in order.
    """

    def __init__(self, mod: tvm.IRModule):
        """Copies the constants.

        Raises:
            StageError: an op has no torch form; names the op and the source model's node.
        """
        super().__init__()
        self.inputs = [str(v.name) for v in graph.inputs(mod)]
        self.outputs = [str(v.name) for v in graph.outputs(mod)]
        self.weights = _Named()
        self.constants = _Named()
        self.layers: list[str] = []
        self._steps: list[tuple[str, Callable[..., Tensor], list[Any], dict[str, Any]]] = []
        for name, op, call in graph.walk(mod):
            self._add(name, op, call)
        self._last = _last_uses(self._steps)

    def _add(self, name: str, op: str, call: Any) -> None:
        if op not in OPS and not isinstance(call, relax.Var):
            raise StageError(
                f"'{name}': {op or type(call).__name__} has no torch form, so nothing behind it "
                "can be differentiated or learned. Keep the layer out of this, or choose a measure "
                "that needs no gradients."
            )
        if isinstance(call, relax.Var):
            self._steps.append((name, lambda x: x, [_Value(str(call.name))], {}))
            return
        linear = is_linear(call)
        if linear:
            self.layers.append(name)
        arguments = []
        for index, argument in enumerate(call.args):
            arguments.append(self._argument(name, index, argument, linear and index == 1))
        self._steps.append((name, OPS[op], arguments, graph.attributes(call)))

    def _argument(self, name: str, index: int, argument: Any, is_weight: bool) -> Any:
        if isinstance(argument, relax.Var):
            return _Value(str(argument.name))
        if isinstance(argument, relax.Tuple):
            return [
                self._argument(name, 100 * index + i, field, False)
                for i, field in enumerate(argument.fields)
            ]
        if graph.is_constant(argument):
            values = torch.from_numpy(graph.numpy_of(argument).copy())
            home, key = (self.weights, name) if is_weight else (self.constants, f"{name}.{index}")
            home[key] = values
            return _Constant(home, key)
        if isinstance(argument, relax.ShapeExpr):
            return [int(d) if isinstance(d, int | tvm.tirx.IntImm) else -1 for d in argument.values]
        return graph.plain(argument)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        observe: Observe | None = None,
        swaps: Mapping[str, Tensor] | None = None,
    ) -> list[Tensor]:
        """The outputs in order.

        Args:
            inputs: a tensor for each input, float32, the batch in front.
            observe: called with every binding's name and value, and with the inputs; what it
                returns, if anything, takes the value's place.
            swaps: other weights for layers, by name.
        """
        return self.run(dict(inputs), 0, observe, swaps)

    def run(
        self,
        values: dict[str, Tensor],
        start: int,
        observe: Observe | None = None,
        swaps: Mapping[str, Tensor] | None = None,
        entering: Mapping[str, Enter] | None = None,
    ) -> list[Tensor]:
        """The outputs from a binding on, given the values that it and later ones read.

        Args:
            values: tensors by name; used up.
            start: index of the first binding to run; from 0 inputs are observed too.
            observe: as in `forward`.
            swaps: as in `forward`.
            entering: as in `advance`.
        """
        self.advance(values, range(start, len(self._steps)), observe, swaps, entering)
        return [values[name] for name in self.outputs]

    def advance(
        self,
        values: dict[str, Tensor],
        steps: range,
        observe: Observe | None = None,
        swaps: Mapping[str, Tensor] | None = None,
        entering: Mapping[str, Enter] | None = None,
    ) -> None:
        """Runs some bindings: ``values`` then holds what later ones read, and the outputs.

        Args:
            values: tensors by name, those that `live` names for the first step; changed in place.
            steps: indices of the bindings to run; from 0 inputs are observed too.
            observe: as in `forward`.
            swaps: as in `forward`.
            entering: makes another first operand for a binding, which no other reader sees.
        """
        seen = observe or (lambda _, __: None)
        for name in self.inputs if steps.start == 0 else ():
            values[name] = _or(seen(name, values[name]), values[name])
        for index in steps:
            name, op, arguments, attributes = self._steps[index]
            first, *rest = (_resolved(a, values, swaps) for a in arguments)
            enter = (entering or {}).get(name)
            made = op(first if enter is None else enter(first), *rest, **attributes)
            values[name] = _or(seen(name, made), made)
            for old in self._last[index]:
                if old not in self.outputs:
                    values.pop(old, None)

    def index(self, name: str) -> int:
        """The place of a binding."""
        return next(i for i, step in enumerate(self._steps) if step[0] == name)

    def live(self, start: int) -> set[str]:
        """Names of the tensors that bindings from ``start`` on read and do not make."""
        made: set[str] = set()
        read: set[str] = set(self.outputs)
        for name, _, arguments, _ in self._steps[start:]:
            read |= set(_names(arguments))
            made.add(name)
        return read - made


class _Named(nn.Module):
    """Parameters under names that may hold dots and slashes, which torch's own may not."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[str, str] = {}

    def __setitem__(self, name: str, values: Tensor) -> None:
        self._keys[name] = f"p{len(self._keys)}"
        needs_gradient = values.is_floating_point()
        self.register_parameter(self._keys[name], nn.Parameter(values, needs_gradient))

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = getattr(self, self._keys[name])
        return found

    def __iter__(self) -> Any:
        return iter(self._keys)

    def __contains__(self, name: object) -> bool:
        return name in self._keys


class _Value:
    """An argument that another binding or an input gives."""

    def __init__(self, name: str):
        self.name = name


class _Constant:
    """An argument that a parameter gives."""

    def __init__(self, home: _Named, key: str):
        self.home, self.key = home, key


def _resolved(argument: Any, values: Mapping[str, Tensor], swaps: Any) -> Any:
    if isinstance(argument, _Value):
        return values[argument.name]
    if isinstance(argument, _Constant):
        swapped = (swaps or {}).get(argument.key)
        return argument.home[argument.key] if swapped is None else swapped
    if isinstance(argument, list):
        return [_resolved(a, values, swaps) for a in argument]
    return argument


def _names(arguments: list[Any]) -> list[str]:
    found: list[str] = []
    for argument in arguments:
        if isinstance(argument, _Value):
            found.append(argument.name)
        elif isinstance(argument, list):
            found += _names(argument)
    return found


def _last_uses(steps: list[Any]) -> list[list[str]]:
    """Names that no later step reads, for every step."""
    last: dict[str, int] = {}
    for index, (name, _, arguments, _) in enumerate(steps):
        last[name] = index
        for used in _names(arguments):
            last[used] = index
    done: list[list[str]] = [[] for _ in steps]
    for name, index in last.items():
        done[index].append(name)
    return done


def _or(value: Tensor | None, other: Tensor) -> Tensor:
    return other if value is None else value


# ---------------------------------------------------------------- ops


def conv2d(x: Tensor, w: Tensor, **attributes: Any) -> Tensor:
    """NHWC with weights (O, height, width, C / groups)."""
    top, left, bottom, right = attributes["padding"]
    image = x.permute(0, 3, 1, 2)
    padding: Any = (top, left)
    if (top, left) != (bottom, right):
        image, padding = F.pad(image, (left, right, top, bottom)), 0
    y = F.conv2d(
        image, w.permute(0, 3, 1, 2), None, attributes["strides"], padding,
        attributes["dilation"], attributes["groups"],
    )  # fmt: skip
    return y.permute(0, 2, 3, 1)


def _max_pool(x: Tensor, **attributes: Any) -> Tensor:
    top, left, bottom, right = attributes["padding"]
    image = F.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom), value=float("-inf"))
    y = F.max_pool2d(
        image, attributes["pool_size"], attributes["strides"], 0, attributes["dilation"]
    )
    return y.permute(0, 2, 3, 1)


def _avg_pool(x: Tensor, **attributes: Any) -> Tensor:
    top, left, bottom, right = attributes["padding"]

    def total(image: Tensor) -> Tensor:
        image = F.pad(image, (left, right, top, bottom))
        return F.avg_pool2d(image, attributes["pool_size"], attributes["strides"])

    image = x.permute(0, 3, 1, 2)
    y = total(image)
    if any(attributes["padding"]) and not attributes["count_include_pad"]:
        y = y / total(torch.ones_like(image[:1, :1]))
    return y.permute(0, 2, 3, 1)


def _resize(x: Tensor, size: Sequence[int], **attributes: Any) -> Tensor:
    first = 1 if attributes["layout"] == "NHWC" else 2
    for axis, extent in zip((first, first + 1), size, strict=True):
        at = positions(x.shape[axis], int(extent), attributes["coordinate_transformation_mode"])
        low, last = np.floor(at).astype(np.int64), x.shape[axis] - 1
        near, far = (
            x.index_select(axis, torch.from_numpy((low + i).clip(0, last))) for i in (0, 1)
        )
        share = torch.from_numpy((at - low).astype(np.float32))
        share = share.reshape([-1 if a == axis else 1 for a in range(4)])
        x = near if attributes["method"] == "nearest_neighbor" else torch.lerp(near, far, share)
    return x


def _adaptive(x: Tensor, *, output_size: tuple[int, int], layout: str, **_: Any) -> Tensor:
    if layout == "NCHW":
        return F.adaptive_avg_pool2d(x, output_size)
    return F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), output_size).permute(0, 2, 3, 1)


def _pad(x: Tensor, *, pad_width: Any, pad_value: float, **_: Any) -> Tensor:
    pairs = list(zip(pad_width[::2], pad_width[1::2], strict=True))
    return F.pad(x, [p for pair in reversed(pairs) for p in pair], value=float(pad_value))


def _permute(x: Tensor, *, axes: Any) -> Tensor:
    return x.permute(*(axes or range(x.dim() - 1, -1, -1)))


def _mean(x: Tensor, *, axis: Any, keepdims: bool) -> Tensor:
    return x.mean(dim=tuple(range(x.dim())) if axis is None else tuple(axis), keepdim=keepdims)


def _squeeze(x: Tensor, *, axis: Any) -> Tensor:
    return x.squeeze() if axis is None else x.squeeze(tuple(axis))


OPS: dict[str, Callable[..., Tensor]] = {
    "relax.nn.conv2d": conv2d,
    "relax.matmul": lambda a, b, **_: a @ b,
    "relax.add": torch.add,
    "relax.subtract": torch.sub,
    "relax.multiply": torch.mul,
    "relax.divide": torch.div,
    "relax.maximum": torch.maximum,
    "relax.minimum": torch.minimum,
    "relax.nn.relu": torch.relu,
    "relax.nn.leakyrelu": lambda x, *, alpha: F.leaky_relu(x, alpha),
    "relax.clip": lambda x, lo, hi, **_: torch.clamp(x, float(lo), float(hi)),
    "relax.sigmoid": torch.sigmoid,
    "relax.tanh": torch.tanh,
    "relax.exp": torch.exp,
    "relax.nn.silu": F.silu,
    "relax.nn.softmax": lambda x, *, axis: torch.softmax(x, axis),
    "relax.nn.max_pool2d": _max_pool,
    "relax.nn.avg_pool2d": _avg_pool,
    "relax.nn.adaptive_avg_pool2d": _adaptive,
    "relax.image.resize2d": _resize,
    "relax.mean": _mean,
    "relax.concat": lambda xs, *, axis: torch.cat(xs, dim=axis),
    "relax.reshape": lambda x, shape: x.reshape(shape),
    "relax.permute_dims": _permute,
    "relax.squeeze": _squeeze,
    "relax.nn.pad": _pad,
}
"""Relax op -> its torch form; arguments and attributes as in `nybble.ir.floats.OPS`."""
