"""Operators of com.microsoft that ONNX Runtime's optimizer and torch's exporter write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nybble.frontend import extents, general
from nybble.frontend.build import Builder, Value
from nybble.frontend.extents import Refused
from nybble.frontend.onnx_attention import (
    attention,
    multi_head_attention,
    rotary_embedding,
)
from nybble.frontend.onnx_cache import group_query_attention
from nybble.frontend.onnx_node import Node
from nybble.frontend.onnx_reduce import normal, rms_normal

Convert = Callable[[Node, Builder], Value]


def _biased(node: Node, x: Value, bias: Value) -> Value:
    return x if bias is None else node.op("Add.bias", x, bias)


# ---------------------------------------------------------------- activations


def _gelu(approximate: str) -> Convert:
    """Gelu, BiasGelu and FastGelu; the second operand is a bias."""

    def convert(node: Node, _build: Builder) -> Value:
        return node.op("Gelu", _biased(node, node.input(0), node.input(1)), approximate=approximate)

    return convert


def _quick_gelu(node: Node, _build: Builder) -> Value:
    """The product x · sigmoid(alpha·x)."""
    return node.op("Swish", node.input(0), alpha=float(node.attr("alpha", 1.702)))


# ---------------------------------------------------------------- normalizations


def _simplified_norm(node: Node, build: Builder) -> Value:
    return rms_normal(node, build, node.inputs[0], node.inputs[1], node.attr("axis", -1))


def _skip_norm(simplified: bool) -> Convert:
    """Normalizes input + skip (+ bias); the fourth output is that sum."""

    def convert(node: Node, build: Builder) -> Value:
        scale = node.input(2)
        total = node.op("Add.skip", node.inputs[0], node.inputs[1])
        total = _biased(node, total, node.input(3 if simplified else 4))
        if simplified:
            y = rms_normal(node, build, total, scale, -1)
        else:
            last, epsilon = extents.rank(total) - 1, node.attr("epsilon", 1e-12)
            y = normal(node, build, [total, scale, node.input(3)], [last], epsilon)
        if any(node.read[1:3]):
            raise Refused("its mean and deviation are read, which are of training only")
        return y, None, None, total

    return convert


def _embed_layer_norm(node: Node, build: Builder) -> Value:
    """Word, position and segment embeddings, added and normalized; also the mask's lengths."""
    ids, segments, word, position, segment = (node.input(i) for i in range(5))
    gamma, beta, mask, places = (node.input(i) for i in range(5, 9))
    length = extents.shape(ids)[1]
    total = node.op("Gather.word", word, ids)
    if places is not None:
        total = node.op("Add.position", total, node.op("Gather.position", position, places))
    else:
        total = node.op("Add.position", total, np.asarray(position)[: int(length)])  # type: ignore[arg-type]
    if segments is not None and segment is not None:
        total = node.op("Add.segment", total, node.op("Gather.segment", segment, segments))
    y = normal(node, build, [total, gamma, beta], [2], node.attr("epsilon", 1e-12))
    counts = None
    if len(node.read) > 1 and node.read[1]:
        if mask is None:
            raise Refused("gives mask lengths without a mask")
        counts = node.op("ReduceSum.lengths", mask, np.array([1]), keepdims=0)
    return y, counts, total


# ---------------------------------------------------------------- products


def _fused_matmul(node: Node, _build: Builder) -> Value:
    left, right = node.inputs
    alpha = float(node.attr("alpha", 1.0))
    for place, value in enumerate((left, right)):
        rank = extents.rank(value)
        if node.attr("transBatchA" if place == 0 else "transBatchB", 0):
            raise Refused("transBatchA and transBatchB are not supported")
        if node.attr("transA" if place == 0 else "transB", 0):
            order = [*range(rank - 2), rank - 1, rank - 2]
            turned = node.op("Transpose.transpose", value, perm=order)
            left, right = (turned, right) if place == 0 else (left, turned)
    if alpha != 1 and isinstance(right, np.ndarray):
        right, alpha = right * np.float32(alpha), 1.0
    y = node.op("MatMul.product", left, right)
    return y if alpha == 1 else node.op("Mul.alpha", y, alpha)


def _fused_conv(node: Node, _build: Builder) -> Value:
    """Conv, then maybe a sum, then an activation."""
    attrs = dict(node.attrs)
    activation, given = attrs.pop("activation", None), attrs.pop("activation_params", None)
    y = node.op("Conv.conv", *node.inputs[:3], **attrs)
    if node.input(3) is not None:
        y = node.op("Add.sum", y, node.input(3))
    if activation is None:
        return y
    params: dict[str, Any] = {}
    if activation == "LeakyRelu" and given:
        params = {"alpha": float(given[0])}
    elif activation == "HardSigmoid" and given:
        params = {"alpha": float(given[0]), "beta": float(given[1])}
    elif activation == "Clip" and given:
        return node.op("Clip", y, float(given[0]), float(given[1]))
    return node.op(str(activation), y, **params)


def _fused_gemm(node: Node, _build: Builder) -> Value:
    attrs = {k: v for k, v in node.attrs.items() if not k.startswith("activation")}
    y = node.op("Gemm.gemm", *node.inputs, **attrs)
    return node.op(str(node.attr("activation")), y) if node.attr("activation") else y


def _bias_add(node: Node, _build: Builder) -> Value:
    """The sum x + bias + skip."""
    return node.op("Add.skip", node.op("Add.bias", node.inputs[0], node.inputs[1]), node.inputs[2])


def _bias_split_gelu(node: Node, build: Builder) -> Value:
    """Half of x + bias times the GELU of the other half."""
    total = _biased(node, node.inputs[0], node.input(1))
    size = extents.shape(total)[-1]
    last = extents.rank(total) - 1
    half = size // 2
    left, right = (
        general.cut(build, total, {last: span}, f"{node.name}.half")
        for span in ((0, half), (half, size))
    )
    return node.op("Mul", left, node.op("Gelu", right))


CONTRIB: dict[str, Convert] = {
    **{f"com.microsoft.{name}": convert for name, convert in {
        "Attention": attention,
        "BiasAdd": _bias_add,
        "BiasGelu": _gelu("none"),
        "BiasSplitGelu": _bias_split_gelu,
        "EmbedLayerNormalization": _embed_layer_norm,
        "FastGelu": _gelu("tanh"),
        "FusedConv": _fused_conv,
        "FusedGemm": _fused_gemm,
        "FusedMatMul": _fused_matmul,
        "Gelu": _gelu("none"),
        "GroupQueryAttention": group_query_attention,
        "MultiHeadAttention": multi_head_attention,
        "QuickGelu": _quick_gelu,
        "RotaryEmbedding": rotary_embedding,
        "SimplifiedLayerNormalization": _simplified_norm,
        "SkipLayerNormalization": _skip_norm(simplified=False),
        "SkipSimplifiedLayerNormalization": _skip_norm(simplified=True),
    }.items()},
    "SimplifiedLayerNormalization": _simplified_norm,
}  # fmt: skip
"""Operators by domain and name."""
