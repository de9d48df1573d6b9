"""What only moves, repeats or bends channels of quantized tensors stays in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nybble
from nybble.ir import interpreter, specs
from tests.frontend.onnx_models import model, node, values

X = values(4, 6, 5, 7)
WEIGHTS = {"w": values(8, 6, 3, 3), "v": values(4, 8, 1, 1), "u": values(4, 16, 1, 1),
           "slope": np.linspace(-0.2, 0.5, 8, dtype=np.float32).reshape(8, 1, 1),
           "order": np.array([3, 1, 0, 2, 7, 7, -2, 5]), "twice": np.array([1, 2, 1, 1]),
           "from": np.array([1]), "to": np.array([-1]), "axis": np.array([2]),
           "halves": np.array([3, 5])}  # fmt: skip
ROWS: dict[str, tuple[list[Any], str]] = {
    "prelu": ([node("PRelu", "c slope", "m")], "v"),
    "gather": ([node("Gather", "c order", "m", axis=1)], "v"),
    "slice": ([node("Slice", "c from to axis", "m")], "v"),
    "split": ([node("Split", "c halves", "a b", axis=1), node("Concat", "b a", "m", axis=1)], "v"),
    "tile": ([node("Tile", "c twice", "m")], "u"),
}


@pytest.mark.parametrize("name", ROWS)
def test_it_is_computed_in_integers(name: str) -> None:
    nodes, last = ROWS[name]
    layers = [node("Conv", "x w", "c"), *nodes, node("Conv", f"m {last}")]
    used = {name for one in layers for name in one.input}
    weights = {key: value for key, value in WEIGHTS.items() if key in used}
    network = nybble.load_onnx(model(layers, X.shape, weights))
    (real,) = interpreter.run(network.module, [X])
    quantized = nybble.quantize(network, [X])
    assert specs.between_borders(quantized.integer) == []
    assert list(quantized.integer["main"].attrs[specs.KEPT_FLOAT]) == []
    assert np.abs(quantized.run(X) - real).max() < 0.04 * np.abs(real).max()
