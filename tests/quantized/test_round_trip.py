"""What Nybble exports comes back in with the same bits, and with its recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nybble
from tests import models
from tests.passes import nets

Recipe = nybble.Recipe
SIZE = 32
WIDTHS = {
    "w8a8": Recipe(),
    "w4a8": Recipe(weights=4),
    "ternary": Recipe(weights="ternary"),
    "w4a4": Recipe(weights=4, activations=4),
    "half to even": Recipe(rounding="half_even"),
}


def exported(net: Any, shape: tuple[int, ...]) -> nybble.Model:
    return nybble.load_onnx(models.export_onnx(net, torch.zeros(1, *shape)))


def assert_returns(quantized: nybble.QuantizedModel, x: Any) -> nybble.QuantizedModel:
    back = nybble.load_onnx(quantized.to_onnx())
    assert isinstance(back, nybble.QuantizedModel)
    assert back.recipe == quantized.recipe
    np.testing.assert_array_equal(back.run(x), quantized.run(x))
    return back


@pytest.fixture(scope="module")
def tiny() -> nybble.Model:
    return exported(models.tiny_cnn(SIZE), (3, SIZE, SIZE))


@pytest.mark.sweep
@pytest.mark.parametrize("widths", WIDTHS)
def test_convolutions(tiny: nybble.Model, widths: str) -> None:
    images = models.images(8, (3, SIZE, SIZE), seed=9)
    quantized = nybble.quantize(tiny, [images], WIDTHS[widths])
    back = assert_returns(quantized, images)
    assert back.integer["main"].attrs["kept_float"] == quantized.integer["main"].attrs["kept_float"]


@pytest.mark.sweep
@pytest.mark.parametrize("row", nets.LAYERS)
def test_layers(row: str) -> None:
    x = nets.images(*nets.SHAPE)
    quantized = nybble.quantize(nybble.Model(nets.layer(row)), [x])
    assert_returns(quantized, x)


@pytest.mark.sweep
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize(("weights", "symmetric"), [(4, False), (8, True), ("ternary", True)])
def test_weights_only(weights: Any, symmetric: bool, group: int | None) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 72), nn.ReLU(), nn.Linear(72, 10))
    recipe = Recipe(weights=weights, activations="float", group=group, symmetric=symmetric)
    model = exported(models.settled(lambda: net, (3, 8, 8)), (3, 8, 8))
    assert_returns(nybble.quantize(model, recipe=recipe), models.images(16, (3, 8, 8)))
