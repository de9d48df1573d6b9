"""ATen layers as float Relax: what has weights, and pooling.

Each takes (builder, node name) and then the operator's own arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tvm import relax

from nybble.frontend import extents
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused, Window


def _pair(value: Any) -> tuple[int, int]:
    """ATen's int[2]: one number counts twice."""
    values = [value] if isinstance(value, int) else list(value)
    first, second = values * 2 if len(values) == 1 else values
    return int(first), int(second)


def _sides(padding: Any) -> tuple[int, int, int, int]:
    rows, columns = _pair(padding)
    return rows, columns, rows, columns


def filled(given: Sequence[Any], defaults: Sequence[Any]) -> list[Any]:
    """An operator's trailing arguments; exported graphs leave out those with default values."""
    return [*given, *defaults[len(given) :]]


# ---------------------------------------------------------------- layers with weights


def conv2d(
    build: Builder, name: str, x: Value, weight: Value, bias: Value = None, *window: Any
) -> Value:
    """``aten.conv2d``; window is stride, padding (or "same", "valid"), dilation, groups."""
    stride, padding, dilation, groups = filled(window, (1, 0, 1, 1))
    if extents.rank(x) != 4 or extents.rank(weight) != 4:
        raise Refused("only batched 2-D convolutions are supported")
    if padding == "same":
        _, _, *size = extents.shape(weight)
        filter_window = Window(_pair(size), dilation=_pair(dilation))
        sides = filter_window.same_padding(*extents.image(x), upper=True)
    else:
        sides = _sides(0 if padding == "valid" else padding)
    attrs = {
        "strides": _pair(stride),
        "padding": sides,
        "dilation": _pair(dilation),
        "groups": groups,
    }
    return build.conv2d([x, weight, bias], attrs, name)


def convolution(build: Builder, name: str, *args: Any) -> Value:
    """``aten.convolution``: ATen's one form of all convolutions."""
    *operands, stride, padding, dilation, transposed, _output_padding, groups = args
    if transposed:
        raise Refused("transposed convolutions are not supported")
    return conv2d(build, name, *operands, stride, padding, dilation, groups)


def batch_norm(
    build: Builder, name: str, x: Value, *moments_training_momentum_eps_cudnn: Any
) -> Value:
    """``aten.batch_norm``: moments, training, momentum, epsilon, cudnn."""
    *moments, training, _momentum, epsilon, _cudnn = moments_training_momentum_eps_cudnn
    if training or moments[2] is None:
        return batch_statistics(build, name)
    return build.batch_norm(x, moments, epsilon, name)


def batch_norm_legit(build: Builder, name: str, x: Value, *args: Any) -> Value:
    """``aten._native_batch_norm_legit_no_training``: moments, momentum, epsilon."""
    *moments, _momentum, epsilon = args
    return (build.batch_norm(x, moments, epsilon, name),)


def batch_statistics(_build: Builder, _name: str, *_args: Any, **_kwargs: Any) -> Value:
    """Batch norms that exist only in training."""
    raise Refused("normalizes with the batch's own statistics; export the network in eval mode")


def linear(build: Builder, name: str, x: Value, weight: Value, bias: Value = None) -> Value:
    """``aten.linear``: the weight is (O, K)."""
    return build.linear(x, build.constant(weight, "weight").T, bias, name)


def addmm(
    build: Builder, name: str, bias: Value, x: Value, weight: Value, **factors: float
) -> Value:
    """``aten.addmm``: the weight is (K, O); factors are beta and alpha."""
    if set(factors.values()) - {1}:
        raise Refused(f"{factors}; only 1 is supported")
    return build.linear(x, build.constant(weight, "right operand"), bias, name)


def matmul(build: Builder, name: str, x: Value, weight: Value) -> Value:
    """``aten.mm`` and ``aten.matmul``."""
    return build.linear(x, build.constant(weight, "right operand"), None, name)


# ---------------------------------------------------------------- pooling


def max_pool(build: Builder, name: str, x: Value, size: Any, *window: Any) -> Value:
    """``aten.max_pool2d``; window is stride, padding, dilation, ceil_mode."""
    stride, padding, dilation, ceil_mode = filled(window, ((), 0, 1, False))
    full = Window(_pair(size), _pair(stride or size), _sides(padding), _pair(dilation), ceil_mode)
    return build.max_pool2d(x, full, name)


def max_pool_with_indices(build: Builder, name: str, x: Value, size: Any, *window: Any) -> Value:
    """``aten.max_pool2d_with_indices``, without the indices."""
    return (max_pool(build, name, x, size, *window),)


def avg_pool(build: Builder, name: str, x: Value, size: Any, *window: Any) -> Value:
    """``aten.avg_pool2d``; window is stride, padding, ceil_mode, count_include_pad, divisor."""
    stride, padding, ceil_mode, counted, divisor = filled(window, ((), 0, False, True, None))
    if divisor is not None:
        raise Refused(f"divisor_override={divisor} is not supported")
    full = Window(_pair(size), _pair(stride or size), _sides(padding), (1, 1), ceil_mode)
    return build.avg_pool2d(x, full, counted, name)


def adaptive_avg_pool(build: Builder, name: str, x: Value, output: Any) -> Value:
    """``aten.adaptive_avg_pool2d`` to one cell or an even grid."""
    if tuple(output) == (1, 1):
        return build.mean(x, (2, 3), True, name)
    height, width = extents.image(x)
    if not isinstance(height, int) or not isinstance(width, int):
        raise Refused("pools an image of open size to a grid")
    rows, columns = (
        extent if size is None else int(size)
        for size, extent in zip(output, (height, width), strict=True)
    )
    if height % rows or width % columns:
        raise Refused(f"pools {height}x{width} to {rows}x{columns}, which does not divide evenly")
    size = (height // rows, width // columns)
    return build.avg_pool2d(x, Window(size, size), False, name)


def total(
    build: Builder, name: str, x: Value, axes: Any = None, keepdims: bool = False, **options: Any
) -> Value:
    """``aten.sum``; the only option is dtype."""
    if options.get("dtype") not in {None, torch.float32}:
        raise Refused(f"computes in {options['dtype']}")
    return build.emit(relax.op.sum(x, [axes] if isinstance(axes, int) else axes, keepdims), name)


def mean(
    build: Builder, name: str, x: Value, axes: Any = None, keepdims: bool = False, **options: Any
) -> Value:
    """``aten.mean``; the only option is dtype."""
    if options.get("dtype") not in {None, torch.float32}:
        raise Refused(f"computes in {options['dtype']}")
    return build.mean(x, [axes] if isinstance(axes, int) else axes, keepdims, name)
