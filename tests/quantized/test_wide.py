"""Activations and weights of 16 bits, and integers of 32: the kernels equal the law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax

import nybble
from nybble.ir import graph, interpreter, numerics, ops, specs
from nybble.passes import pipeline
from nybble.passes.grids import Grid
from nybble.passes.headroom import with_room
from nybble.passes.quantize import simulate
from nybble.passes.regions import Matcher
from nybble.passes.view import View

RANDOM = np.random.default_rng(0)
nn = relax.op.nn


def compiled(mod: Any, folder: Path) -> nybble.QuantizedModel:
    """The network, proven equal to its library on the way."""
    quantized = nybble.QuantizedModel(mod, pipeline.to_integer(mod, None), None)
    session = nybble.load(nybble.compile(quantized).save(folder / "net.so"))
    shape = tuple(int(d) for d in graph.shape_of(graph.inputs(mod)[0]))
    x = RANDOM.normal(0, 3, shape).astype(np.float32)
    x.flat[:4] = np.nan, np.inf, -np.inf, 1e30
    np.testing.assert_array_equal(session(x), quantized.run(x))
    return quantized


@pytest.mark.sweep
@pytest.mark.parametrize("grid", [Grid(1e-4, "int16", -5), Grid(2e-4, "uint16", 40_000),
                                  Grid(1e-3, "int32")], ids=str)  # fmt: skip
def test_borders(grid: Grid, tmp_path: Path) -> None:
    x = relax.Var("x", relax.TensorType((3, 5, 7, 16), "float32"))
    emitter = graph.Emitter([x])
    y = simulate(emitter, x, grid, "x")
    compiled(emitter.finish([y], ["y"], "quantized"), tmp_path)


def test_a_function_of_16_bits_is_a_table(tmp_path: Path) -> None:
    """65,536 entries for the activations of networks that were quantized so elsewhere."""
    x = relax.Var("x", relax.TensorType((3, 5, 16), "float32"))
    emitter = graph.Emitter([x])
    a = simulate(emitter, x, Grid(3e-4, "uint16", 30_000), "x")
    y = simulate(emitter, emitter.emit(nn.silu(a), "f"), Grid(2e-4, "int16", -20_000), "f")
    quantized = compiled(emitter.finish([y], ["y"], "quantized"), tmp_path)
    table = next(c for _, op, c in graph.walk(quantized.integer) if op == "nybble.table")
    assert graph.shape_of(table.args[1]) == (65_536,)
    assert graph.dtype_of(table.args[1]) == "int16"
    drawn: Any = RANDOM.normal(0, 3, (3, 5, 16)).astype(np.float32)
    np.testing.assert_array_equal(quantized.run(drawn), quantized.simulate(drawn))


def residual(weights: Any, bias: Any, on: Grid) -> Any:
    """A convolution, a residual add and a pool on one grid."""
    x = relax.Var("x", relax.TensorType((2, 6, 7, 16), "float32"))
    emitter = graph.Emitter([x])
    a = simulate(emitter, x, on, "x")
    scale = np.linspace(1e-3, 2e-3, len(weights), dtype=np.float32)
    stored = [graph.constant(v) for v in (weights, scale, np.int32(0))]
    w = emitter.emit(ops.call("dequantize", stored, axis=0), "w")
    conv = nn.conv2d(a, w, padding=1, data_layout="NHWC", kernel_layout="OHWI")
    c = emitter.emit(relax.op.add(emitter.emit(conv, "c"), graph.constant(bias)), "c.bias")
    b = simulate(emitter, c, on, "c")
    total = simulate(emitter, emitter.emit(relax.op.add(a, b), "sum"), on, "sum")
    pool = emitter.emit(nn.avg_pool2d(total, (2, 2), (2, 2), layout="NHWC"), "pool")
    return emitter.finish([simulate(emitter, pool, on, "pool")], ["y"], "quantized")


@pytest.mark.sweep
@pytest.mark.parametrize("grid", [Grid(2e-4, "int16", 9), Grid(3e-4, "uint16", 31_000)], ids=str)
def test_activations_of_16_bits(grid: Grid, tmp_path: Path) -> None:
    weights = RANDOM.integers(-127, 128, (16, 3, 3, 16)).astype(np.int8)
    bias = np.linspace(-1, 1, 16, dtype=np.float32)
    quantized = compiled(residual(weights, bias, grid), tmp_path)
    assert specs.between_borders(quantized.integer) == []


def test_sums_that_may_leave_32_bits_stay_float() -> None:
    weights = np.full((16, 3, 3, 16), 127, np.int8)
    mod = residual(weights, np.zeros(16, np.float32), Grid(2e-4, "uint16", 65_000))
    kept = pipeline.to_integer(mod, None)["main"].attrs["kept_float"]
    assert any(str(line).startswith("c: relax.nn.conv2d: channel 0 may reach") for line in kept)


def test_a_stretched_bias_makes_room() -> None:
    """Like ONNX Runtime's tool: a scale so small that the bias alone fills 32 bits."""
    grid = Grid(0.02, "uint8", 0)
    x = relax.Var("x", relax.TensorType((2, 5, 5, 8), "float32"))
    emitter = graph.Emitter([x])
    a = simulate(emitter, x, grid, "x")
    scale = np.full(4, 1e-3, np.float32)
    scale[2] = 5e-10
    weights = RANDOM.integers(-127, 128, (4, 1, 1, 8)).astype(np.int8)
    bias = np.array([0.5, -1, 5e-10 * 0.02 * (2**31 - 500), 0], np.float32)
    stored = [graph.constant(v) for v in (weights, scale, np.int32(0))]
    w = emitter.emit(ops.call("dequantize", stored, axis=0), "w")
    conv = emitter.emit(nn.conv2d(a, w, data_layout="NHWC", kernel_layout="OHWI"), "c")
    y = emitter.emit(relax.op.add(conv, graph.constant(bias)), "c.bias")
    out = Grid(1e-3, "uint8", 100)
    mod = emitter.finish([simulate(emitter, y, out, "y")], ["y"], "quantized")
    found = Matcher(View(mod)).accumulators("c.bias")
    assert found is not None
    made = with_room(found, out.scale)
    assert made is not None
    assert list(made.scale / found.scale) == [1, 1, 4, 1]
    assert with_room(found, 1e-9) is None  # it would show on so fine a grid
    integer = pipeline.to_integer(mod, None)
    assert specs.between_borders(integer) == []
    sample = np.abs(RANDOM.normal(0, 2, (2, 5, 5, 8))).astype(np.float32)
    exact, simulated = (interpreter.run(m, [sample])[0] for m in (integer, mod))
    assert np.abs(exact - simulated).max() <= out.scale * 1.001
    assert numerics.limits(out.dtype) == (0, 255)
