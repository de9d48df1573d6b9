"""Products of two quantized tensors: gates of channels, and elements by elements."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax

import nybble
from nybble.ir import interpreter, numerics, ops, specs
from nybble.ir.graph import constant
from nybble.model import Model
from nybble.schedules.target import resolve
from tests.passes.nets import Net, images, op_names
from tests.passes.test_lowering import kept, walk
from tests.schedules.modules import Compiled, module
from tests.walking import compared, law_of, runs_here

SHAPE = (4, 9, 7)


def gated() -> Any:
    """Squeeze and excite: a gate for every channel, from the mean of its image."""
    net = Net(*SHAPE)
    x = net.relu("r", net.bias("c.bias", net.conv("c", net.x, 6, padding=1)))
    mean = net.emit("mean", relax.op.mean(x, [2, 3], keepdims=True))
    low = net.relu("low.relu", net.conv("low", mean, 3, 1))
    gate = net.emit("gate", relax.op.sigmoid(net.conv("high", low, 6, 1)))
    return net.done(net.conv("last", net.emit("gated", relax.op.multiply(x, gate)), 3))


def squared(clamps: bool) -> Any:
    """Two branches, element by element; maybe with a clamp behind."""
    net = Net(*SHAPE)
    a, b = net.conv("a", net.x, 6, padding=1), net.conv("b", net.x, 6, padding=1)
    product = net.emit("product", relax.op.multiply(a, b))
    return net.done(net.conv("last", net.relu("r", product) if clamps else product, 3))


NETWORKS = {"gated": gated, "two": lambda: squared(False), "clamped": lambda: squared(True)}


@pytest.mark.parametrize("name", NETWORKS)
def test_products_are_computed_in_integers(name: str) -> None:
    x = images(*SHAPE)
    canonical, quantized, integer = walk(NETWORKS[name](), x)
    assert kept(integer) == []
    assert specs.between_borders(integer) == []
    assert op_names(integer).count("nybble.multiply") == 1
    real, simulated, exact = (interpreter.run(m, [x])[0] for m in (canonical, quantized, integer))
    assert np.abs(exact - simulated).mean() <= 0.01 * np.abs(simulated).max()
    assert np.abs(simulated - real).max() <= 0.1 * np.abs(real).max()


@pytest.mark.parametrize(("target", "bits"), [("native", 8), ("x86-64-v3", 4), ("x86-64", 2)])
def test_the_library_equals_the_law(target: str, bits: int, tmp_path: Path) -> None:
    runs_here(target)
    x, recipe = images(*SHAPE), nybble.Recipe(weights=bits, activations=bits)
    quantized = nybble.quantize(Model(gated()), [x], recipe)
    path = nybble.compile(quantized, target).save(tmp_path / "net.so")
    for threads in (1, 2):
        report, session = compared(law_of(quantized, x), path, x, threads)
        assert report.equal
        assert session.manifest.kept_float == ()


@pytest.mark.parametrize("rounding", ["half_up", "half_even", "tflite"])
@pytest.mark.parametrize(
    ("left", "right"), [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8")]
)
def test_the_kernel_equals_the_law(left: str, right: str, rounding: str) -> None:
    """All pairs of values, so every extreme; zero points at the ends of the grids."""
    (lo, hi), (low, high) = numerics.limits(left), numerics.limits(right)
    a = np.arange(lo, hi + 1).astype(numerics.storage(left)).reshape(1, 1, -1, 1)
    b = np.arange(low, high + 1).astype(numerics.storage(right)).reshape(1, 1, 1, -1)
    ratio = np.asarray(300 / ((hi - lo) * (high - low)))
    attrs: Any = {
        "dtype": "uint8", "lo": 3, "hi": 250, "rounding": rounding,
        "zero_point_a": lo, "zero_point_b": high, "zero_point": 255,
    }  # fmt: skip
    scale = numerics.dyadic(ratio)

    def body(emitter: Any, x: Any, y: Any) -> Any:
        return emitter.emit(ops.call("multiply", [x, y, *map(constant, scale)], **attrs), "y")

    mod = module(body, (a.shape[1:], left), (b.shape[1:], right))
    wanted = numerics.multiply(a, b, *scale, **attrs)
    assert (wanted.min(), wanted.max()) == (3, 250)
    np.testing.assert_array_equal(Compiled(mod, resolve("native"))([a, b]), wanted)
