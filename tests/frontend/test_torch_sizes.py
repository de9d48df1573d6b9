"""torch networks whose heights, widths and lengths stay open, and token numbers as inputs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from nybble.errors import ImportModelError, UnsupportedOpError
from nybble.frontend.torch import from_torch
from nybble.ir import graph, interpreter, specs
from tests.architectures import MiniLM

OPEN = {"x": (None, 3, "height", "width")}


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.side, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.stem(x))), 3, 1, 1)
        n, c, h, w = x.shape
        tokens = (x + self.side(x)).flatten(2).transpose(1, 2)
        return self.head(tokens.reshape(n, h * w, c)[:, -1])


class Grid(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _same(mod: Any, net: nn.Module, *inputs: Tensor) -> None:
    specs.check(mod, "float")
    with torch.no_grad():
        wanted = net(*inputs).numpy()
    (got,) = interpreter.run(mod, [x.numpy() for x in inputs])
    np.testing.assert_allclose(got, wanted, atol=1e-5 * max(1, np.abs(wanted).max()), rtol=0)


def _shaken(net: nn.Module) -> nn.Module:
    """Statistics of batch norms that are not those of a new one."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.3, 1.7)
    return net


def test_open_image() -> None:
    net = _shaken(Images()).eval()
    mod = from_torch(net, torch.zeros(1, 3, 12, 12), shapes=OPEN)
    assert graph.shape_of(graph.inputs(mod)[0]) == ("batch", 3, "height", "width")
    for shape in ((2, 3, 9, 14), (3, 3, 16, 7)):
        _same(mod, net, torch.randn(shape))


def test_open_sizes_of_an_exported_program() -> None:
    net = _shaken(Images()).eval()
    axes = {0: Dim("n"), 2: Dim("height", min=4), 3: Dim("width", min=4)}
    program = torch.export.export(net, (torch.zeros(2, 3, 9, 14),), dynamic_shapes=(axes,))
    mod = from_torch(program, None)
    assert graph.shape_of(graph.inputs(mod)[0]) == ("batch", 3, "x_2", "x_3")
    _same(mod, net, torch.randn(1, 3, 11, 6))
    with pytest.raises(ImportModelError, match="keeps the sizes of its export"):
        from_torch(program, None, shapes=OPEN)


def test_batch_norm_of_a_graph_module_in_training() -> None:
    net = _shaken(Images()).eval()
    traced = torch.fx.symbolic_trace(copy.deepcopy(net)).train()
    mod = from_torch(traced, torch.zeros(2, 3, 9, 9))
    _same(mod, net, torch.randn(4, 3, 9, 9))
    assert traced.training


def test_tokens_of_an_open_length() -> None:
    net = MiniLM(length=12).eval()
    ids, mask = torch.randint(0, 50, (2, 6)), torch.ones(2, 6, dtype=torch.int64)
    shapes = {"ids": (None, "length"), "mask": (None, "length")}
    mod = from_torch(net, (ids, mask), shapes=shapes)
    assert [graph.shape_of(v) for v in graph.inputs(mod)] == [("batch", "length")] * 2
    for length in (4, 9):
        ids, mask = torch.randint(0, 50, (3, length)), torch.ones(3, length, dtype=torch.int64)
        mask[1:, -2:] = 0
        _same(mod, net, ids, mask)


def test_causal_attention_of_an_open_length() -> None:
    def attend(x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    net = Grid(attend)
    mod = from_torch(net, torch.zeros(2, 5, 8), shapes={"x": (None, "length", 8)})
    _same(mod, net, torch.randn(1, 7, 8))


@pytest.mark.parametrize(
    ("function", "shapes", "said"),
    [
        (lambda x: x.reshape(-1, 3 * 8, 6), OPEN, "Write it for any size"),
        (lambda x: x if x.shape[2] < 20 else 2 * x, OPEN, "a height from 2 to 19 only"),
        (torch.relu, {"y": OPEN["x"]}, r"no inputs \['y'\]; forward takes x"),
        (torch.relu, {"x": (None, 3, "height")}, r"its example has the shape \(2, 3, 8, 6\)"),
        (torch.relu, {"x": (None, 4, 8, 6)}, "its example has the shape"),
    ],
)
def test_sizes_that_cannot_stay_open(function: Any, shapes: Any, said: str) -> None:
    with pytest.raises(ImportModelError, match=said):
        from_torch(Grid(function), torch.zeros(2, 3, 8, 6), shapes=shapes)


def test_an_open_axis_needs_an_example_of_two() -> None:
    with pytest.raises(ImportModelError, match=r"axes \[3\] shall stay open.*at least 2"):
        from_torch(Grid(torch.relu), torch.zeros(2, 3, 8, 1), shapes=OPEN)


def test_what_torch_promotes_is_refused_and_listed_with_the_rest() -> None:
    net = Grid(lambda x: torch.lgamma(x * 0.5) + torch.digamma(x / 2))
    with pytest.raises(UnsupportedOpError) as caught:
        from_torch(net, torch.ones(2, 3, dtype=torch.int64))
    text = str(caught.value)
    for part in ("gives int64 where torch gives float32", "aten.lgamma", "aten.digamma"):
        assert part in text
