"""The figures that Nybble promises, measured as the benchmarks measure them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nybble
from benchmarks import accuracy, cost


@pytest.mark.slow
def test_efficientnet_lite0_loses_at_most_one_point(data: Path) -> None:
    task = accuracy.efficientnet_lite0(data / "imagenet_500")
    row = accuracy.measure(task, nybble.Recipe(), simulate=False)
    assert row["images"] == 500
    assert row["float"] > 80
    assert row["drop"] <= 1.0
    assert row["outputs off the law"] == 0


@pytest.mark.slow
def test_fashion_mnist_loses_at_most_a_fifth_of_a_point(fashion: Path) -> None:
    row = accuracy.measure(accuracy.fashion_mnist(fashion), nybble.Recipe(), simulate=False)
    assert row["images"] == 10_000
    assert row["float"] >= 91
    assert row["drop"] <= 0.2
    assert row["outputs off the law"] == 0


@pytest.mark.whole
def test_embedded_images_lose_next_to_nothing(example: Path, tmp_path: Path) -> None:
    test, calibration = (np.load(example / f"{n}.npz") for n in ("test_images", "calibration"))
    images, few = ((f["images"][:, None] / np.float32(255)) for f in (test, calibration))
    model = nybble.load_onnx(example / "resnet.onnx")
    quantized = nybble.quantize(model, few[:, None])
    session = nybble.load(nybble.compile(quantized).save(tmp_path / "net.so"))
    float_session = nybble.load(nybble.compile(model).save(tmp_path / "float.so"))
    top1 = [
        100 * np.mean(accuracy.answers(run, images) == test["labels"])
        for run in (float_session, session)
    ]
    assert top1[0] == pytest.approx(93.0, abs=0.05)
    assert top1[1] >= top1[0] - 0.4  # 8 of 2,000 images


@pytest.mark.slow
def test_resnet18_is_cheap_to_compile_and_to_load() -> None:
    found = cost.measure(samples=32)
    assert found["all (CPU s)"] < 60
    assert found["peak memory (MB)"] < 1500
    assert found["file (MB)"] <= 12.5
    assert found["load (CPU s)"] < 0.2
