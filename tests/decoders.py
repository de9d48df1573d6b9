"""Small decoders with caches of keys and values, in the forms in which people deploy them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tests.architectures import Norm
from tests.models import SEED, quiet

WORDS, WIDTH, HEADS, GROUPS, SIZE = 40, 32, 2, 1, 16
CACHES = ("past_key_values.0.key", "past_key_values.0.value")
PRESENT = ("present.0.key", "present.0.value")
SHAPES = {
    "input_ids": (None, "length"), "position_ids": (None, "length"),
    "attention_mask": (None, "past + length"), "past_*": (None, GROUPS, "past", SIZE),
}  # fmt: skip
"""What stays open; ``past_*`` are the caches, whatever the format calls them."""


class Decoder(nn.Module):
    """One block, as transformers writes Llama: caches grow by concatenation.

    Args:
        spelled: masks and attention step by step, as before scaled_dot_product_attention.
    """

    def __init__(self, spelled: bool = False) -> None:
        super().__init__()
        self.spelled = spelled
        self.word, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.norms = nn.ModuleList(Norm(WIDTH) for _ in range(3))
        wide = GROUPS * SIZE
        self.q, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, wide, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, 64, bias=False) for _ in range(2))
        self.down = nn.Linear(64, WIDTH, bias=False)
        self.frequency: Tensor
        self.register_buffer("frequency", 100 ** (-torch.arange(0, SIZE, 2) / SIZE))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor,
                *past: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
        x, (n, t) = self.word(input_ids), input_ids.shape
        before = past[0].shape[2]
        mask = (spelled_mask if self.spelled else truth)(attention_mask, before, t)
        angle = (self.frequency[None, :, None] @ position_ids[:, None, :].float()).transpose(1, 2)
        angle = torch.cat([angle, angle], -1)[:, None]
        h = self.norms[0](x)
        q, k, v = (p(h).view(n, t, -1, SIZE).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = (a * angle.cos() + half_turned(a) * angle.sin() for a in (q, k))
        keys, values = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        every, each = (repeated(a, HEADS // GROUPS) for a in (keys, values))
        if self.spelled:
            scores = q @ every.transpose(2, 3) / SIZE**0.5 + mask
            mixed = F.softmax(scores, -1, dtype=torch.float32) @ each
        else:
            mixed = F.scaled_dot_product_attention(q, every, each, attn_mask=mask)
        x = x + self.o(mixed.transpose(1, 2).reshape(n, t, -1))
        h = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(self.norms[2](x)), keys, values


def half_turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


def repeated(x: Tensor, times: int) -> Tensor:
    n, heads, t, size = x.shape
    return x[:, :, None].expand(n, heads, times, t, size).reshape(n, heads * times, t, size)


def spelled_mask(mask: Tensor, before: int, t: int) -> Tensor:
    """Lowest floats in a tensor that is written into: a ScatterND in ONNX."""
    total, least = before + t, torch.finfo(torch.float32).min
    hidden = torch.triu(torch.full((t, total), least), diagonal=1)
    hidden = hidden * (torch.arange(total) > torch.arange(before, total).reshape(-1, 1))
    hidden = hidden[None, None].expand(mask.shape[0], 1, -1, -1).clone()
    seen = mask.shape[-1]
    padding = hidden[:, :, :, :seen] + mask[:, None, None, :] == 0
    hidden[:, :, :, :seen] = hidden[:, :, :, :seen].masked_fill(padding, least)
    return hidden


def truth(mask: Tensor, before: int, t: int) -> Tensor:
    """Truth values, as transformers does now."""
    places = torch.arange(before + t)
    own = torch.arange(before, before + t)
    return (places[None, None, None] <= own[None, None, :, None]) & mask.bool()[:, None, None]


class Buffered(nn.Module):
    """Attention whose caches have a fixed length and are written into at places.

    Args:
        scatter: write by ``scatter``, else by an assignment to a copy.
    """

    def __init__(self, scatter: bool) -> None:
        super().__init__()
        self.scatter = scatter
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)

    def put(self, cache: Tensor, places: Tensor, new: Tensor) -> Tensor:
        if self.scatter:
            return cache.scatter(2, places[None, None, :, None].expand_as(new), new)
        cache = cache.clone()
        cache[:, :, places] = new
        return cache

    def forward(self, x: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> Any:
        n, t, _ = x.shape
        q, k, v = (p(x).view(n, t, -1, 8).transpose(1, 2) for p in (self.q, self.k, self.v))
        keys, values = self.put(keys, places, k), self.put(values, places, v)
        mask = torch.arange(keys.shape[2])[None] <= places[:, None]
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        return mixed.transpose(1, 2).reshape(n, t, 16), keys, values


def drawn(net: nn.Module) -> nn.Module:
    """The module in eval mode, with weights from the tests' seed."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weights in net.parameters():
            spread = weights.shape[-1] ** -0.5 if weights.ndim > 1 else 0.2
            weights.copy_(torch.randn(weights.shape, generator=generator) * spread)
            if weights.ndim == 1:
                weights.add_(1)
    return net.eval()


