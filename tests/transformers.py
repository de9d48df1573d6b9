"""Transformers and gated networks of the tests and benchmarks; random weights of sane scale."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import SEED, settled


class Encoder(nn.Module):
    """One encoder block: attention and a perceptron, norms before (ViT) or behind them (BERT)."""

    def __init__(
        self, width: int, heads: int, norm_first: bool, approximate: str = "none",
        causal: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.causal, self.approximate = causal, approximate
        self.heads, self.norm_first = heads, norm_first
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(n, t, d))

    def perceive(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attend(self.norm1(x))
            return x + self.perceive(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.perceive(x))


class Bert(nn.Module):
    """One block of BERT as its authors wrote it: three projections, scores divided by √size."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-12), nn.LayerNorm(width, 1e-12)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def apart(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        return x.view(n, t, self.heads, d // self.heads).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (self.apart(layer(x)) for layer in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(-1, -2)) / (d // self.heads) ** 0.5
        mixed = torch.matmul(torch.softmax(scores, -1), v).permute(0, 2, 1, 3).reshape(n, t, d)
        x = self.norm1(self.dense(mixed) + x)
        return self.norm2(self.narrow(F.gelu(self.wide(x))) + x)


class Embedded(nn.Module):
    """BERT from token numbers: words, positions, a norm, one block."""

    def __init__(self, words: int, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(length, width)
        self.norm, self.block = nn.LayerNorm(width), Bert(width, heads)
        self.length = length

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.words(numbers) + self.positions(torch.arange(self.length))
        return self.block(self.norm(x))


class VisionTransformer(nn.Module):
    """A small ViT on images of (3, size, size): patches, a class token, positions, a head."""

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(0.5 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.5 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*[Encoder(width, heads, True) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Gated(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project (MobileNetV3)."""

    def __init__(self, channels: int, hidden: int, out: int, kernel: int, stride: int,
                 swish: bool, gate: bool) -> None:  # fmt: skip
        super().__init__()
        act: Callable[[], nn.Module] = nn.Hardswish if swish else nn.ReLU
        self.expand = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), act()
        )
        depth = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.depth = nn.Sequential(depth, nn.BatchNorm2d(hidden), act())
        few = max(hidden // 4, 8)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, few, 1), nn.ReLU(),
            nn.Conv2d(few, hidden, 1), nn.Hardsigmoid(),
        ) if gate else None  # fmt: skip
        self.project = nn.Sequential(nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out))
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        y = y if self.gate is None else y * self.gate(y)
        y = self.project(y)
        return x + y if self.residual else y


class MobileNetV3(nn.Module):
    """MobileNetV3-Small on images of (3, H, W); ``blocks`` of its eleven."""

    SETTINGS = (
        (16, 16, 3, 2, False, True), (72, 24, 3, 2, False, False), (88, 24, 3, 1, False, False),
        (96, 40, 5, 2, True, True), (240, 40, 5, 1, True, True), (240, 40, 5, 1, True, True),
        (120, 48, 5, 1, True, True), (144, 48, 5, 1, True, True), (288, 96, 5, 2, True, True),
        (576, 96, 5, 1, True, True), (576, 96, 5, 1, True, True),
    )  # fmt: skip

    def __init__(self, blocks: int = 11, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
        ]  # fmt: skip
        channels = 16
        for hidden, out, kernel, stride, swish, gate in self.SETTINGS[:blocks]:
            layers.append(Gated(channels, hidden, out, kernel, stride, swish, gate))
            channels = out
        last = 6 * channels
        layers += [nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last), nn.Hardswish()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(last, 2 * last), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(2 * last, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def drawn(build: Callable[[], nn.Module], seed: int = SEED) -> nn.Module:
    """A transformer with weights that keep activations O(1), norms with scales as trained ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build()
        for module in net.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.normal_(module.bias, std=0.1)
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.6, 1.4)
                nn.init.normal_(module.bias, std=0.2)
    return net.eval()


def mobilenet_v3(size: int, blocks: int = 11) -> nn.Module:
    """MobileNetV3-Small; statistics settled on images of ``size``."""
    return settled(lambda: MobileNetV3(blocks), (3, size, size))


def tokens(count: int, length: int, width: int, seed: int = 1) -> np.ndarray:
    """Random token embeddings, float32 of (count, length, width), some channels larger."""
    generator = np.random.default_rng(seed)
    spread = generator.uniform(0.5, 1.5, width)
    return np.asarray(generator.standard_normal((count, length, width)) * spread, np.float32)
