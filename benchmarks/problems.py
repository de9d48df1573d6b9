"""The float networks that are quantized and timed: whole ones, and single layers as networks.

A linear layer is a network of one layer without bias. Activations come in and go out as float32,
so quantizing them is part of every contender's time. Convolutions stand in a chain of four, so
that what happens between two layers counts and the borders weigh little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CHAIN = 4


@dataclass(frozen=True)
class Problem:
    """A float network with a fixed input shape.

    Attributes:
        name: unique.
        shape: of one input, with the batch or the rows first.
        build: makes the ``torch.nn.Module``; torch is loaded only then.
        macs: multiply-adds of one run.
        weights: how many.
        activations: how many values one run reads and writes, where no weights matter.
        family: problems of one family differ in their rows only, and share the peers' files.
    """

    name: str
    shape: tuple[int, ...]
    build: Callable[[], Any] = field(compare=False)
    macs: int
    weights: int
    activations: int = 0
    family: str = ""

    def data(self, count: int) -> Array:
        """Calibration data or inputs: ``count`` of ``shape``, one after another on axis 0."""
        from tests.models import images  # noqa: PLC0415  (loads torch)

        if len(self.shape) == 4:
            return images(count * self.shape[0], self.shape[1:])
        generator = np.random.default_rng(1)
        values = generator.standard_normal((count * self.shape[0], *self.shape[1:]))
        return np.asarray(values, np.float32)


def network(name: str) -> Problem:
    """ResNet-18, ResNet-50 or MobileNetV2 at 224x224, batch 1."""
    macs, weights = {
        "resnet18": (1_814_073_344, 11_678_912),
        "resnet50": (4_089_184_256, 25_502_912),
        "mobilenet_v2": (300_774_272, 3_469_760),
    }[name]
    return Problem(name, (1, 3, 224, 224), partial(_network, name), macs, weights)


def _network(name: str) -> Any:
    from tests.models import NETWORKS  # noqa: PLC0415  (loads torch)

    return NETWORKS[name](64)


def encoder(length: int, width: int, heads: int) -> Problem:
    """One encoder block of BERT on ``length`` tokens of ``width`` channels."""
    weights = 12 * width * width
    macs = length * weights + 2 * length * length * width
    build = partial(_encoder, width, heads)
    return Problem(f"bert-layer-{width}-t{length}", (1, length, width), build, macs, weights)


def _encoder(width: int, heads: int) -> Any:
    from tests.transformers import Bert, drawn  # noqa: PLC0415  (loads torch)

    return drawn(lambda: Bert(width, heads))


def linear(rows: int, inputs: int, outputs: int, grid: str = "normal") -> Problem:
    """One linear layer of ``rows`` x ``inputs`` times ``inputs`` x ``outputs``.

    Args:
        rows: of activations.
        inputs: K.
        outputs: N.
        grid: what the float weights are: ``normal``; ``ternary``: -s, 0, s; ``binary``: -s, s.
    """
    suffix = "" if grid == "normal" else f"-{grid}"
    size = inputs * outputs
    family = f"linear-{inputs}x{outputs}{suffix}"
    name = f"linear-{inputs}x{outputs}-m{rows}{suffix}"
    build = partial(_linear, inputs, outputs, grid)
    return Problem(name, (rows, inputs), build, rows * size, size, family=family)


def _linear(inputs: int, outputs: int, grid: str) -> Any:
    import torch  # noqa: PLC0415

    layer = torch.nn.Linear(inputs, outputs, bias=False)
    layer.weight.data = torch.from_numpy(_weights(inputs, outputs, grid))
    return layer.eval()


def _weights(inputs: int, outputs: int, grid: str) -> Array:
    """Float32 (outputs, inputs), scaled such that the sums are about 1."""
    generator = np.random.default_rng(2)
    shape, scale = (outputs, inputs), np.float32(inputs**-0.5)
    if grid == "ternary":
        drawn = generator.integers(-1, 2, shape).astype(np.float32)
    elif grid == "binary":
        drawn = 2 * generator.integers(0, 2, shape).astype(np.float32) - 1
    else:
        drawn = generator.standard_normal(shape, np.float32)
    return np.asarray(drawn * scale, np.float32)


def conv(channels: int, size: int, kernel: int, groups: int = 1) -> Problem:
    """Four convolutions with ReLU, channels to channels, same padding; depthwise by groups."""
    weights = CHAIN * channels * channels // groups * kernel * kernel
    kind = "depthwise" if groups == channels else "conv"
    name = f"{kind}{kernel}x{kernel}-{channels}-{size}"
    build = partial(_chain, channels, size, kernel, groups)
    return Problem(name, (1, channels, size, size), build, size * size * weights, weights)


def _chain(channels: int, size: int, kernel: int, groups: int) -> Any:
    from torch import nn  # noqa: PLC0415

    from tests.models import settled  # noqa: PLC0415

    def make() -> Any:
        layers: list[Any] = []
        for _ in range(CHAIN):
            layers.append(nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=groups))
            layers.append(nn.ReLU())
        return nn.Sequential(*layers)

    return settled(make, (channels, size, size))


def pooling(kind: str, channels: int = 64, size: int = 112) -> Problem:
    """``max`` 3x3 stride 2, ``average`` 3x3 stride 2, or ``global`` average, behind a ReLU."""
    shape = (1, channels, size, size)
    name = f"{kind}-pool-{channels}-{size}"
    return Problem(name, shape, partial(_pooling, kind), 0, 0, activations=_count(shape))


def _pooling(kind: str) -> Any:
    from torch import nn  # noqa: PLC0415

    made: dict[str, Any] = {
        "max": nn.MaxPool2d(3, 2, 1),
        "average": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        "global": nn.AdaptiveAvgPool2d(1),
    }
    return nn.Sequential(nn.ReLU(), made[kind]).eval()


def addition(channels: int = 64, size: int = 56) -> Problem:
    """``x + relu(x)``, four times over."""
    shape = (1, channels, size, size)
    return Problem(f"add-{channels}-{size}", shape, _additions, 0, 0, CHAIN * _count(shape))


def _additions() -> Any:
    from torch import nn  # noqa: PLC0415

    class Residual(nn.Module):
        def forward(self, x: Any) -> Any:
            return x + x.relu()

    return nn.Sequential(*(Residual() for _ in range(CHAIN))).eval()


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))
