"""ATen operators as float Relax: one small function for each, core and pre-dispatch forms alike."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tvm import relax

from nybble.frontend import extents, torch_attention, torch_index, torch_layers, torch_math
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused

aten = torch.ops.aten
Convert = Callable[..., Value]  # (builder, node name, *arguments) -> value


# ---------------------------------------------------------------- element-wise


def _binary(op: str) -> Convert:
    def convert(build: Builder, name: str, left: Value, right: Value, *, alpha: Any = 1) -> Value:
        if alpha != 1 and isinstance(right, relax.Var):
            right = build.binary("multiply", right, alpha, f"{name}.alpha")
        elif alpha != 1:
            right = np.asarray(right) * alpha
        return build.binary(op, left, right, name)

    return convert


def _unary(function: Callable[[Any], Any]) -> Convert:
    return lambda build, name, x: build.emit(function(x), name)


def _rsub(build: Builder, name: str, left: Value, right: Value, alpha: Any = 1) -> Value:
    if alpha != 1:
        raise Refused(f"alpha={alpha}; only 1 is supported")
    return build.binary("subtract", right, left, name)


def _clamp(build: Builder, name: str, x: Value, low: Any = None, high: Any = None) -> Value:
    return build.clip(x, low, high, name)


def _leaky_relu(build: Builder, name: str, x: Value, slope: float = 0.01) -> Value:
    return build.emit(relax.op.nn.leakyrelu(x, slope), name)


def _softmax(build: Builder, name: str, x: Value, axis: int, _dtype: Any = None) -> Value:
    return build.softmax(x, axis, name)


def _dropout(_build: Builder, _name: str, x: Value, _p: float, train: bool) -> Value:
    if train:
        raise Refused("is in training mode; export the network in eval mode")
    return x


def _same(_build: Builder, _name: str, x: Value, *_args: Any, **_kwargs: Any) -> Value:
    return x


def _to(build: Builder, name: str, x: Value, *args: Any, dtype: Any = None, **_: Any) -> Value:
    wanted = next((a for a in (dtype, *args) if isinstance(a, torch.dtype)), None)
    if wanted is None:
        return x
    if wanted not in DTYPES:
        raise Refused(f"casts an activation to {wanted}")
    return build.cast(x, DTYPES[wanted], name)


DTYPES: dict[torch.dtype, str] = {
    getattr(torch, name): name
    for name in ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
}
"""Types that activations may have, as Relax calls them."""


# ---------------------------------------------------------------- structure


def _constant_pad(
    build: Builder, name: str, x: Value, pad: Sequence[int], value: float = 0
) -> Value:
    """ATen lists (before, after) from the last axis backwards."""
    rank = extents.rank(x)
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    pairs += [(0, 0)] * (rank - len(pairs))
    return build.pad(x, [int(w) for pair in reversed(pairs) for w in pair], value, name)


def _pad(
    build: Builder, name: str, x: Value, pad: Sequence[int], mode: str = "constant",
    value: float | None = None,
) -> Value:  # fmt: skip
    if mode != "constant":
        raise Refused(f"mode '{mode}' is not supported, only 'constant'")
    return _constant_pad(build, name, x, pad, value or 0.0)


def _cat(build: Builder, name: str, values: Sequence[Value], axis: int = 0) -> Value:
    return build.concat(values, axis, name)


def _flatten(build: Builder, name: str, x: Value, start: int = 0, end: int = -1) -> Value:
    sizes = extents.shape(x)
    first, last = start % len(sizes), end % len(sizes)
    count: Any = 1
    for size in sizes[first : last + 1]:
        count = count * size
    return build.reshape(x, [*sizes[:first], count, *sizes[last + 1 :]], name)


def _view(build: Builder, name: str, x: Value, target: Sequence[Any]) -> Value:
    return build.reshape(x, target, name)


def _permute(build: Builder, name: str, x: Value, axes: Sequence[int]) -> Value:
    return build.transpose(x, axes, name)


def _transpose(build: Builder, name: str, x: Value, first: int = 0, second: int = 1) -> Value:
    order = list(range(extents.rank(x)))
    order[first], order[second] = order[second], order[first]
    return build.transpose(x, order, name)


def _t(build: Builder, name: str, x: Value) -> Value:
    return _transpose(build, name, x) if extents.rank(x) == 2 else x


def _squeeze(build: Builder, name: str, x: Value, axes: Any = None) -> Value:
    if axes is None:
        return build.squeeze(x, None, name)
    sizes = extents.shape(x)
    listed = [axes] if isinstance(axes, int) else axes
    return build.squeeze(x, [a for a in listed if sizes[a] == 1], name)  # others stay, as in torch


def _unsqueeze(build: Builder, name: str, x: Value, axis: int) -> Value:
    return build.unsqueeze(x, [axis], name)


def _size(_build: Builder, _name: str, x: Value, axis: int) -> Value:
    return extents.shape(x)[axis]


def _python(function: Callable[..., Any]) -> Convert:
    """Python arithmetic on batch sizes, and taking one result of several."""
    return lambda _build, _name, *args: function(*args)


def _item(_build: Builder, _name: str, values: Sequence[Value], index: int) -> Value:
    if index >= len(values):
        raise Refused(f"result {index} of this operator is not supported, only the first")
    return values[index]


IN_PLACE: dict[Any, Any] = {
    aten.add_.Tensor: aten.add.Tensor,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.relu6_.default: aten.relu6.default,
    aten.relu_.default: aten.relu.default,
    aten.silu_.default: aten.silu.default,
}
FRESH: set[Any] = {  # results that share memory with nothing
    aten.add.Tensor, aten.batch_norm.default, aten.conv2d.default, aten.conv2d.padding,
    aten.linear.default,
}  # fmt: skip

CONVERTERS: dict[Any, Convert] = {
    **torch_attention.CONVERTERS,
    **torch_index.CONVERTERS,
    **torch_math.CONVERTERS,
    aten._adaptive_avg_pool2d.default: torch_layers.adaptive_avg_pool,
    aten._batch_norm_no_update.default: torch_layers.batch_norm_legit,
    aten._native_batch_norm_legit.no_stats: torch_layers.batch_statistics,
    aten._native_batch_norm_legit_functional.default: torch_layers.batch_statistics,
    aten._native_batch_norm_legit_no_training.default: torch_layers.batch_norm_legit,
    aten._softmax.default: _softmax,
    aten._to_copy.default: _to,
    aten._unsafe_view.default: _view,
    aten.adaptive_avg_pool2d.default: torch_layers.adaptive_avg_pool,
    aten.add.Scalar: _binary("add"),
    aten.add.Tensor: _binary("add"),
    aten.addmm.default: torch_layers.addmm,
    aten.alias.default: _same,
    aten.avg_pool2d.default: torch_layers.avg_pool,
    aten.batch_norm.default: torch_layers.batch_norm,
    aten.cat.default: _cat,
    aten.clamp.default: _clamp,
    aten.clamp_max.default: lambda build, name, x, high: build.clip(x, None, high, name),
    aten.clamp_min.default: lambda build, name, x, low: build.clip(x, low, None, name),
    aten.clone.default: _same,
    aten.constant_pad_nd.default: _constant_pad,
    aten.contiguous.default: _same,
    aten.conv2d.default: torch_layers.conv2d,
    aten.conv2d.padding: torch_layers.conv2d,
    aten.convolution.default: torch_layers.convolution,
    aten.detach.default: _same,
    aten.div.Scalar: _binary("divide"),
    aten.div.Tensor: _binary("divide"),
    aten.dropout.default: _dropout,
    aten.exp.default: _unary(relax.op.exp),
    aten.flatten.using_ints: _flatten,
    aten.hardsigmoid.default: lambda build, name, x: build.hard_sigmoid(x, 1 / 6, 0.5, name),
    aten.hardswish.default: lambda build, name, x: build.hard_swish(x, name),
    aten.hardtanh.default: lambda build, name, x, low=-1, high=1: build.clip(x, low, high, name),
    aten.leaky_relu.default: _leaky_relu,
    aten.linear.default: torch_layers.linear,
    aten.max_pool2d.default: torch_layers.max_pool,
    aten.max_pool2d_with_indices.default: torch_layers.max_pool_with_indices,
    aten.maximum.default: _binary("maximum"),
    aten.mean.default: torch_layers.mean,
    aten.mean.dim: torch_layers.mean,
    aten.minimum.default: _binary("minimum"),
    aten.mm.default: torch_layers.matmul,
    aten.mul.Scalar: _binary("multiply"),
    aten.mul.Tensor: _binary("multiply"),
    aten.neg.default: lambda build, name, x: build.binary("multiply", x, -1.0, name),
    aten.pad.default: _pad,
    aten.permute.default: _permute,
    aten.relu.default: lambda build, name, x: build.relu(x, name),
    aten.relu6.default: lambda build, name, x: build.clip(x, 0, 6, name),
    aten.reshape.default: _view,
    aten.rsub.Scalar: _rsub,
    aten.rsub.Tensor: _rsub,
    aten.sigmoid.default: _unary(relax.op.sigmoid),
    aten.silu.default: _unary(relax.op.nn.silu),
    aten.softmax.int: _softmax,
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.sub.Scalar: _binary("subtract"),
    aten.sub.Tensor: _binary("subtract"),
    aten.sym_size.int: _size,
    aten.sum.default: torch_layers.total,
    aten.sum.dim_IntList: torch_layers.total,
    aten.t.default: _t,
    aten.tanh.default: _unary(relax.op.tanh),
    aten.to.dtype: _to,
    aten.transpose.int: _transpose,
    aten.unsqueeze.default: _unsqueeze,
    aten.view.default: _view,
    operator.add: _python(operator.add),
    operator.floordiv: _python(operator.floordiv),
    operator.getitem: _item,
    operator.mod: _python(operator.mod),
    operator.mul: _python(operator.mul),
    operator.neg: _python(operator.neg),
    operator.sub: _python(operator.sub),
}
