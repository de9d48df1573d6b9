"""ATen operators that transformers are made of, as float Relax.

Each takes (builder, node name) and then the operator's own arguments. Attention becomes

    softmax(Q·Kᵀ·scale + mask)·V
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch
from tvm import relax

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value, dtype_of
from nybble.frontend.extents import Refused
from nybble.frontend.torch_layers import filled

aten = torch.ops.aten


def layer_norm(
    build: Builder, name: str, x: Value, size: Sequence[int], *weight_bias_epsilon: Any
) -> Value:
    """``aten.layer_norm``: weight, bias, epsilon."""
    weight, bias, epsilon, *_ = filled(weight_bias_epsilon, (None, None, 1e-5))
    gamma = np.ones(size, np.float32) if weight is None else build.weights(weight, "weight")
    beta = np.zeros(size, np.float32) if bias is None else build.weights(bias, "bias")
    axes = list(range(extents.rank(x) - len(size), extents.rank(x)))
    operands = [build.tensor(value, name) for value in (x, gamma, beta)]
    return build.emit(relax.op.nn.layer_norm(*operands, axes, epsilon), name)


def rms_norm(
    build: Builder, name: str, x: Value, size: Sequence[int], weight: Value = None,
    epsilon: float | None = None,
) -> Value:  # fmt: skip
    """``aten.rms_norm``; without an epsilon, float32's own."""
    gamma = np.ones(size, np.float32) if weight is None else build.weights(weight, "weight")
    axes = list(range(extents.rank(x) - len(size), extents.rank(x)))
    small = float(np.finfo(np.float32).eps) if epsilon is None else epsilon
    return build.emit(relax.op.nn.rms_norm(x, build.tensor(gamma, name), axes, small), name)


def gelu(build: Builder, name: str, x: Value, approximate: str = "none") -> Value:
    """``aten.gelu``."""
    function = relax.op.nn.gelu_tanh if approximate == "tanh" else relax.op.nn.gelu
    return build.emit(function(x), name)


def attention(build: Builder, name: str, *operands: Any, **options: Any) -> Value:
    """``aten.scaled_dot_product_attention``: q, k, v (…, length, size), mask, dropout, is_causal.

    Args:
        build: the builder.
        name: of the result.
        operands: the last three may be missing.
        options: scale, enable_gqa.
    """
    q, k, v, *others = operands
    mask, dropout, is_causal = filled(others, (None, 0.0, False))
    if dropout:
        raise Refused("drops values at random; export the network in eval mode")
    rank, whole = extents.rank(k), extents.shape(q)
    is_shared = bool(options.get("enable_gqa"))
    order = [*range(rank - 2), rank - 1, rank - 2]
    turned = build.transpose(k, order, f"{name}.keys")
    together, columns = _together(q, k) if is_shared else [], extents.shape(k)[-2]
    if is_shared:
        q = build.reshape(q, [*together, whole[-1]], f"{name}.shared")
    scores = general.matmul(build, q, turned, f"{name}.scores")
    if is_shared:
        scores = build.reshape(scores, [*whole[:-1], columns], f"{name}.apart")
    scale = options.get("scale")
    size: Any = extents.shape(q)[-1]
    factor = 1 / sqrt(size) if scale is None else scale
    scores = build.binary("multiply", scores, factor, f"{name}.scale")
    if is_causal:
        mask = _causal(build, extents.shape(scores), name)
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        mask = np.where(mask, np.float32(0), np.float32(-np.inf))
    if isinstance(mask, relax.Var) and dtype_of(mask) == "bool":
        mask = build.where(mask, np.float32(0), np.float32(-np.inf), f"{name}.seen")
    if mask is not None:
        scores = build.binary("add", scores, mask, f"{name}.mask")
    weights = build.softmax(scores, -1, f"{name}.weights")
    if not is_shared:
        return general.matmul(build, weights, v, name)
    weights = build.reshape(weights, [*together, columns], f"{name}.together")
    mixed = general.matmul(build, weights, v, f"{name}.mixed")
    return build.reshape(mixed, [*whole[:-1], extents.shape(v)[-1]], f"{name}.result")


