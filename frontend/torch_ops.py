"""ATen operators as float Relax: one small function for each, core and pre-dispatch forms alike."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tvm import relax

from nybble.frontend import extents
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused, Window

aten = torch.ops.aten
Convert = Callable[..., Value]  # (builder, node name, *arguments) -> value


def _pair(value: Any) -> tuple[int, int]:
    """ATen's int[2]: one number counts twice."""
    values = [value] if isinstance(value, int) else list(value)
    first, second = values * 2 if len(values) == 1 else values
    return int(first), int(second)


def _sides(padding: Any) -> tuple[int, int, int, int]:
    rows, columns = _pair(padding)
    return rows, columns, rows, columns


# ---------------------------------------------------------------- layers with weights


def _conv2d(
    build: Builder, name: str, x: Value, weight: Value, bias: Value = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    if extents.rank(x) != 4 or extents.rank(weight) != 4:
        raise Refused("only batched 2-D convolutions are supported")
    size = tuple(extents.shape(weight)[2:])
    if padding == "valid":
        sides = (0, 0, 0, 0)
    elif padding == "same":
        window = Window(size, (1, 1), (0, 0, 0, 0), _pair(dilation))  # type: ignore[arg-type]
        sides = window.same_padding(*extents.image(x), upper=True)
    else:
        sides = _sides(padding)
    attrs = {
        "strides": _pair(stride), "padding": sides, "dilation": _pair(dilation), "groups": groups,
    }  # fmt: skip
    return build.conv2d([x, weight, bias], attrs, name)


def _convolution(build: Builder, name: str, *args: Any) -> Value:
    *operands, stride, padding, dilation, transposed, _output_padding, groups = args
    if transposed:
        raise Refused("transposed convolutions are not supported")
    return _conv2d(build, name, *operands, stride, padding, dilation, groups)


def _batch_norm(
    build: Builder, name: str, x: Value, *moments_training_momentum_eps_cudnn: Any
) -> Value:
    *moments, training, _momentum, epsilon, _cudnn = moments_training_momentum_eps_cudnn
    if training or moments[2] is None:
        return _training(build, name)
    return build.batch_norm(x, moments, epsilon, name)


def _batch_norm_legit(build: Builder, name: str, x: Value, *args: Any) -> Value:
    *moments, _momentum, epsilon = args
    return (build.batch_norm(x, moments, epsilon, name),)


def _training(_build: Builder, _name: str, *_args: Any, **_kwargs: Any) -> Value:
    raise Refused("normalizes with the batch's own statistics; export the network in eval mode")


def _linear(build: Builder, name: str, x: Value, weight: Value, bias: Value = None) -> Value:
    return build.linear(x, build.weights(weight, "weight").T, bias, name)


def _addmm(
    build: Builder, name: str, bias: Value, x: Value, weight: Value, *,
    beta: float = 1, alpha: float = 1,
) -> Value:  # fmt: skip
    if beta != 1 or alpha != 1:
        raise Refused(f"beta={beta}, alpha={alpha}; only 1 is supported")
    return build.linear(x, build.weights(weight, "right operand"), bias, name)


def _matmul(build: Builder, name: str, x: Value, weight: Value) -> Value:
    return build.linear(x, build.weights(weight, "right operand"), None, name)


# ---------------------------------------------------------------- element-wise


def _binary(op: str) -> Convert:
    def convert(build: Builder, name: str, left: Value, right: Value, *, alpha: Any = 1) -> Value:
        if alpha != 1:
            right = build.binary("multiply", right, alpha, f"{name}.alpha")
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


def _to(
    _build: Builder, _name: str, x: Value, *args: Any, dtype: Any = None, **_kwargs: Any
) -> Value:
    wanted = next((a for a in (dtype, *args) if isinstance(a, torch.dtype)), torch.float32)
    if wanted != torch.float32:
        raise Refused(f"casts an activation to {wanted}")
    return x


# ---------------------------------------------------------------- pooling


def _max_pool(
    build: Builder, name: str, x: Value, size: Any, stride: Any = (), padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False,
) -> Value:  # fmt: skip
    window = Window(_pair(size), _pair(stride or size), _sides(padding), _pair(dilation), ceil_mode)
    return build.max_pool2d(x, window, name)


def _max_pool_with_indices(build: Builder, name: str, *args: Any) -> Value:
    return (_max_pool(build, name, *args),)


def _avg_pool(
    build: Builder, name: str, x: Value, size: Any, stride: Any = (), padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
) -> Value:  # fmt: skip
    if divisor_override is not None:
        raise Refused(f"divisor_override={divisor_override} is not supported")
    window = Window(_pair(size), _pair(stride or size), _sides(padding), (1, 1), ceil_mode)
    return build.avg_pool2d(x, window, count_include_pad, name)


def _adaptive_avg_pool(build: Builder, name: str, x: Value, output: Any) -> Value:
    height, width = extents.image(x)
    rows, columns = (
        extent if size is None else size
        for size, extent in zip(output, (height, width), strict=True)
    )
    if (rows, columns) == (1, 1):
        return build.mean(x, (2, 3), True, name)
    if height % rows or width % columns:
        raise Refused(f"pools {height}x{width} to {rows}x{columns}, which does not divide evenly")
    size = (height // rows, width // columns)
    return build.avg_pool2d(x, Window(size, size), False, name)


def _mean(
    build: Builder, name: str, x: Value, axes: Any = None, keepdims: bool = False, *,
    dtype: Any = None,
) -> Value:  # fmt: skip
    if dtype not in (None, torch.float32):
        raise Refused(f"computes in {dtype}")
    return build.mean(x, [axes] if isinstance(axes, int) else axes, keepdims, name)


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
        count = size * count
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


CONVERTERS: dict[Any, Convert] = {
    aten._adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten._batch_norm_no_update.default: _batch_norm_legit,
    aten._native_batch_norm_legit.no_stats: _training,
    aten._native_batch_norm_legit_functional.default: _training,
    aten._native_batch_norm_legit_no_training.default: _batch_norm_legit,
    aten._softmax.default: _softmax,
    aten._to_copy.default: _to,
    aten._unsafe_view.default: _view,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.add.Scalar: _binary("add"),
    aten.add.Tensor: _binary("add"),
    aten.addmm.default: _addmm,
    aten.alias.default: _same,
    aten.avg_pool2d.default: _avg_pool,
    aten.batch_norm.default: _batch_norm,
    aten.cat.default: _cat,
    aten.clamp.default: _clamp,
    aten.clamp_max.default: lambda build, name, x, high: build.clip(x, None, high, name),
    aten.clamp_min.default: lambda build, name, x, low: build.clip(x, low, None, name),
    aten.clone.default: _same,
    aten.constant_pad_nd.default: _constant_pad,
    aten.contiguous.default: _same,
    aten.conv2d.default: _conv2d,
    aten.conv2d.padding: _conv2d,
    aten.convolution.default: _convolution,
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
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.max_pool2d.default: _max_pool,
    aten.max_pool2d_with_indices.default: _max_pool_with_indices,
    aten.maximum.default: _binary("maximum"),
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.minimum.default: _binary("minimum"),
    aten.mm.default: _matmul,
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
    aten.t.default: _t,
    aten.tanh.default: _unary(relax.op.tanh),
    aten.to.dtype: _to,
    aten.transpose.int: _transpose,
    aten.unsqueeze.default: _unsqueeze,
    aten.view.default: _view,
    operator.floordiv: _python(operator.floordiv),
    operator.getitem: _item,
    operator.mul: _python(operator.mul),
}
