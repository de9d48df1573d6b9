"""Asymmetric grids, as imported models bring them: the lowering folds zero points away."""

import numpy as np
import pytest
from tvm import relax

from nybble.ir import graph, interpreter, ops, specs
from nybble.passes import pipeline
from nybble.passes.grids import Grid
from nybble.passes.quantize import simulate
from nybble.recipe import Recipe
from tests.passes.nets import images, nn

WEIGHTS = np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
IN, OUT = Grid(0.03125, "uint8", 131), Grid(0.0625, "uint8", 17)


def weights(emitter):
    scale = np.linspace(0.001, 0.004, 4, dtype=np.float32)
    constants = [graph.constant(v) for v in (WEIGHTS, scale, np.int32(0))]
    return emitter.emit(ops.call("dequantize", constants, axis=0), "w")


def convolution(emitter, x):
    w = weights(emitter)
    conv = nn.conv2d(x, w, padding=1, data_layout="NHWC", kernel_layout="OHWI")
    bias = graph.constant(np.array([0.5, -0.5, 0, 1], np.float32))
    return relax.op.add(emitter.emit(conv, "c"), bias)


def residual(emitter, x):
    w = relax.op.clip(x, -1.0, 0.75)
    other = simulate(emitter, emitter.emit(w, "clip"), Grid(0.01, "int8", -5), "clip")
    return relax.op.add(x, other)


LAYERS = {
    "conv": (convolution, 1),
    "residual": (residual, 2),
    "max_pool": (lambda _e, x: nn.max_pool2d(x, (3, 3), (2, 2), 1, layout="NHWC"), 1),
    "pad": (lambda _e, x: nn.pad(x, [0, 0, 1, 2, 0, 1, 0, 0], "constant", 0.0), 1),
    "relu": (lambda _e, x: nn.relu(x), 1),
    "counted": (lambda _e, x: nn.avg_pool2d(
        x, (3, 3), (2, 2), 1, count_include_pad=True, layout="NHWC"), 1),
    "uncounted": (lambda _e, x: nn.avg_pool2d(
        x, (3, 3), (2, 2), 1, count_include_pad=False, layout="NHWC"), 1),
    "tripled": (lambda _e, x: relax.op.multiply(x, graph.constant(np.float32(3))), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_zero_points_are_folded(name):
    build, roundings = LAYERS[name]
    image = relax.Var("x", relax.TensorType((3, 9, 7, 3), "float32"))
    emitter = graph.Emitter([image])
    y = emitter.emit(build(emitter, simulate(emitter, image, IN, "x")), "y")
    quantized = emitter.finish([simulate(emitter, y, OUT, "y")], ["y"], "quantized")
    integer = pipeline.to_integer(quantized, Recipe())
    assert specs.between_borders(integer) == []
    x = images(9, 7, 3)
    simulated, exact = interpreter.run(quantized, [x])[0], interpreter.run(integer, [x])[0]
    assert np.abs(exact - simulated).max() <= roundings * OUT.scale * 1.001
    assert np.ptp(simulated) > 20 * OUT.scale  # the layer did something
