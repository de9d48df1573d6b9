"""Networks of the tests and benchmarks: own definitions, random weights with sane statistics.

Every network is built from a fixed seed and then settled on random images, so its batch norms hold
the statistics of what really flows through it and activations stay O(1), as in a trained network.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SEED = 20260


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual (ResNet-18)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual (ResNet-50)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    """ResNet v1.5 on images of (3, H, W)."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        width: int = 64,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for index, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if index and not position else 1
                blocks.append(block(channels, width << index, stride))
                channels = (width << index) * block.expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(self.stages):
            x = getattr(self, f"layer{index + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (MobileNetV2)."""

    def __init__(self, channels: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = channels * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers.append(_conv_bn_relu6(channels, hidden, 1))
        layers += [
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def _conv_bn_relu6(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))


class MobileNetV2(nn.Module):
    """MobileNetV2, width 1.0, on images of (3, H, W)."""

    SETTINGS = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_bn_relu6(3, 32, 3, 2)]
        channels = 32
        for expand, out, count, stride in self.SETTINGS:
            for index in range(count):
                block_stride = stride if index == 0 else 1
                layers.append(InvertedResidual(channels, out, block_stride, expand))
                channels = out
        layers.append(_conv_bn_relu6(channels, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class TinyCNN(nn.Module):
    """One of each: asymmetric padding, grouped, depthwise, dilated, residual, concat, pools."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.stem = nn.Conv2d(3, 16, 3, 2)
        self.bn = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, (3, 5), padding=(1, 2), groups=16)
        self.dilated = nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.pool = nn.MaxPool2d(2)
        self.average = nn.AvgPool2d(2)
        self.mix = nn.Conv2d(40, 20, 1)
        self.head = nn.Linear(20, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(self.pad(x))))
        x = torch.relu(x + self.dilated(nn.functional.relu6(self.depthwise(x))))
        x = torch.cat([self.pool(x), torch.relu(self.average(self.grouped(x)))], 1)
        x = torch.clamp(self.mix(x), -1.0, 4.0)
        return self.head(x.mean((2, 3)))


def resnet18(size: int = 64) -> nn.Module:
    """ResNet-18; statistics settled on images of ``size``."""
    return settled(lambda: ResNet(BasicBlock, (2, 2, 2, 2)), (3, size, size))


def resnet50(size: int = 64) -> nn.Module:
    """ResNet-50; statistics settled on images of ``size``."""
    return settled(lambda: ResNet(Bottleneck, (3, 4, 6, 3)), (3, size, size))


def mobilenet_v2(size: int = 64) -> nn.Module:
    """MobileNetV2; statistics settled on images of ``size``."""
    return settled(MobileNetV2, (3, size, size))


def tiny_cnn(size: int = 32) -> nn.Module:
    """A small network with every shape of convolution and pooling; fast enough for any test."""
    return settled(TinyCNN, (3, size, size))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "tiny_cnn": tiny_cnn,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
}


def images(count: int, shape: Sequence[int], seed: int = 1) -> np.ndarray:
    """Smooth random images, float32 of (count, *shape), roughly standard normal per pixel."""
    generator = np.random.default_rng(seed)
    channels, height, width = shape
    coarse = generator.standard_normal((count, channels, -(-height // 4), -(-width // 4)))
    smooth = coarse.repeat(4, 2).repeat(4, 3)[:, :, :height, :width]
    noise = generator.standard_normal((count, *shape))
    return np.asarray(0.8 * smooth + 0.6 * noise, np.float32)


def settled(build: Callable[[], nn.Module], shape: Sequence[int], seed: int = SEED) -> nn.Module:
    """Builds a network with Kaiming weights and batch-norm statistics of real activations.

    Args:
        build: constructs the network.
        shape: of one input image, (C, H, W).
        seed: of weights and images; torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build()
        for module in net.modules():
            _initialize(module)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # cumulative average: exactly the statistics of the images below
    with torch.no_grad():
        net.train()
        for step in range(2 if norms else 0):
            net(torch.from_numpy(images(8, shape, seed + step)))
    for norm in norms:
        norm.momentum = 0.1
    return net.eval()


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    if isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight, 0.7, 1.3)
        nn.init.normal_(module.bias, std=0.3)


def export_onnx(
    net: nn.Module, example: Tensor, dynamic_batch: bool = True, dynamo: bool = False
) -> bytes:
    """The network as ONNX: input "input", output "output".

    Args:
        net: a network with one input and one output.
        example: an input, (N, …); its extents but the batch become static.
        dynamic_batch: whether axis 0 stays symbolic.
        dynamo: torch's new exporter (slow) instead of the TorchScript one (opset 17, fast).
    """
    buffer, net = io.BytesIO(), copy.deepcopy(net).eval()
    with quiet():
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
            sample = example.expand(max(2, len(example)), *example.shape[1:])
            program = torch.onnx.export(
                net, (sample if dynamic_batch else example,), dynamo=True, verbose=False,
                input_names=["input"], output_names=["output"], dynamic_shapes=shapes,
            )  # fmt: skip
            assert program is not None
            return bytes(program.model_proto.SerializeToString())
        target: Any = buffer  # torch documents file objects, its types do not
        torch.onnx.export(
            net, (example,), target, dynamo=False, opset_version=17,
            input_names=["input"], output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}} if dynamic_batch else None,
        )  # fmt: skip
    return buffer.getvalue()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters' own deprecation warnings and progress say nothing about our code."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