def inputs(tokens: Any, *caches: Any) -> tuple[Tensor, ...]:
    """What a decoder takes for tokens (batch, length); without caches, empty ones."""
    ids = torch.as_tensor(tokens)
    n, t = ids.shape
    past = [torch.as_tensor(c) for c in caches] or [torch.zeros(n, GROUPS, 0, SIZE)] * 2
    before = past[0].shape[2]
    places = torch.arange(before, before + t).repeat(n, 1)
    return ids, torch.ones(n, before + t, dtype=torch.int64), places, *past


def named(values: Any) -> dict[str, np.ndarray]:
    """The inputs by the names that optimum gives them."""
    names = ("input_ids", "attention_mask", "position_ids", *CACHES)
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def as_optimum(net: nn.Module) -> bytes:
    """A decoder as optimum exports it: named inputs and outputs, every size but the heads' open."""
    buffer: Any = io.BytesIO()
    first = ["input_ids", "attention_mask", "position_ids"]
    open_ = {
        "input_ids": {0: "batch", 1: "length"}, "position_ids": {0: "batch", 1: "length"},
        "attention_mask": {0: "batch", 1: "total"}, "logits": {0: "batch", 1: "length"},
        **{name: {0: "batch", 2: "past"} for name in CACHES},
        **{name: {0: "batch", 2: "total"} for name in PRESENT},
    }  # fmt: skip
    example = inputs(torch.ones(2, 3, dtype=torch.int64), *torch.zeros(2, 2, GROUPS, 4, SIZE))
    with quiet():
        torch.onnx.export(
            net, example, buffer, dynamo=False, opset_version=17, dynamic_axes=open_,
            input_names=[*first, *CACHES], output_names=["logits", *PRESENT],
        )  # fmt: skip
    return bytes(buffer.getvalue())


def as_model_builder(net: Any, room: int | str = "past") -> onnx.ModelProto:
    """The same decoder as ONNX Runtime's model builder writes it: fused operators, no positions.

    Args:
        net: a `Decoder`.
        room: of the caches: a name where they grow, a number where they are written into.
    """
    weights: dict[str, Any] = {
        "table": net.word.weight, "one": np.array([1]), "axis": np.array(1),
        **{k: getattr(net, k).weight.T for k in ("q", "k", "v", "o", "gate", "up", "down", "head")},
        **{f"norm{i}": norm.weight for i, norm in enumerate(net.norms)},
    }  # fmt: skip
    angle = np.arange(32)[:, None] * net.frequency.numpy()
    weights |= {"cos": np.cos(angle), "sin": np.sin(angle)}
    rms = {"epsilon": 1e-6, "domain": "com.microsoft"}
    nodes = [
        _node("ReduceSum", "attention_mask one", "sum", keepdims=0),
        _node("Sub", "sum one", "less"), _node("Cast", "less", "last", to=TensorProto.INT32),
        _node("Shape", "attention_mask", "shape"), _node("Gather", "shape axis", "size"),
        _node("Cast", "size", "total", to=TensorProto.INT32),
        _node("Gather", "table input_ids", "x"),
        helper.make_node("SimplifiedLayerNormalization", ["x", "norm0"], ["h"], epsilon=1e-6),
        *(_node("MatMul", f"h {p}", f"{p}_") for p in "qkv"),
        _node("GroupQueryAttention", f"q_ k_ v_ {' '.join(CACHES)} last total cos sin",
              f"mixed {' '.join(PRESENT)}", do_rotary=1, num_heads=HEADS, kv_num_heads=GROUPS,
              domain="com.microsoft"),
        _node("MatMul", "mixed o", "out"),
        _node("SkipSimplifiedLayerNormalization", "x out norm1", "h1 _ _ x1", **rms),
        _node("MatMul", "h1 gate", "g"), _node("Sigmoid", "g", "s"), _node("Mul", "g s", "act"),
        _node("MatMul", "h1 up", "u"), _node("Mul", "act u", "wide"),
        _node("MatMul", "wide down", "narrow"),
        _node("SkipSimplifiedLayerNormalization", "x1 narrow norm2", "h2", **rms),
        _node("MatMul", "h2 head", "logits"),
    ]  # fmt: skip
    cache = ("batch", GROUPS, room, SIZE)
    kinds = [("input_ids", TensorProto.INT64, ("batch", "length")),
             ("attention_mask", TensorProto.INT64, ("batch", "total")),
             *((name, TensorProto.FLOAT, cache) for name in CACHES)]  # fmt: skip
    graph = helper.make_graph(
        nodes, "decoder", [helper.make_tensor_value_info(*kind) for kind in kinds],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("logits", *PRESENT)],
        [numpy_helper.from_array(_array(v), k) for k, v in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _node(op: str, inputs_: str, outputs: str, **attrs: Any) -> onnx.NodeProto:
    names = ["" if name == "_" else name for name in outputs.split()]
    return helper.make_node(op, inputs_.split(), names, name=outputs.split(maxsplit=1)[0], **attrs)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().numpy()
    return np.ascontiguousarray(value, np.float32 if value.dtype.kind == "f" else value.dtype)
