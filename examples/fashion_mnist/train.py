"""Trains the embedded example: a small ResNet on Fashion-MNIST, exported to ONNX.

    python examples/fashion_mnist/train.py /usr/share/datasets/fashion-mnist

The folder holds the four ``*-ubyte.gz`` files of Fashion-MNIST; Debian and Ubuntu ship them in the
package ``dataset-fashion-mnist``. Written next to this script: ``resnet.onnx``, ``calibration.npz``
(256 training images), ``test_images.npz`` (the first 2,000 test images with labels) and
``accuracy.json`` (float top-1). Pixels enter the network as x / 255 in float32, (N, 1, 28, 28).
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
BATCH = 128
console = Console()


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


class ResNet(nn.Module):
    """170 k parameters: a stem, five blocks, global average pooling, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        shapes = ((16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.blocks = nn.Sequential(*(Block(*shape) for shape in shapes))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 28, 28) in 0..1 -> (N, 10) logits."""
        logits: Tensor = self.fc(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))
        return logits


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Reads one gzipped IDX file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, 28, 28) and labels (N,) of ``train`` or ``t10k``."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    return images, read_idx(folder / f"{split}-labels-idx1-ubyte.gz")


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """(N, 28, 28) bytes -> (N, 1, 28, 28) float32 in 0..1."""
    return torch.from_numpy(images[:, None].astype(np.float32) / 255)


def augment(x: Tensor) -> Tensor:
    """Mirrors half of the images, then shifts the batch by up to two pixels."""
    mirror = torch.rand(len(x)) < 0.5
    x = torch.where(mirror[:, None, None, None], x.flip(3), x)
    dy, dx = (int(v) for v in torch.randint(0, 5, (2,)))
    return functional.pad(x, (2, 2, 2, 2))[:, :, dy : dy + 28, dx : dx + 28]


def train(net: ResNet, folder: Path, epochs: int, bfloat16: bool) -> None:
    """SGD with a one-cycle learning rate."""
    images, labels = read_split(folder, "train")
    x, y = to_input(images), torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    for epoch in range(epochs):
        net.train()
        start, order, total = time.perf_counter(), torch.randperm(len(x)), 0.0
        for i in range(len(x) // BATCH):
            rows = order[i * BATCH : (i + 1) * BATCH]
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = net(augment(x[rows]))
            loss = functional.cross_entropy(logits.float(), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        seconds = time.perf_counter() - start
        console.print(f"epoch {epoch + 1}: loss {total * BATCH / len(x):.4f}, {seconds:.0f} s")


def top1(net: ResNet, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> float:
    """Percent of right answers."""
    net.eval()
    with torch.inference_mode():
        answers = torch.cat([net(x).argmax(1) for x in to_input(images).split(500)])
    return 100 * float(np.mean(answers.numpy() == labels))


def export(net: ResNet, path: Path) -> None:
    """One ONNX file, weights inline, dynamic batch, batch norm kept as its own nodes."""
    torch.onnx.export(
        net.eval(),
        (torch.zeros(1, 1, 28, 28),),
        str(path),
        dynamo=False,  # the exporter that keeps BatchNormalization when asked to
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
        opset_version=17,
    )


def main() -> None:
    """Reads the command line, trains, exports, writes the data files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the *-ubyte.gz files")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bfloat16", action="store_true", help="autocast while training")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)

    net = ResNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(net, args.folder, args.epochs, args.bfloat16)
    images, labels = read_split(args.folder, "t10k")
    accuracy = {"top1_10000": top1(net, images, labels)}
    accuracy["top1_2000"] = top1(net, images[:2000], labels[:2000])
    console.print(accuracy)

    args.out.mkdir(parents=True, exist_ok=True)
    export(net.to(memory_format=torch.contiguous_format), args.out / "resnet.onnx")
    np.savez_compressed(args.out / "test_images.npz", images=images[:2000], labels=labels[:2000])
    images, labels = read_split(args.folder, "train")
    np.savez_compressed(args.out / "calibration.npz", images=images[:256], labels=labels[:256])
    (args.out / "accuracy.json").write_text(json.dumps(accuracy, indent=2) + "\n")


if __name__ == "__main__":
    main()
