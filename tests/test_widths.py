"""Every width of weights with every width of activations, from the recipe to the library."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nybble
from nybble.ir import graph, numerics
from nybble.recipe import Weights
from tests import models
from tests.walking import compared, law_of

SIZE = 9
WEIGHTS: tuple[Weights, ...] = (1, 2, "ternary", 3, 4, 5, 6, 7, 8)
ACTIVATIONS = tuple(range(1, 9))
NOW = {(1, 1), (2, 8), ("ternary", 3), (3, 5), (4, 4), (5, 2), (6, 7)}


class Everything(nn.Module):
    """Signed and unsigned tensors, a residual add, a concat, both pools, odd channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, 2, 1)
        self.left = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.right = nn.Conv2d(10, 10, 1)
        self.grouped = nn.Conv2d(10, 6, 3, padding=1, groups=2, bias=False)
        self.wide = nn.Conv2d(16, 21, 3)
        self.head = nn.Linear(21, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 3, 1, 1)
        x = torch.relu(self.right(self.left(x)) + x)
        x = torch.cat([x, self.grouped(x)], 1)
        return self.head(nn.functional.relu6(self.wide(x)).mean((2, 3)))


@cache
def network() -> nybble.Model:
    torch.manual_seed(3)
    return nybble.load_torch(Everything().eval(), (torch.zeros(1, 3, SIZE, SIZE),))


@cache
def samples() -> Any:
    return models.images(6, (3, SIZE, SIZE), seed=5)


def quantized(recipe: nybble.Recipe) -> nybble.QuantizedModel:
    return nybble.quantize(network(), [samples()], recipe)


def widths(net: nybble.QuantizedModel) -> dict[str, tuple[str, str]]:
    """(weights, activations) of every convolution and linear layer of the integer module."""
    return {
        name: (graph.dtype_of(call.args[1]), graph.dtype_of(call.args[0]))
        for name, op, call in graph.walk(net.integer)
        if op in ("nybble.conv2d", "nybble.linear")
    }


def rows() -> list[Any]:
    return [
        pytest.param(w, a, marks=() if (w, a) in NOW else pytest.mark.slow)
        for w in WEIGHTS
        for a in ACTIVATIONS
    ]


@pytest.mark.parametrize(("weights", "activations"), rows())
def test_the_library_equals_the_law(weights: Weights, activations: int, tmp_path: Path) -> None:
    net = quantized(nybble.Recipe(weights, activations, first_last=None))
    stored = "int2" if weights == "ternary" else f"int{weights}"
    assert {w for w, _ in widths(net).values()} == {stored}
    assert {numerics.width(a)[1] for _, a in widths(net).values()} == {activations}
    path = nybble.compile(net, "x86-64-v3", prefer="size").save(tmp_path / "net.so")
    for threads, batch in ((1, 3), (2, 1)):
        x = models.images(batch, (3, SIZE, SIZE), 9)
        report, session = compared(law_of(net, x), path, x, threads)
        assert report.equal
        assert all(row.exact for row in report.rows)
    shown = [layer for layer in session.manifest.layers if layer["weights"]]
    assert {layer["weights"] for layer in shown} == {stored}
    assert {numerics.width(layer["activations"])[1] for layer in shown} == {activations}
    assert session.manifest.recipe["weights"] == weights


def test_values_stay_within_their_widths() -> None:
    """Every intermediate of the law, at the narrowest widths."""
    net = quantized(nybble.Recipe("ternary", 1, first_last=None))
    seen: dict[str, Any] = {}
    net.run(samples(), seen.__setitem__)
    for binding in graph.bindings(net.integer):
        dtype, values = graph.dtype_of(binding.var), seen[str(binding.var.name)]
        if dtype in ("int1", "uint1"):
            assert set(np.unique(values)) <= ({-1, 1} if dtype == "int1" else {0, 1})
    weights = graph.numpy_of(
        next(c for n, _, c in graph.walk(net.integer) if n == next(iter(widths(net)))).args[1]
    )
    assert set(np.unique(weights)) == {-1, 0, 1}


class Perceptron(nn.Module):
    """Linear layers of one row an image behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.first, self.last = nn.Linear(200, 40), nn.Linear(40, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(1)
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize(
    "recipe",
    [
        nybble.Recipe(4, "float", group=64),
        nybble.Recipe(3, "float", group=32, symmetric=False, layers={"last": {"weights": 8}}),
        nybble.Recipe("ternary", "float"),
    ],
)
def test_weights_alone(recipe: nybble.Recipe, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nybble.load_torch(Perceptron().eval(), (torch.zeros(1, 3, SIZE, SIZE),))
    net: Any = nybble.quantize(model, recipe=recipe)
    session: Any = nybble.load(nybble.compile(net, "x86-64-v3").save(tmp_path / "net.so"))
    found = {layer["name"]: layer for layer in session.manifest.layers if layer["weights"]}
    stored = "int2" if recipe.weights == "ternary" else f"int{recipe.weights}"
    assert (found["first"]["weights"], found["first"]["activations"]) == (stored, "float32")
    assert found["last"]["weights"] == ("int8" if recipe.layers else stored)
    assert [line.split(":")[0] for line in session.manifest.kept_float if "conv" in line] == [
        "conv"
    ]
    x = models.images(5, (3, SIZE, SIZE), 9)
    np.testing.assert_allclose(session(x), net.run(x), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(net.run(x), net.simulate(x), atol=0.02)
