"""Whole networks through the four steps: integer-only, and close to float."""

import numpy as np
import pytest
import torch

from nybble.frontend.onnx import from_onnx
from nybble.ir import graph, interpreter, specs
from nybble.passes import pipeline
from nybble.passes.calibrate import calibrate
from nybble.recipe import Recipe
from tests import models


@pytest.mark.parametrize(
    ("name", "tolerance"),  # noise of 8 bits relative to the logits; it adds up over random layers
    [("tiny_cnn", 0.03), pytest.param("resnet18", 0.2, marks=pytest.mark.slow)],
)
def test_networks_become_integer_only(name, tolerance):
    shape = (3, 32, 32)
    net = models.NETWORKS[name](32)
    mod = from_onnx(models.export_onnx(net, torch.zeros(1, *shape)))
    canonical = pipeline.canonicalize(mod)
    x = models.images(4, shape)
    with torch.no_grad():
        real = net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(
        interpreter.run(canonical, [x])[0], real, atol=1e-5 * np.abs(real).max()
    )

    recipe = Recipe()
    name_in = str(graph.inputs(mod)[0].name)
    ranges = calibrate(canonical, [{name_in: models.images(8, shape, seed=5)}], recipe)
    integer = pipeline.to_integer(pipeline.quantize(canonical, ranges, recipe), recipe)
    assert list(integer["main"].attrs["kept_float"]) == []
    assert specs.between_borders(integer) == []
    exact = interpreter.run(integer, [x])[0]
    assert np.sqrt(np.mean((exact - real) ** 2) / np.mean(real**2)) < tolerance