def _together(q: Value, k: Value) -> list[Any]:
    """(…, heads of k, rows) with the queries that share keys as rows of one head."""
    *outer, heads, length, _ = extents.shape(q)
    shared: Any = extents.shape(k)[-3]
    return [*outer, shared, (heads // shared) * length]


def _causal(build: Builder, sizes: Sequence[Any], name: str) -> Any:
    """0 where a row may look, minus infinity where it would look ahead."""
    rows, columns = sizes[-2:]
    if isinstance(rows, int) and isinstance(columns, int):
        return np.tril(np.ones((rows, columns), bool))
    hidden = general.filled(build, [rows, columns], np.float32(-np.inf), f"{name}.hidden")
    return build.emit(relax.op.triu(hidden, 1), f"{name}.future")


def matmul(build: Builder, name: str, left: Value, right: Value) -> Value:
    """``aten.matmul`` and ``aten.bmm``: of two computed tensors, or by a constant matrix."""
    if not isinstance(right, relax.Var) and np.ndim(right) == 2 and extents.rank(left) >= 2:
        return build.linear(left, right, None, name)
    return general.matmul(build, left, right, name)


# ---------------------------------------------------------------- parts of a tensor


def embedding(build: Builder, name: str, table: Value, numbers: Value, *_: Any) -> Value:
    """``aten.embedding``: rows of a table; how gradients flow to it is no matter here."""
    return general.take(build, build.weights(table, "table"), numbers, 0, name)


def arange(build: Builder, name: str, *bounds: Any, **_options: Any) -> Value:
    """``aten.arange`` up to an open size, by whole numbers: (end), (start, end), (…, step)."""
    start, end, step = (0, *bounds, 1) if len(bounds) == 1 else filled(bounds, (0, 0, 1))
    if not all(isinstance(bound, int | extents.Symbolic) for bound in (start, end, step)):
        raise Refused(f"counts from {start} to {end} by {step}")
    return build.emit(relax.op.arange(*extents.expressions([start, end, step]), "int64"), name)


def select(build: Builder, name: str, x: Value, axis: int, index: int) -> Value:
    """``aten.select``: one slice of an axis, which vanishes."""
    sizes = extents.shape(x)
    axis, size = axis % len(sizes), sizes[axis]
    if index < 0:
        if not isinstance(size, int):
            return general.take(build, x, np.asarray(index), axis, name)
        index += size
    one = general.cut(build, x, {axis: (index, index + 1)}, f"{name}.slice")
    return build.squeeze(one, [axis], name)


def sliced(build: Builder, name: str, x: Value, *span: Any) -> Value:
    """``aten.slice``: axis, start, end, step; ends beyond the axis are the axis's own."""
    axis, start, end, step = filled(span, (0, None, None, 1))
    sizes = extents.shape(x)
    axis, size = axis % len(sizes), sizes[axis]
    if start in (None, 0) and (end is None or end == size or _is_beyond(end)) and step == 1:
        return x
    begin = start or 0
    if isinstance(end, extents.Symbolic) and isinstance(begin, int) and begin >= 0:
        whole = build.tensor(x, f"{name}.whole", dtype_of(x))
        return general.cut(build, whole, {axis: (begin, end)}, name, step)
    if not isinstance(size, int):
        raise Refused("takes a part of an open axis")
    begin, stop, _ = slice(start, end).indices(size)
    return general.cut(build, x, {axis: (begin, max(begin, stop))}, name, step)


def _is_beyond(end: Any) -> bool:
    return isinstance(end, int) and end >= np.iinfo(np.int64).max


def split(build: Builder, name: str, x: Value, sizes: Any, axis: int = 0) -> list[Value]:
    """``aten.split``: parts of so many elements each, or of the sizes given."""
    rank, extent = extents.rank(x), extents.shape(x)[axis]
    if not isinstance(extent, int):
        raise Refused("splits an open axis")
    if isinstance(sizes, int):
        sizes = [min(sizes, extent - begin) for begin in range(0, extent, sizes)]
    ends = np.cumsum(sizes)
    return [
        general.cut(build, x, {axis % rank: (int(end - size), int(end))}, f"{name}.{i}")
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def chunk(build: Builder, name: str, x: Value, count: int, axis: int = 0) -> list[Value]:
    """``aten.chunk``: so many parts, the last one maybe smaller."""
    extent = extents.shape(x)[axis]
    if not isinstance(extent, int):
        raise Refused("splits an open axis")
    return split(build, name, x, -(-extent // count), axis)


def unbind(build: Builder, name: str, x: Value, axis: int = 0) -> list[Value]:
    """``aten.unbind``: every slice of an axis."""
    extent = extents.shape(x)[axis]
    if not isinstance(extent, int):
        raise Refused("splits an open axis")
    return [select(build, f"{name}.{i}", x, axis, i) for i in range(extent)]


def expand(build: Builder, name: str, x: Value, sizes: Sequence[Any], **_options: Any) -> Value:
    """``aten.expand``; -1 keeps an extent."""
    own: list[Any] = list(extents.shape(x))
    own = [1] * (len(sizes) - len(own)) + own
    target = [mine if isinstance(size, int) and size == -1 else size
              for mine, size in zip(own, sizes, strict=True)]  # fmt: skip
    return general.broadcast(build, x, target, name)


def unflatten(build: Builder, name: str, x: Value, axis: int, sizes: Sequence[Any]) -> Value:
    """``aten.unflatten``: one axis as several."""
    own = list(extents.shape(x))
    axis %= len(own)
    return build.reshape(x, [*own[:axis], *sizes, *own[axis + 1 :]], name)


CONVERTERS: dict[Any, Any] = {
    aten.arange.default: arange,
    aten.arange.start: arange,
    aten.arange.start_step: arange,
    aten.bmm.default: matmul,
    aten.chunk.default: chunk,
    aten.embedding.default: embedding,
    aten.expand.default: expand,
    aten.gelu.default: gelu,
    aten.layer_norm.default: layer_norm,
    aten.matmul.default: matmul,
    aten.rms_norm.default: rms_norm,
    aten.scaled_dot_product_attention.default: attention,
    aten.select.int: select,
    aten.slice.Tensor: sliced,
    aten.split.Tensor: split,
    aten.split_with_sizes.default: split,
    aten.unbind.int: unbind,
    aten.unflatten.int: unflatten,
}
