"""GroupQueryAttention of com.microsoft: few keys for many queries, behind those of earlier calls.

    present = past with the new keys written from place p on         p = seqlens_k + 1 - length
    y = softmax(Q·presentᵀ·scale where t <= p + s, else 0)·present   s: place among the new ones

Where the past grows (past + length places) the new keys go behind it, and over the padding of the
shorter sequences of a batch; a past of fixed length is a buffer that is written into.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_attention import heads_apart, heads_together, turned_by_places
from nybble.frontend.onnx_node import Node


def group_query_attention(node: Node, build: Builder) -> Value:
    """``GroupQueryAttention``: attention with caches, masked by what each sequence holds."""
    _check(node)
    q, k, v = _projected(node, build)
    pasts = node.input(3), node.input(4)
    length = extents.shape(q)[2]
    begin = _begin(node, build, length, pasts[0])
    if node.attr("do_rotary", 0):
        places = node.input(9)
        if places is None:
            places = node.op(
                "Add.places", begin, general.steps(build, 0, length, f"{node.name}.steps")
            )
        tables = [node.input(7), node.input(8)]
        q, k = (turned_by_places(node, build, x, places, tables) for x in (q, k))
    keys, values = (
        _appended(node, build, past, new, begin)
        for past, new in zip(pasts, (k, v), strict=True)
    )  # fmt: skip
    mask = _mask(node, build, begin, length, extents.shape(keys)[2])
    return _mixed(node, build, [q, keys, values], mask), keys, values


def _check(node: Node) -> None:
    unknown = [
        what for what, is_there in (
            ("attention sinks", node.input(11) is not None or node.attr("smooth_softmax", 0)),
            ("quantized caches", {node.attr(f"{x}_quant_type", "NONE") for x in "kv"} != {"NONE"}),
            ("scores as an output", node.attr("qk_output", 0)),
        ) if is_there
    ]  # fmt: skip
    if unknown:
        raise Refused(f"{' and '.join(unknown)} are not supported")


def _projected(node: Node, build: Builder) -> list[Value]:
    """Query, key and value (batch, heads, length, size), apart or in one operand."""
    heads, shared = node.attrs["num_heads"], node.attrs["kv_num_heads"]
    parts = [node.input(i) for i in range(3)]
    if parts[1] is None:
        size = extents.shape(parts[0])[2] // (heads + 2 * shared)
        ends = [heads * size, (heads + shared) * size, (heads + 2 * shared) * size]
        parts = [
            general.cut(build, parts[0], {2: span}, f"{node.name}.{part}")
            for part, span in zip("qkv", zip([0, *ends[:2]], ends, strict=True), strict=True)
        ]
    counts = (heads, shared, shared)
    return [
        heads_apart(build, x, count, f"{node.name}.{part}")
        for part, x, count in zip("qkv", parts, counts, strict=True)
    ]


def _begin(node: Node, build: Builder, length: Any, past: Value) -> Value:
    """Where each sequence's new keys begin, (batch, 1): 0 for a first call."""
    last = build.cast(node.input(5), "int64", f"{node.name}.last")
    column = node.op("Reshape.column", last, np.array([-1, 1]))
    room = 0 if past is None else extents.shape(past)[2]
    if room == 0:
        return build.binary("multiply", column, 0, f"{node.name}.begin")
    before = _shifted(build, column, 1 - length, f"{node.name}.before")
    return build.binary("maximum", before, 0, f"{node.name}.begin")


def _shifted(build: Builder, x: Value, by: Any, name: str) -> Value:
    """Integers plus an extent, which may be open."""
    if not isinstance(by, extents.Symbolic):
        return build.binary("add", x, int(by), name)
    return build.binary("add", x, general.steps(build, by, by + 1, f"{name}.by"), name)


def _appended(node: Node, build: Builder, past: Value, new: Value, begin: Value) -> Value:
    """The cache with the new keys or values in it."""
    if past is None:
        return new
    batch, _, length, _ = extents.shape(new)
    room, total = extents.shape(past)[2], node.input(6)
    grows = isinstance(total, np.ndarray) and total.reshape(-1)[0] == room + length
    if not grows and isinstance(room, extents.Symbolic):
        raise Refused(
            "its total length is not known to be that of the past and the new tokens. Give the "
            "mask such a size: shapes={'attention_mask': (None, 'past + length'), …}"
        )
    whole = build.concat([past, new], 2, f"{node.name}.cache") if grows else past
    if grows and batch == 1:
        return whole
    places = node.op("Add.row", begin, general.steps(build, 0, length, f"{node.name}.new"))
    rows = node.op("Unsqueeze.row", places, np.array([1]))
    return general.written(build, whole, 2, rows, new, f"{node.name}.cache")


def _mask(node: Node, build: Builder, begin: Value, length: Any, total: Any) -> Value:
    """0 where a new token may look, minus infinity elsewhere: (batch, 1, length, total)."""
    rows = node.op("Add.rows", begin, general.steps(build, 0, length, f"{node.name}.rows"))
    rows = node.op("Unsqueeze.rows", rows, np.array([1, 3]))
    columns = general.steps(build, 0, total, f"{node.name}.columns")
    seen = node.op("LessOrEqual.seen", columns, rows)
    window = node.attr("local_window_size", -1)
    if window > 0:
        first = build.binary("subtract", rows, window, f"{node.name}.first")
        seen = node.op("And.seen", seen, node.op("Greater.near", columns, first))
    return build.where(seen, np.float32(0), np.float32(-np.inf), f"{node.name}.mask")


def _mixed(node: Node, build: Builder, qkv: list[Value], mask: Value) -> Value:
    """The attention; heads that share keys are one product of more rows."""
    q, k, v = qkv
    batch, heads, length, size = extents.shape(q)
    shared = extents.shape(k)[1]
    scale, cap = float(node.attr("scale", 0.0)), float(node.attr("softcap", 0.0))
    rows = [batch, shared, (heads // shared) * length, size]
    q = build.reshape(q, rows, f"{node.name}.shared")
    turned = build.transpose(k, (0, 1, 3, 2), f"{node.name}.keys")
    scores = general.matmul(build, q, turned, f"{node.name}.scores")
    scores = node.op("Mul.scale", scores, scale or 1 / sqrt(int(size)))  # type: ignore[arg-type]
    scores = build.reshape(scores, [batch, heads, length, extents.shape(k)[2]], f"{node.name}.each")
    if cap:
        scores = node.op("Mul.cap", node.op("Tanh", node.op("Mul.small", scores, 1 / cap)), cap)
    for added in (mask, node.input(10)):
        scores = scores if added is None else node.op("Add.mask", scores, added)
    weights = build.softmax(scores, -1, f"{node.name}.weights")
    weights = build.reshape(weights, [*rows[:3], extents.shape(k)[2]], f"{node.name}.together")
    mixed = general.matmul(build, weights, v, f"{node.name}.mixed")
    apart = build.reshape(mixed, [batch, heads, length, size], f"{node.name}.apart")
    return heads_together(build, apart, node.name)
