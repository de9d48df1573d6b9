"""Attention of com.microsoft: projections, masks, heads and rotary positions, spelled out.

Everything becomes  softmax(Q·Kᵀ·scale + mask)·V  per head, on tensors (batch, heads, length, size).
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from tvm import relax

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value, dtype_of
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_node import Node


def heads_apart(build: Builder, x: Value, heads: int, name: str) -> Value:
    """(batch, length, heads·size) as (batch, heads, length, size)."""
    batch, length, width = extents.shape(x)
    split = build.reshape(x, [batch, length, heads, width // heads], f"{name}.split")
    return build.transpose(split, (0, 2, 1, 3), f"{name}.heads")


def heads_together(build: Builder, x: Value, name: str) -> Value:
    """(batch, heads, length, size) as (batch, length, heads·size)."""
    batch, heads, length, size = extents.shape(x)
    turned = build.transpose(x, (0, 2, 1, 3), f"{name}.order")
    return build.reshape(turned, [batch, length, heads * size], name)


def attend(node: Node, build: Builder, qkv: list[Value], masks: list[Value]) -> Value:
    """The attention of separate heads, with masks that are added to the scores."""
    q, k, v = qkv
    scale = float(node.attr("scale", 0.0)) or 1 / sqrt(int(extents.shape(q)[3]))  # type: ignore[arg-type]
    turned = build.transpose(k, (0, 1, 3, 2), f"{node.name}.keys")
    scores = general.matmul(build, q, turned, f"{node.name}.scores")
    scores = node.op("Mul.scale", scores, scale)
    for mask in masks:
        scores = node.op("Add.mask", scores, mask)
    weights = build.softmax(scores, -1, f"{node.name}.weights")
    return general.matmul(build, weights, v, f"{node.name}.mixed")


def causal_mask(node: Node, build: Builder, rows: Any, columns: Any) -> Value:
    """What keeps a position, one of the last ``rows``, from seeing those behind it."""
    hidden = np.float32(node.attr("mask_filter_value", -10000.0))
    if isinstance(rows, int) and isinstance(columns, int):
        allowed = np.tril(np.ones((rows, columns), bool), columns - rows)
        return np.where(allowed, np.float32(0), hidden)
    own = general.steps(build, columns - rows, columns, f"{node.name}.own")
    column = node.op("Unsqueeze.own", own, np.array([1]))
    seen = node.op(
        "LessOrEqual.seen", general.steps(build, 0, columns, f"{node.name}.every"), column
    )
    return build.where(seen, np.float32(0), hidden, f"{node.name}.future")


def padding_mask(node: Node, build: Builder, mask: Value, columns: Any) -> Value:
    """A mask of tokens (batch, length), of rows, or of lengths, as what is added to the scores."""
    if mask is None:
        return None
    rank = extents.rank(mask)
    if rank == 1:
        if extents.shape(mask) == [1]:
            raise Refused("has a mask of one length; give a mask of tokens")
        steps = np.arange(columns, dtype=np.int32).reshape(1, -1)
        column = build.unsqueeze(mask, [1], f"{node.name}.lengths")
        seen = build.binary("greater", column, steps, f"{node.name}.seen")
        mask = seen
    elif rank not in (2, 3, 4):
        raise Refused(f"has a mask of {rank} axes")
    rank = extents.rank(mask)
    if rank == 2:
        mask = build.unsqueeze(mask, [1, 2], f"{node.name}.mask")
    elif rank == 3:
        mask = build.unsqueeze(mask, [1], f"{node.name}.mask")
    seen = (
        mask
        if dtype_of(mask) == "bool"
        else (build.binary("not_equal", mask, 0, f"{node.name}.seen"))
    )
    hidden = np.float32(node.attr("mask_filter_value", -10000.0))
    return build.where(seen, np.float32(0), hidden, f"{node.name}.hidden")


def _refuse(node: Node, *operands: tuple[int, str]) -> None:
    for index, what in operands:
        if node.input(index) is not None:
            raise Refused(f"{what} is not supported")


def attention(node: Node, build: Builder) -> Value:
    """``Attention``: one product gives query, key and value."""
    x, weight, bias, mask = (node.input(i) for i in range(4))
    _refuse(node, (6, "a past length"))
    heads, sizes = node.attrs["num_heads"], node.attr("qkv_hidden_sizes")
    width = int(extents.shape(weight)[1])  # type: ignore[arg-type]
    sizes = list(sizes) if sizes else [width // 3] * 3
    projected = build.linear(x, weight, bias, f"{node.name}.projection")
    ends = np.cumsum(sizes).tolist()
    q, k, v = (
        heads_apart(build, general.cut(build, projected, {2: span}, f"{node.name}.{part}"), heads,
                    f"{node.name}.{part}")
        for part, span in zip("qkv", zip([0, *ends[:2]], ends, strict=True), strict=True)
    )  # fmt: skip
    k, v = (
        _behind(build, _half(node, build, i), new, f"{node.name}.cache")
        for i, new in enumerate((k, v))
    )
    masks = _masks(node, build, q, k, mask)
    if node.input(5) is not None:
        masks.append(node.input(5))
    present = None
    if any(node.read[1:]):
        parts = [build.unsqueeze(x, [0], f"{node.name}.half") for x in (k, v)]
        present = build.concat(parts, 0, f"{node.name}.present")
    return heads_together(build, attend(node, build, [q, k, v], masks), node.name), present


def _half(node: Node, build: Builder, index: int) -> Value:
    """The keys (0) or values (1) of a past state (2, batch, heads, length, size)."""
    past = node.input(4)
    if past is None:
        return None
    half = general.cut(build, past, {0: (index, index + 1)}, f"{node.name}.past")
    return build.squeeze(half, [0], f"{node.name}.past")


def _behind(build: Builder, past: Value, new: Value, name: str) -> Value:
    return new if past is None else build.concat([past, new], 2, name)


def _masks(node: Node, build: Builder, q: Value, k: Value, mask: Value) -> list[Value]:
    rows, columns = extents.shape(q)[2], extents.shape(k)[2]
    found = [padding_mask(node, build, mask, columns)]
    if node.attr("unidirectional", 0):
        found.append(causal_mask(node, build, rows, columns))
    return [m for m in found if m is not None]


def multi_head_attention(node: Node, build: Builder) -> Value:
    """``MultiHeadAttention`` on projected query, key and value."""
    q, k, v, bias, mask, beside = (node.input(i) for i in range(6))
    _refuse(node, (8, "a cache of fixed length"), (9, "a search by beams"))
    heads = node.attrs["num_heads"]
    parts = [q, k, v]
    if k is None:
        if extents.rank(q) != 5:
            raise Refused("has neither a key nor packed query, key and value")
        parts = [
            build.squeeze(general.cut(build, q, {3: (i, i + 1)}, f"{node.name}.{i}"), [3],
                          f"{node.name}.part")
            for i in range(3)
        ]  # fmt: skip
        parts = [build.transpose(p, (0, 2, 1, 3), f"{node.name}.heads") for p in parts]
    elif extents.rank(q) != 3:
        raise Refused("packs its operands in a way that is not supported")
    else:
        widths = [extents.shape(p)[-1] for p in parts]
        if bias is not None:
            ends = [widths[0], widths[0] + widths[1], widths[0] + widths[1] + widths[2]]
            spans = zip([0, *ends[:2]], ends, strict=True)
            parts = [node.op("Add.bias", p, general.cut(build, bias, {0: span}, f"{node.name}.bias")
                             if isinstance(bias, relax.Var) else bias[span[0] : span[1]])
                     for p, span in zip(parts, spans, strict=True)]  # fmt: skip
        parts = [
            p if extents.rank(p) == 4 else heads_apart(build, p, heads, f"{node.name}.{i}")
            for i, p in enumerate(parts)
        ]
    k, v = (
        _behind(build, node.input(6 + i), new, f"{node.name}.cache")
        for i, new in enumerate(parts[1:])
    )
    masks = _masks(node, build, parts[0], k, mask)
    if beside is not None:
        masks.append(beside)
    mixed = attend(node, build, [parts[0], k, v], masks)
    return heads_together(build, mixed, node.name), k, v


def rotary_embedding(node: Node, build: Builder) -> Value:
    """Turns pairs of elements by angles of their position, with tables of cosines and sines."""
    x, places, *tables = node.inputs[:4]
    heads, packed = node.attr("num_heads", 0), extents.rank(x) == 3
    if packed:
        if not heads:
            heads = int(extents.shape(x)[2]) // (2 * int(extents.shape(tables[0])[1]))  # type: ignore[arg-type]
        x = heads_apart(build, x, heads, node.name)
    if extents.rank(places) == 1:  # where the first token stands
        each = general.steps(build, 0, extents.shape(x)[2], f"{node.name}.steps")
        first = node.op("Unsqueeze.first", places, np.array([0]))
        places = node.op("Add.places", build.cast(first, "int64", f"{node.name}.first"), each)
    turned = turned_by_places(node, build, x, places, tables)
    return heads_together(build, turned, node.name) if packed else turned


def turned_by_places(
    node: Node, build: Builder, x: Value, places: Value, tables: list[Value]
) -> Value:
    """Heads (batch, heads, length, size) turned by the angles of their tokens' places.

    Args:
        node: whose attributes say how much of a head is turned, and in which order.
        build: the builder.
        x: the heads.
        places: int64 (batch or 1, length).
        tables: cosines and sines (places, half of what is turned).
    """
    size = extents.shape(x)[3]
    half = int(extents.shape(tables[0])[1])  # type: ignore[arg-type]
    turning = 2 * half
    if isinstance(size, int) and turning > size:
        raise Refused(f"turns {turning} elements of heads of {size}")
    cos, sin = (
        node.op("Unsqueeze.table", node.op("Gather.angle", t, places), np.array([1]))
        for t in tables
    )
    head = general.cut(build, x, {3: (0, turning)}, f"{node.name}.turned")
    turned = _turned(node, build, head, (cos, sin), half)
    if turning != size:
        rest = general.cut(build, x, {3: (turning, size)}, f"{node.name}.rest")
        turned = build.concat([turned, rest], 3, f"{node.name}.whole")
    return turned


def _interleaved(node: Node) -> bool:
    return bool(node.attr("interleaved", 0) or node.attr("rotary_interleaved", 0))


def _turned(node: Node, build: Builder, x: Value, angle: tuple[Value, Value], half: int) -> Value:
    """(a, b) -> (a·cos - b·sin, a·sin + b·cos), of halves or of neighbours."""
    cos, sin = angle
    if _interleaved(node):
        first = general.take(build, x, np.arange(0, 2 * half, 2), 3, f"{node.name}.even")
        second = general.take(build, x, np.arange(1, 2 * half, 2), 3, f"{node.name}.odd")
    else:
        first = general.cut(build, x, {3: (0, half)}, f"{node.name}.first")
        second = general.cut(build, x, {3: (half, 2 * half)}, f"{node.name}.second")
    a = node.op("Sub.a", node.op("Mul.ac", first, cos), node.op("Mul.bs", second, sin))
    b = node.op("Add.b", node.op("Mul.as", first, sin), node.op("Mul.bc", second, cos))
    joined = build.concat([a, b], 3, f"{node.name}.pairs")
    if not _interleaved(node):
        return joined
    order = np.arange(2 * half).reshape(2, half).T.reshape(-1)
    return general.take(build, joined, order, 3, f"{node.name}.interleaved")
