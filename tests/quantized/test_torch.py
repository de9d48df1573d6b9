"""Graphs that torch has quantized: what PT2E's convert leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nybble
from nybble.frontend import torch_quantized
from nybble.ir import graph, specs
from tests import models
from tests.quantized.parity import units_apart

torch_quantized.register()
decomposed = torch.ops.quantized_decomposed
SIZE = 12


def border(x: Any, scale: float, zero: int, lo: int = 0, hi: int = 255) -> Any:
    """A quantize and a dequantize, as PT2E writes them."""
    grid = (scale, zero, lo, hi, torch.uint8 if lo >= 0 else torch.int8)
    return decomposed.dequantize_per_tensor(decomposed.quantize_per_tensor(x, *grid), *grid)


class Quantized(nn.Module):
    """Convolutions with a residual and a linear layer, on integers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"stem": (8, 3, 3, 3), "body": (8, 8, 3, 3), "head": (5, 8)}
        for name, shape in shapes.items():
            drawn = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
            self.register_buffer(name, drawn)
            scale = torch.linspace(0.5, 1.5, shape[0]) / (40 * drawn[0].numel() ** 0.5)
            self.register_buffer(f"{name}_scale", scale)
            self.register_buffer(f"{name}_zero", torch.zeros(shape[0], dtype=torch.int64))
        self.bias = nn.Parameter(torch.linspace(-0.5, 0.5, 8))

    def weight(self, name: str) -> Any:
        tensors = (getattr(self, f"{name}{part}") for part in ("", "_scale", "_zero"))
        return decomposed.dequantize_per_channel(*tensors, 0, -128, 127, torch.int8)

    def forward(self, x: Any) -> Any:
        x = border(x, 0.03, 121)
        a = torch.conv2d(x, self.weight("stem"), self.bias, padding=1).relu()
        a = border(a, 0.02, 0)
        b = border(torch.conv2d(a, self.weight("body"), padding=1), 0.04, -3, -127, 127)
        c = border((a + b).relu(), 0.03, 0, 0, 127)
        pooled = border(c.mean((2, 3)), 0.01, 0)
        return border(nn.functional.linear(pooled, self.weight("head")), 0.02, 128)


def test_graph() -> None:
    net, x = Quantized(), models.images(6, (3, SIZE, SIZE))
    model = nybble.load_torch(net, torch.from_numpy(x))
    assert isinstance(model, nybble.QuantizedModel)
    assert specs.between_borders(model.integer) == []
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).numpy()
    simulated: Any = model.simulate(x)
    assert np.mean(simulated == wanted) > 0.98  # torch multiplies by 1/scale
    assert np.abs(simulated - wanted).max() <= 0.02 * 1.001
    assert max(units_apart(model.module, [x]).values()) <= 1


def test_exported_program(tmp_path: Any) -> None:
    x = torch.from_numpy(models.images(2, (3, SIZE, SIZE)))
    program = torch.export.export(Quantized(), (x,), strict=True)
    torch.export.save(program, tmp_path / "net.pt2")
    from nybble.commands import load_model  # noqa: PLC0415

    model = load_model(tmp_path / "net.pt2")
    assert isinstance(model, nybble.QuantizedModel)
    direct = nybble.load_torch(program, ())
    np.testing.assert_array_equal(model.run(x.numpy()), direct.run(x.numpy()))


@pytest.mark.slow
def test_torchao() -> None:
    pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    x86 = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    x = torch.from_numpy(models.images(8, (3, SIZE, SIZE)))
    program = torch.export.export(models.settled(lambda: net, (3, SIZE, SIZE)), (x,))
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = pt2e.prepare_pt2e(program.module(), quantizer)
    prepared(x)
    converted = pt2e.convert_pt2e(prepared)
    model = nybble.load_torch(converted, x, dynamic_batch=False)
    assert isinstance(model, nybble.QuantizedModel)
    ops = [graph.op_name(b.value) for b in graph.bindings(model.integer)]
    assert ops.count("nybble.conv2d") == 2
    assert ops.count("nybble.linear") == 1
    wanted: Any = converted(x).detach().numpy()
    simulated: Any = model.simulate(x.numpy())
    np.testing.assert_allclose(simulated, wanted, atol=0.01 * np.abs(wanted).max())
