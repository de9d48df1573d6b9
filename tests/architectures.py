"""Small, faithful instances of the families of networks that people bring; random weights.

Each entry of `FAMILIES` is a builder and example inputs; (N, …) with a batch that may vary.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import models
from tests.models import SEED, settled

CHANNELS = 16


def _unit(inside: int, outside: int, size: int = 3, stride: int = 1, groups: int = 1,
          act: type[nn.Module] = nn.ReLU) -> nn.Sequential:  # fmt: skip
    conv = nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), act())


class Head(nn.Module):
    """Global pooling and a classifier behind a network."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.classify = body, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(torch.flatten(F.adaptive_avg_pool2d(self.body(x), 1), 1))


def mobilenet_v1() -> nn.Module:
    blocks: list[nn.Module] = [_unit(3, CHANNELS, stride=2)]
    for i, stride in enumerate((1, 2, 1)):
        width = CHANNELS * (i + 1)
        blocks += [_unit(width, width, stride=stride, groups=width), _unit(width, width + 16, 1)]
    return Head(nn.Sequential(*blocks), CHANNELS * 4)


class Inception(nn.Module):
    """Four branches joined by channels."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.one = _unit(inside, 8, 1)
        self.three = nn.Sequential(_unit(inside, 8, 1), _unit(8, 12))
        self.five = nn.Sequential(_unit(inside, 4, 1), _unit(4, 8, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), _unit(inside, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class Dense(nn.Module):
    """Three dense layers (norm, ReLU, convolution on everything before) and a transition."""

    def __init__(self, inside: int, growth: int = 8) -> None:
        super().__init__()
        widths = [inside + i * growth for i in range(3)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, growth, 3, 1, 1, bias=False))
            for w in widths
        )
        end = inside + 3 * growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(end), nn.ReLU(), nn.Conv2d(end, end // 2, 1, bias=False), nn.AvgPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.transition(x)


class Fire(nn.Module):
    """SqueezeNet's module."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, 8, 1)
        self.left, self.right = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)


class Shuffle(nn.Module):
    """ShuffleNet V2's unit: half of the channels pass, then both halves are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            _unit(half, half, 1),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False), nn.BatchNorm2d(half),
            _unit(half, half, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, with both skips."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.mid, self.low = _unit(3, 8), _unit(8, 16), _unit(16, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.join, self.last = _unit(32, 16), _unit(24, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.top(x)
        mid = self.mid(F.max_pool2d(top, 2))
        low = self.low(F.max_pool2d(mid, 2))
        mid = self.join(torch.cat([self.up(low), mid], 1))
        grown = F.interpolate(mid, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(self.last(torch.cat([grown, top], 1)))


class Yolo(nn.Module):
    """CSP block, SPPF, nearest upsampling and a head that decodes its boxes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.stem, self.down = (
            _unit(3, 16, stride=2, act=nn.SiLU),
            _unit(16, 32, stride=2, act=nn.SiLU),
        )
        self.left, self.right = _unit(32, 16, 1, act=nn.SiLU), _unit(32, 16, 1, act=nn.SiLU)
        self.inner = _unit(16, 16, act=nn.SiLU)
        self.fuse, self.spp = _unit(32, 32, 1, act=nn.SiLU), _unit(128, 32, 1, act=nn.SiLU)
        self.neck, self.head = _unit(48, 24, act=nn.SiLU), nn.Conv2d(24, 2 * 7, 1)
        steps = torch.arange(size // 2).float()
        self.register_buffer("grid", torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1))

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        x = self.down(stem)
        right = self.right(x)
        x = self.fuse(torch.cat([right + self.inner(right), self.left(x)], 1))
        pooled = [x]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        x = F.interpolate(self.spp(torch.cat(pooled, 1)), scale_factor=2.0, mode="nearest")
        y = self.head(self.neck(torch.cat([x, stem], 1)))
        n, _, h, w = y.shape
        y = y.view(n, 2, 7, h, w).permute(0, 1, 3, 4, 2).sigmoid()
        where, size, rest = y.split((2, 2, 3), 4)
        boxes = torch.cat([(where * 2 - 0.5 + self.grid) * 2, (size * 2) ** 2, rest], 4)
        return boxes.reshape(n, -1, 7)


