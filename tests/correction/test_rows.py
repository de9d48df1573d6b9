"""Rows of a layer times its weights are the layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nybble
from nybble.ir import graph
from nybble.passes.correction.front import Front
from nybble.passes.correction.rows import choose, outputs_at, product_of
from nybble.passes.differentiable import Differentiable
from nybble.passes.settle import rows_of
from nybble.passes.simulation import Simulation
from nybble.passes.view import View
from nybble.recipe import Recipe
from tests.correction.learning import canonical, module, settled, spooled
from tests.walking import few

CONVOLUTIONS = {
    "plain": nn.Conv2d(6, 4, 3),
    "strided": nn.Conv2d(6, 4, (3, 2), stride=(2, 3), padding=1),
    "dilated": nn.Conv2d(6, 4, 3, dilation=(2, 1), padding=(2, 0)),
    "grouped": nn.Conv2d(6, 9, 3, groups=3, padding=1),
    "depthwise": nn.Conv2d(6, 6, (1, 3), groups=6),
    "multiplied": nn.Conv2d(6, 12, 3, groups=6),
    "padded": nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(6, 4, 3, 2)),
}


class OverTime(nn.Module):
    """A linear layer on (N, T, K)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x.flatten(2)))


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "linear"])
def test_rows_times_weights_are_the_layer(name: str) -> None:
    torch.manual_seed(0)
    net = CONVOLUTIONS.get(name) or OverTime()
    x = torch.randn(3, 6, *((9, 8) if name in CONVOLUTIONS else (4, 2)))
    mod = canonical(nybble.load_torch(net.eval(), (x,)))
    view, torched, seen = View(mod), Differentiable(mod), dict[str, Tensor]()
    with torch.no_grad():
        torched({view.inputs[0]: x}, seen.__setitem__)
    layer = torched.layers[0]
    product = product_of(view, layer)
    chosen = choose(len(x), product.pixels, 40, torch.Generator().manual_seed(1))
    rows = product.rows(seen[view.sources(layer)[0]], chosen)
    made = product.times(rows, product.weights(rows_of(view.calls[layer])))
    torch.testing.assert_close(made, outputs_at(seen[layer], chosen))
    weights = rows_of(view.calls[layer])
    np.testing.assert_array_equal(product.unfolded(product.weights(weights)), weights)


def test_chosen_outputs_differ_within_a_sample() -> None:
    chosen = choose(5, 30, 60, torch.Generator().manual_seed(0))
    assert chosen.shape == (5, 12)
    assert all(len(set(sample)) == 12 for sample in chosen.tolist())
    assert choose(5, 3, 60, torch.Generator()).shape == (5, 3)
    assert choose(7, 30, 2, torch.Generator()).shape == (7, 1)


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_front_holds_what_the_simulation_computes(limit: int) -> None:
    """Layer by layer over batches of three, from memory and from disk."""
    recipe = Recipe(weights=3, activations=3)
    simulation = Simulation(settled(recipe))
    name = str(graph.inputs(module())[0].name)
    whole: dict[str, Tensor] = {}

    def observe(name: str, values: Tensor) -> None:
        whole[name] = values.clone()

    with torch.no_grad():
        simulation({name: torch.from_numpy(few())}, observe)
    view = View(module())
    with spooled(module(), few(), limit) as samples:
        front = Front(simulation.net, samples, 3)
        front.grids, front.swaps = simulation.grids, dict(simulation.weights)
        for layer in simulation.net.layers:
            front.advance(simulation.net.index(layer))
            source = view.sources(layer)[0]
            here = torch.cat([values[source] for values in front.read()])
            torch.testing.assert_close(here, whole[source], rtol=1e-5, atol=1e-5)
        front.close()
