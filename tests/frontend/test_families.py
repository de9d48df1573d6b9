"""Every family of networks: float parity, int8, a library that gives the law's results.

They come by ONNX; those of tokens by torch.export too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import nybble
from nybble.ir import graph, interpreter, specs
from tests import architectures
from tests.architectures import FAMILIES

QUICK = ("audio", "minilm", "unet")
BETWEEN: dict[str, set[str]] = {
    "minilm": {"relax.add"},
}
"""Float ops between the borders; all other families are integer-only."""
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]


@pytest.mark.parametrize("name", NAMES)
def test_family(name: str, tmp_path: Path) -> None:
    build, examples = FAMILIES[name]
    net, example = build(), examples()
    with torch.no_grad():
        wanted = net(*example).numpy()
    model = nybble.load_onnx(architectures.exported(net, example))
    feeds = {f"x{i}": value.numpy() for i, value in enumerate(example)}
    _deployed(model, feeds, wanted, BETWEEN.get(name, set()), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_family_from_torch(name: str, tmp_path: Path) -> None:
    build, examples = FAMILIES[name]
    net, example = build(), examples()
    with torch.no_grad():
        wanted = net(*example).numpy()
    model = nybble.load_torch(net, example)
    names = [str(param.name) for param in graph.inputs(model.module)]
    feeds = {key: value.numpy() for key, value in zip(names, example, strict=True)}
    law = _deployed(model, feeds, wanted, BETWEEN.get(name, set()), tmp_path)
    assert np.square(wanted).sum() > 1000 * np.square(law - wanted).sum()  # 30 dB


def _deployed(
    model: Any, feeds: dict[str, Any], wanted: NDArray[Any], between: set[str], tmp_path: Path
) -> NDArray[Any]:
    """Checks the float network, the int8 one and its library; returns what the law gives."""
    largest = np.abs(wanted).max()
    (got,) = interpreter.run(model.module, feeds)
    np.testing.assert_allclose(got, wanted, atol=1e-4 * largest, rtol=0)
    quantized = nybble.quantize(model, [feeds])
    assert {op for _, op in specs.between_borders(quantized.integer)} == between
    (law,) = interpreter.run(quantized.integer, feeds)
    assert np.abs(law - wanted).max() < 0.15 * largest
    session = nybble.load(nybble.compile(quantized).save(tmp_path / "net.so"), threads=1)
    got = np.asarray(session(feeds))
    np.testing.assert_allclose(got, law, atol=1e-5 * largest, rtol=0)
    one = {key: value[:1] for key, value in feeds.items()}
    np.testing.assert_array_equal(np.asarray(session(one)), got[:1])  # the batch is open
    return law