class Crnn(nn.Module):
    """Convolutions to a line of columns, a recurrent layer both ways, and letters."""

    def __init__(self, recurrent: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(_unit(1, 16), nn.MaxPool2d(2), _unit(16, 24), nn.MaxPool2d(2),
                                  nn.Conv2d(24, 32, (4, 1)), nn.ReLU())  # fmt: skip
        self.line = recurrent(32, 20, bidirectional=True, batch_first=True)
        self.letters = nn.Linear(40, 11)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.body(x).squeeze(2).permute(0, 2, 1)
        return F.log_softmax(self.letters(self.line(columns)[0]), 2)


class Audio(nn.Module):
    """A 1-D network on a waveform, as keyword spotters are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 16, 16, 4), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(16, 32, 3, padding=2, dilation=2), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Conv1d(32, 32, 3, groups=32), nn.Conv1d(32, 32, 1), nn.GELU(),
        )  # fmt: skip
        self.classify = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.body(x).mean(-1))


class Norm(nn.Module):
    """Root-mean-square normalization as T5 and Llama write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class MiniLM(nn.Module):
    """Token numbers and a mask in; embeddings, one block with the mask, pooled over the tokens."""

    def __init__(self, length: int, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.word, self.place = nn.Embedding(50, width), nn.Embedding(length, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        n, t = ids.shape
        x = self.norms[0](self.word(ids) + self.place(torch.arange(t)))
        q, k, v = (p.view(n, t, self.heads, -1).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        hidden = (1.0 - mask.view(n, 1, 1, t).float()) * -10000.0
        scores = torch.softmax(q @ k.transpose(2, 3) / 8**0.5 + hidden, -1)
        x = self.norms[1](x + self.proj((scores @ v).transpose(1, 2).reshape(n, t, -1)))
        x = self.norms[2](x + self.narrow(F.gelu(self.wide(x))))
        seen = mask.view(n, t, 1).float()
        return (x * seen).sum(1) / seen.sum(1).clamp(min=1e-9)


class Llama(nn.Module):
    """Token numbers in, logits out: rotary positions, causal grouped attention, SwiGLU."""

    def __init__(self, length: int, width: int = 32, heads: int = 4, groups: int = 2) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.word = nn.Embedding(50, width)
        self.norms = nn.ModuleList(Norm(width) for _ in range(3))
        self.q = nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.o = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down, self.head = (
            nn.Linear(2 * width, width, bias=False),
            nn.Linear(width, 50, bias=False),
        )
        self.cos: Tensor
        self.sin: Tensor
        angle = torch.arange(length)[:, None] / 100 ** (torch.arange(0, self.size, 2) / self.size)
        angle = torch.cat([angle, angle], -1)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def turn(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        t = x.shape[2]
        return x * self.cos[:t] + torch.cat([-b, a], -1) * self.sin[:t]

    def forward(self, ids: Tensor) -> Tensor:
        n, t = ids.shape
        x = self.word(ids)
        h = self.norms[0](x)
        q = self.turn(self.q(h).view(n, t, self.heads, self.size).transpose(1, 2))
        k = self.turn(self.k(h).view(n, t, self.groups, self.size).transpose(1, 2))
        v = self.v(h).view(n, t, self.groups, self.size).transpose(1, 2)
        k, v = (p.repeat_interleave(self.heads // self.groups, 1) for p in (k, v))
        future = torch.full((t, t), float("-inf")).triu(1)
        scores = torch.softmax(q @ k.transpose(2, 3) / self.size**0.5 + future, -1)
        x = x + self.o((scores @ v).transpose(1, 2).reshape(n, t, -1))
        h = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(self.norms[2](x))


class T5(nn.Module):
    """An encoder block with learned relative positions, and cross attention of a decoder."""

    def __init__(self, length: int, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.word = heads, nn.Embedding(50, width)
        self.bias = nn.Embedding(8, heads)
        near = (torch.arange(length)[None] - torch.arange(length)[:, None]).clamp(-4, 3) + 4
        self.register_buffer("near", near)
        self.norms = nn.ModuleList(Norm(width) for _ in range(3))
        self.own, self.cross = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.memory, self.o = nn.Linear(width, 2 * width), nn.Linear(width, width, bias=False)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def apart(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, ids: Tensor, beside: Tensor) -> Tensor:
        x = self.word(ids)
        q, k, v = map(self.apart, self.own(self.norms[0](x)).chunk(3, -1))
        scores = torch.softmax(q @ k.transpose(2, 3) + self.bias(self.near).permute(2, 0, 1), -1)
        x = x + self.o((scores @ v).transpose(1, 2).flatten(2))
        k, v = map(self.apart, self.memory(beside).chunk(2, -1))
        q = self.apart(self.cross(self.norms[1](x)))
        x = x + (torch.softmax(q @ k.transpose(2, 3), -1) @ v).transpose(1, 2).flatten(2)
        return x + self.narrow(F.relu(self.wide(self.norms[2](x))))


def _chain(block: Callable[[int], nn.Module], width: int) -> nn.Module:
    stem = _unit(3, CHANNELS, stride=2)
    return Head(nn.Sequential(stem, block(CHANNELS)), width)


def _vgg() -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    )  # fmt: skip
    return nn.Sequential(body, nn.Linear(32 * 64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))


Example = tuple[Tensor, ...]
IMAGE, LINE, LENGTH = (3, 32, 32), (1, 16, 24), 8


def _image(build: Callable[[], nn.Module], shape: Sequence[int] = IMAGE) -> nn.Module:
    return settled(build, shape)


def _drawn(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(SEED)
    return build().eval()


def _ids(count: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 50, (count, LENGTH)))


def _pictures(shape: Sequence[int] = IMAGE) -> Example:
    return (torch.from_numpy(models.images(2, shape, seed=9)),)


def _mask() -> Tensor:
    return torch.tensor([[1] * LENGTH, [1] * (LENGTH - 3) + [0] * 3])


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Example]]] = {
    "mobilenet_v1": (lambda: _image(mobilenet_v1), _pictures),
    "inception": (lambda: _image(lambda: _chain(Inception, 32)), _pictures),
    "densenet": (lambda: _image(lambda: _chain(Dense, 20)), _pictures),
    "squeezenet": (lambda: _image(lambda: _chain(Fire, 32)), _pictures),
    "shufflenet": (lambda: _image(lambda: _chain(Shuffle, 16)), _pictures),
    "vgg": (lambda: _image(_vgg), _pictures),
    "unet": (lambda: _image(UNet), _pictures),
    "yolo": (lambda: _image(lambda: Yolo(32)), _pictures),
    "crnn_lstm": (lambda: _image(lambda: Crnn(nn.LSTM), LINE), lambda: _pictures(LINE)),
    "crnn_gru": (lambda: _image(lambda: Crnn(nn.GRU), LINE), lambda: _pictures(LINE)),
    "audio": (lambda: _drawn(Audio), lambda: (torch.randn(2, 1, 400),)),
    "minilm": (lambda: _drawn(lambda: MiniLM(LENGTH)), lambda: (_ids(), _mask())),
    "llama": (lambda: _drawn(lambda: Llama(LENGTH)), lambda: (_ids(),)),
    "t5": (lambda: _drawn(lambda: T5(LENGTH)), lambda: (_ids(), torch.randn(2, 5, 32))),
}  # fmt: skip
"""Builder of the network, and of example inputs for a batch of two."""


def exported(net: nn.Module, example: Example, open_axes: dict[int, str] | None = None) -> bytes:
    """The network as ONNX: inputs ``x0``, ``x1`` …, output ``y``; some axes stay open."""
    buffer: Any = io.BytesIO()
    names = [f"x{i}" for i in range(len(example))]
    axes = open_axes or {0: "batch"}
    with models.quiet():
        torch.onnx.export(
            net, example, buffer, dynamo=False, opset_version=17, input_names=names,
            output_names=["y"], dynamic_axes=dict.fromkeys((*names, "y"), axes),
        )  # fmt: skip
    return bytes(buffer.getvalue())
