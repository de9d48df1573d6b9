"""Resized images stay integers: nearest and bilinear, whole and broken factors, open sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tvm import relax

import nybble
from nybble.ir import interpreter, specs
from nybble.model import Model
from nybble.passes import pipeline
from nybble.passes.differentiable import Differentiable
from tests.passes.nets import Net, images, nn, op_names
from tests.passes.test_lowering import kept, walk
from tests.walking import compared, law_of

SHAPE = (3, 6, 5)
FORMS: dict[str, tuple[tuple[int, int], str, str]] = {
    "nearest": ((12, 15), "nearest_neighbor", "asymmetric"),
    "half pixels": ((12, 10), "linear", "half_pixel"),
    "corners": ((11, 17), "linear", "align_corners"),
    "smaller": ((4, 3), "linear", "half_pixel"),
    "asymmetric": ((18, 5), "linear", "asymmetric"),
}


def network(form: str, tail: bool = True) -> Any:
    """A convolution, resized, and a clamp and a convolution behind it; or resized at the end."""
    size, method, mode = FORMS[form]
    net = Net(*SHAPE)
    x = net.bias("c.bias", net.conv("c", net.x, 8, padding=1))
    x = relax.op.image.resize2d(
        x, size, layout="NCHW", method=method, coordinate_transformation_mode=mode,
        rounding_method="floor",
    )  # fmt: skip
    x = net.emit("grown", x)
    return net.done(net.conv("last", net.emit("r", nn.relu(x)), 3) if tail else x)


@pytest.mark.parametrize("form", FORMS)
def test_a_resize_is_computed_in_integers(form: str) -> None:
    x = images(*SHAPE)
    canonical, quantized, integer = walk(network(form), x)
    assert kept(integer) == []
    assert specs.between_borders(integer) == []
    is_copy = form == "nearest"
    assert op_names(integer).count("nybble.nearest2d") == is_copy
    assert op_names(integer).count("nybble.bilinear2d") == (not is_copy)
    real, simulated, exact = (interpreter.run(m, [x])[0] for m in (canonical, quantized, integer))
    assert np.abs(exact - simulated).mean() <= 0.01 * np.abs(simulated).max()
    assert np.abs(simulated - real).max() <= 0.05 * np.abs(real).max()


def test_the_library_equals_the_law(tmp_path: Path) -> None:
    x = images(*SHAPE)
    quantized = nybble.quantize(Model(network("corners")), [x])
    path = nybble.compile(quantized).save(tmp_path / "net.so")
    report, session = compared(law_of(quantized, x), path, x, 1)
    assert report.equal
    assert session.manifest.kept_float == ()


def test_behind_the_last_layer_it_is_float() -> None:
    """Logits that grow to the image's size are not rounded to 8 bits for it."""
    _, _, integer = walk(network("half pixels", tail=False), images(*SHAPE))
    assert kept(integer) == ["grown: relax.image.resize2d: follows the last quantized layer"]
    assert specs.between_borders(integer) == []


@pytest.mark.parametrize("form", ["nearest", "asymmetric"])
def test_its_torch_form_is_the_same(form: str) -> None:
    x, canonical = images(*SHAPE), pipeline.canonicalize(network(form))
    (wanted,) = interpreter.run(canonical, [x])
    with torch.no_grad():
        (got,) = Differentiable(canonical)({"x": torch.from_numpy(x)})
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-5)
