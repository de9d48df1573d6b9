"""Latency of whole networks beside ONNX Runtime and torch, float and 8-bit, batch 1.

ONNX Runtime uses AVX-512 where it finds it. Nybble's AVX2 code has its like in torch held to AVX2.

python -m benchmarks.networks --networks resnet18 --threads 1 2 --target native
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime.quantization as ort
import torch
from onnxruntime.quantization.shape_inference import quant_pre_process

import nybble
from benchmarks.output import console, cpu, record, table
from benchmarks.peers import Array, Peer, race
from tests.models import NETWORKS, export_onnx, images

CHOICES = ("resnet18", "resnet50", "mobilenet_v2")


class Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """Feeds ONNX Runtime's calibration one image at a time."""

    def __init__(self, data: Array):
        self._images: Iterator[Array] = iter(data[:, None])

    def get_next(self) -> dict[str, Array] | None:
        """The next feed, None at the end."""
        image = next(self._images, None)
        return None if image is None else {"input": image}


def onnxruntime_int8(source: Path, calibration: Array, folder: Path) -> Path:
    """ONNX Runtime's own recipe for x86: QDQ, unsigned activations, signed weights per channel."""
    prepared, result = folder / "prepared.onnx", folder / "ort_int8.onnx"
    quant_pre_process(str(source), str(prepared))
    ort.quantize_static(
        str(prepared),
        str(result),
        Reader(calibration),
        quant_format=ort.QuantFormat.QDQ,
        activation_type=ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        per_channel=True,
    )
    return result


def torchscript(name: str, shape: tuple[int, int, int], folder: Path) -> Path:
    """The float network as a frozen trace."""
    path = folder / "float.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is frozen, and works
        traced = torch.jit.trace(NETWORKS[name](64), torch.zeros(1, *shape))
        torch.jit.freeze(traced).save(str(path))
    return path


def nybble_int8(source: Path, calibration: Array, folder: Path, target: str) -> Path:
    """Nybble's file for a target, checked against the law on one image."""
    quantized = nybble.quantize(nybble.load_onnx(source), calibration[:, None])
    path = nybble.compile(quantized, target=target).save(folder / f"{target}.so")
    np.testing.assert_array_equal(
        nybble.load(path)(calibration[:1]), quantized.run(calibration[:1])
    )
    return path


def measure(name: str, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Rows of one network: one per thread count and peer."""
    shape = (3, args.size, args.size)
    calibration = images(args.samples, shape)
    source = folder / "float.onnx"
    source.write_bytes(export_onnx(NETWORKS[name](64), torch.zeros(1, *shape)))
    files = [("ORT fp32", "onnxruntime", source)]
    files.append(("ORT int8", "onnxruntime", onnxruntime_int8(source, calibration, folder)))
    files.append(("torch fp32 AVX2", "torch_avx2", torchscript(name, shape, folder)))
    for target in args.target:
        made = nybble_int8(source, calibration, folder, target)
        files.append((f"Nybble {target}", "nybble", made))
    rows = []
    for threads in args.threads:
        peers = [Peer(n, engine, p, calibration[:1], threads) for n, engine, p in files]
        timings = race(peers, args.rounds)
        rows += [
            {
                "peer": timing.name,
                "network": name,
                "threads": threads,
                "ms": 1000 * timing.median,
                "by ORT fp32": timing.ratio(timings[0]),
                "by ORT int8": timing.ratio(timings[1]),
                "by torch AVX2": timing.ratio(timings[2]),
            }
            for timing in timings
        ]
    return rows


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, measures, prints one table a network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=CHOICES, default=CHOICES)
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--target", nargs="+", default=("native", "x86-64-v3"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--samples", type=int, default=8, help="calibration images")
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    console.print(f"{cpu()}; 1 thread: CPU time, more: wall time; a ratio below 1 is faster")
    for name in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, args, Path(folder))
        shown = [
            {k: f"{v:.2f}" if isinstance(v, float) else str(v) for k, v in row.items()}
            for row in found
        ]
        table(f"{name}, batch 1", shown)
        rows += found
    console.print(f"written: {record('networks', rows)}")


if __name__ == "__main__":
    main()
