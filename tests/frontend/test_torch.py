"""The torch importer: every operator against torch, names, batches, and every error."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nybble.errors import ImportModelError, UnsupportedOpError
from nybble.frontend.torch import from_torch
from nybble.ir import graph, interpreter, specs
from tests import models

Forward = Callable[["Net", Tensor], Any]
SHAPE = (2, 4, 9, 7)


class Net(nn.Module):
    """Runs any function of itself and its input, with some weights at hand."""

    block: nn.Sequential

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.function = forward
        self.w = nn.Parameter(torch.randn(7, 5, generator=generator))
        self.c = nn.Parameter(torch.randn(4, 1, 1, generator=generator))
        self.k = nn.Parameter(torch.randn(6, 2, 3, 3, generator=generator))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def check(net: nn.Module, shape: tuple[int, ...] = SHAPE, dynamic: bool = False) -> Any:
    """Imports, compares with torch at another batch size when dynamic, returns the module."""
    mod = from_torch(net, torch.zeros(shape), dynamic_batch=dynamic)
    specs.check(mod, "float")
    x = torch.from_numpy(models.images(shape[0] + 3 * dynamic, shape[1:], seed=5) * 3)
    with torch.no_grad():
        wanted = copy.deepcopy(net).eval()(x)
    results = wanted if isinstance(wanted, tuple) else (wanted,)
    for got, result in zip(interpreter.run(mod, [x.numpy()]), results, strict=True):
        assert got.shape == tuple(result.shape)
        np.testing.assert_allclose(got, result.numpy(), rtol=1e-4, atol=1e-5)
    return mod


# Several operators in one network: an export costs more than everything that is tested.
GROUPS: dict[str, list[Forward]] = {
    "elementwise": [
        lambda _, x: torch.relu(x),
        lambda _, x: functional.relu6(x),
        lambda _, x: functional.hardtanh(x, -0.5, 2),
        lambda _, x: functional.leaky_relu(x, 0.2),
        lambda _, x: functional.silu(x),
        lambda _, x: functional.hardswish(x),
        lambda _, x: functional.hardsigmoid(x),
        lambda _, x: torch.sigmoid(x) + torch.tanh(x),
        lambda _, x: torch.exp(-0.1 * x),
        lambda _, x: torch.clamp(x, -1, 1),
        lambda _, x: torch.clamp(x, max=1),
        lambda _, x: x.clamp(min=0),
        lambda _, x: torch.softmax(x, 1),
    ],
    "arithmetic": [
        lambda net, x: x + net.c,
        lambda net, x: net.c * x,
        lambda net, x: net.c - x,
        lambda _, x: 2 - x,
        lambda _, x: torch.add(x, torch.relu(x), alpha=2),
        lambda _, x: torch.sub(x, 1, alpha=2),
        lambda _, x: (x + 3) / 6,
        lambda net, x: x / (net.c.abs() + 1),
        lambda _, x: torch.maximum(x, torch.tanh(x)),
        lambda _, x: torch.minimum(x, -x),
    ],
    "pooling": [
        lambda _, x: functional.max_pool2d(x, 2),
        lambda _, x: functional.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        lambda _, x: functional.max_pool2d(x, (2, 3), (2, 1), (1, 0), dilation=(1, 2)),
        lambda _, x: functional.avg_pool2d(x, 3, 2, 1),
        lambda _, x: functional.avg_pool2d(x, 3, 3, 1, ceil_mode=True),
        lambda _, x: functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        lambda _, x: functional.avg_pool2d(x, 2, ceil_mode=True),
        lambda _, x: functional.adaptive_avg_pool2d(x, 1),
        lambda _, x: functional.adaptive_avg_pool2d(x, (3, None)),
        lambda _, x: x.mean((2, 3)),
        lambda _, x: x.mean(1, keepdim=True),
        lambda _, x: x.mean(),
    ],
    "structure": [
        lambda _, x: torch.cat([x, torch.relu(x)], 1),
        lambda _, x: torch.flatten(x, 1),
        lambda _, x: x.flatten(2, 3).transpose(1, 2),
        lambda _, x: x.permute(0, 2, 3, 1).contiguous(),
        lambda _, x: x.reshape(x.shape[0], -1),
        lambda _, x: x.view(x.size(0), 2, -1, 7),
        lambda _, x: x.reshape(-1, 7),
        lambda _, x: functional.pad(x, (1, 0, 2, 3), value=1.5),
        lambda _, x: functional.pad(x, (1, 2)),
        lambda _, x: x.unsqueeze(1).unsqueeze(-1).squeeze(1).squeeze(),
        lambda _, x: x.unsqueeze(0).squeeze((0, 2)),
        lambda _, x: functional.dropout(x, training=False).detach().clone(),
        lambda _, x: x.float(),
    ],
    "weights": [
        lambda net, x: x @ net.w,
        lambda net, x: functional.linear(x, net.w.T, net.w[0]),
        lambda net, x: torch.addmm(net.w[0], x.reshape(-1, 7), net.w),
        lambda net, x: functional.conv2d(x, net.k, None, (2, 1), (1, 2), (1, 2), groups=2),
        lambda net, x: functional.conv2d(x, net.k, net.w.flatten()[:6], padding="same", groups=2),
        lambda net, x: functional.conv2d(x, net.k * 2, padding="valid", groups=2),
        lambda _, x: functional.batch_norm(x, torch.arange(4.0), torch.arange(4.0)),
    ],
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_operators(group: str, dynamic: bool) -> None:
    check(Net(lambda net, x: tuple(f(net, x) for f in GROUPS[group])), dynamic=dynamic)


def test_names_are_module_paths() -> None:
    mod = check(models.tiny_cnn(16), (2, 3, 16, 16))
    names = [name for name, _, _ in graph.walk(mod)]
    for name in ("stem", "stem.bias", "bn.scale", "bn", "depthwise", "pool", "head", "add", "cat"):
        assert name in names
    assert [str(v.name) for v in graph.inputs(mod)] == ["x"]
    assert graph.output_names(mod) == ["output"]


def test_a_network_in_training_mode_is_imported_in_eval_mode_and_not_changed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(True))
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    check(net, (2, 3, 8, 8))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_block_used_twice_and_inplace_operators() -> None:
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True))

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.block(net.block(x))
        y += x
        return y.mul_(2)

    net = Net(forward)
    net.block = block  # a submodule of the name that the function reads
    names = [name for name, _, _ in graph.walk(check(net))]
    assert "block.0" in names
    assert "block.0.2" in names  # the second use


def test_exported_program_and_fx_graph_module_equal_the_module() -> None:
    x = models.images(3, (3, 8, 8))
    net = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))).eval()
    example = torch.from_numpy(x)
    (wanted,) = interpreter.run(from_torch(net, example), [x])
    program = torch.export.export(net, (example[:2],))
    traced = torch.fx.symbolic_trace(net)
    (from_fx,) = interpreter.run(from_torch(traced, (example,)), [x])
    np.testing.assert_array_equal(from_fx, wanted)
    mod = from_torch(program, None)
    assert graph.shape_of(graph.inputs(mod)[0]) == (2, 3, 8, 8)
    np.testing.assert_allclose(interpreter.run(mod, [x[:2]])[0], wanted[:2], rtol=1e-5, atol=1e-6)
    assert "stem" in [name for name, _, _ in graph.walk(from_torch(traced, (example,)))]


def test_weights_are_not_copied_by_the_export() -> None:
    from nybble.frontend import torch as importer  # noqa: PLC0415
    from nybble.frontend import torch_sizes  # noqa: PLC0415

    net = nn.Conv2d(3, 4, 3)
    program = importer._export(net, torch_sizes.asked(net, [torch.zeros(2, 3, 8, 8)], True, {}))
    assert program.state_dict["weight"].data_ptr() == net.weight.data_ptr()


def test_every_unsupported_node_is_listed() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 4, 1)
            self.up = nn.ConvTranspose2d(4, 4, 2)
            self.pool = nn.AdaptiveAvgPool2d(7)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.atan(self.first(x))
            z = functional.pad(self.up(y), (1, 1, 1, 1), mode="reflect")
            return self.pool(torch.cumsum(z, 1))

    with pytest.raises(UnsupportedOpError) as caught:
        from_torch(Odd(), torch.zeros(SHAPE))
    text = str(caught.value)
    for part in ("aten.atan.default 'atan'", "'up'", "aten.cumsum.default", "'pool'"):
        assert part in text
    assert "'first'" not in text


def test_indices_of_max_pool_are_refused() -> None:
    net = nn.MaxPool2d(2, return_indices=True)
    with pytest.raises(UnsupportedOpError, match="only the first"):
        from_torch(net, torch.zeros(SHAPE), dynamic_batch=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weight_that_is_not_finite_is_named(bad: float) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    net.state_dict()["1.running_var"][2] = bad
    with pytest.raises(ImportModelError, match=r"weight '1\.running_var' of shape \(4,\) holds 1"):
        from_torch(net, torch.zeros(SHAPE), dynamic_batch=False)


def test_half_precision_is_refused() -> None:
    with pytest.raises(ImportModelError, match=r"torch\.float16.*net\.float\(\)"):
        from_torch(nn.ReLU(), torch.zeros(SHAPE).half(), dynamic_batch=False)
    net = Net(lambda net, x: functional.conv2d(x, net.k.float(), groups=2)).double()
    with pytest.raises(ImportModelError, match=r"Weight 'k': its dtype is torch\.float64"):
        from_torch(net, torch.zeros(SHAPE), dynamic_batch=False)


@pytest.mark.parametrize("examples", [(), None, [1.0], "x"])
def test_no_example_inputs(examples: Any) -> None:
    with pytest.raises(ImportModelError, match="example_inputs"):
        from_torch(nn.ReLU(), examples)


def test_a_network_that_fixes_its_batch() -> None:
    net = Net(lambda _, x: x.reshape(2, 252))
    with pytest.raises(ImportModelError, match=r"batch of 2 only.*dynamic_batch=False"):
        from_torch(net, torch.zeros(SHAPE))
    check(net)


def test_a_network_that_restricts_its_batch() -> None:
    net = Net(lambda _, x: x if x.shape[0] < 5 else 2 * x)
    with pytest.raises(ImportModelError, match=r"batches from 2 to 4 only"):
        from_torch(net, torch.zeros(SHAPE))


def test_a_network_that_torch_cannot_export() -> None:
    net = Net(lambda _, x: x if x.sum() > 0 else -x)
    with pytest.raises(ImportModelError, match=r"Net: torch\.export cannot export it"):
        from_torch(net, torch.zeros(SHAPE))


def test_a_program_exported_in_training_mode() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).train()
    program = torch.export.export(net, (torch.zeros(SHAPE),))
    with pytest.raises((ImportModelError, UnsupportedOpError), match="eval mode"):
        from_torch(program, None)


class InPlace(nn.Module):
    """Changes a convolution's result, and a tensor that is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu_(self.conv(x))
        z = y + 1
        z.relu_()
        return z + y


class InPlaceOfView(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y.view(-1, 48).relu_()
        return y


@pytest.mark.parametrize("build", [InPlace, InPlaceOfView])
def test_in_place_operators(build: type[nn.Module]) -> None:
    net, x = build().eval(), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        want = net(x).numpy()
    got = interpreter.run(from_torch(net, x), [x.numpy()])[0]
    np.testing.assert_allclose(got, want, atol=1e-5)
