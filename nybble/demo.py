"""``nybble demo``: the embedded network from ONNX to a deployed library, measured and reported."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

import nybble
from nybble.errors import NybbleError
from nybble.report import data, html, tables
from nybble.report.data import Report, Variant
from nybble.report.parity import ParityReport, parity
from nybble.report.progress import console, step
from nybble.runtime.artifact import check_writable, write_whole
from nybble.runtime.session import Session
from nybble.schedules.target import resolve

Array = NDArray[Any]
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fashion_mnist"
CHUNK = 50
PARITY_IMAGES = 4


@dataclass(frozen=True)
class Deployed:
    """A library on disk and in memory."""

    path: Path
    session: Session

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


def main(report: Path, target: str) -> None:
    """Compiles, compares, prints the tables and writes the page.

    Args:
        report: where the HTML goes.
        target: what to compile for; it must run here.

    Raises:
        NybbleError: the example is not beside this package, or the page cannot be written.
    """
    check_writable(report)
    resolve(target)
    images, labels = _pixels("test_images.npz")
    calibration, _ = _pixels("calibration.npz")
    with step("import resnet.onnx"):
        model = nybble.load_onnx(EXAMPLE / "resnet.onnx")
    batches = np.split(calibration, range(CHUNK, len(calibration), CHUNK))
    with step("calibrate and quantize", len(calibration)) as advance:
        quantized = nybble.quantize(model, batches, progress=advance)
    with tempfile.TemporaryDirectory() as folder:
        plain = _deploy(model, target, Path(folder) / "float.so")
        net = _deploy(quantized, target, Path(folder) / "int8.so")
        variants = (
            _measured("float", plain, images, labels),
            Variant("simulated", _accuracy("simulated", quantized.simulate, images, labels)),
            _measured("deployed", net, images, labels),
        )
        found = _report(net, variants, _parity(quantized, net.session, images), images)
    console.print(tables.variants(found.variants), tables.layers(found.layers, console.width))
    console.print(tables.exceptions(net.session.manifest))
    console.print(tables.parity(found.parity)) if found.parity else None
    write_whole(report, html.render(found).encode())
    console.print(Text(f"\nThe report: {report.resolve()}"), soft_wrap=True)


def _pixels(name: str) -> tuple[Array, Array]:
    """Images float32 (N, 1, 28, 28) in 0..1, and labels."""
    path = EXAMPLE / name
    if not path.exists():
        raise NybbleError(f"The demo needs {path}, which is part of a checkout of Nybble.")
    with np.load(path) as arrays:
        images = arrays["images"].reshape(-1, 1, 28, 28)
        return images.astype(np.float32) / 255, arrays["labels"]


def _deploy(network: Any, target: str, path: Path) -> Deployed:
    with step(f"compile {path.name} for {target}") as advance:
        nybble.compile(network, target, progress=advance).save(path)
    return Deployed(path, nybble.load(path))


def _measured(name: str, net: Deployed, images: Array, labels: Array) -> Variant:
    accuracy = _accuracy(name, net.session, images, labels)
    seconds = net.session.benchmark(images[:1], repeats=200, warmup=20).median
    return Variant(name, accuracy, net.size, seconds)


def _accuracy(name: str, network: Callable[..., Any], images: Array, labels: Array) -> float:
    """Top-1 of a form of the network over all images."""
    right = 0
    with step(f"classify {len(images):,} images: {name}", len(images)) as advance:
        for start in range(0, len(images), CHUNK):
            chunk = slice(start, start + CHUNK)
            right += int((network(images[chunk]).argmax(1) == labels[chunk]).sum())
            advance(min(start + CHUNK, len(images)), None)
    return right / len(images)


def _parity(quantized: Any, session: Session, images: Array) -> ParityReport:
    values: dict[str, Array] = {}
    quantized.run(images[:PARITY_IMAGES], values.__setitem__)
    return parity(values, session, images[:PARITY_IMAGES])


def _report(
    net: Deployed, variants: tuple[Variant, ...], compared: ParityReport, images: Array
) -> Report:
    manifest = net.session.manifest
    return Report(
        title="ResNet on Fashion-MNIST",
        facts=data.facts(manifest, net.session.threads),
        variants=variants,
        layers=data.layer_rows(manifest, net.session.profile(images[:1], repeats=50)),
        float_ops=manifest.float_ops,
        kept_float=manifest.kept_float,
        parity=compared,
    )
