"""Element-wise functions of one tensor become tables, whatever they are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax

import nybble
from nybble.ir import graph, interpreter, numerics, specs
from nybble.model import Model
from nybble.passes import pipeline
from nybble.passes.grids import shifted_grid
from nybble.passes.pointwise import functions
from nybble.passes.view import View
from nybble.recipe import Recipe
from tests.passes.nets import Net, call_of, images, nn, op_names
from tests.passes.test_lowering import kept, walk
from tests.walking import compared, law_of

Build = Callable[[Net, Any], Any]
op = relax.op


def number(value: float) -> Any:
    return graph.constant(np.float32(value))


def filled(value: float) -> Any:
    """One number for each channel, all the same."""
    return graph.constant(np.full((4, 1, 1), value, np.float32))


def hard_swish(net: Net, x: Any) -> Any:
    slope = net.emit("slope", op.divide(x, number(6)))
    gate = net.emit("gate", op.clip(net.emit("shift", op.add(slope, number(0.5))), 0.0, 1.0))
    return op.multiply(x, gate)


def gelu(net: Net, x: Any) -> Any:
    cube = net.emit("cube", op.multiply(net.emit("square", op.multiply(x, x)), x))
    inner = net.emit("inner", op.add(net.emit("bent", op.multiply(cube, number(0.044715))), x))
    bent = net.emit("tanh", op.tanh(net.emit("scaled", op.multiply(inner, number(0.7978846)))))
    half = net.emit("half", op.multiply(x, number(0.5)))
    return op.multiply(half, net.emit("one", op.add(bent, number(1))))


def silu(net: Net, x: Any) -> Any:
    return op.multiply(x, net.emit("sigmoid", op.sigmoid(x)))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


FUNCTIONS: dict[str, tuple[Build, Callable[[Any], Any]]] = {
    "sigmoid": (lambda _, x: op.sigmoid(x), sigmoid),
    "tanh": (lambda _, x: op.tanh(x), np.tanh),
    "exp": (lambda _, x: op.exp(x), np.exp),
    "leaky": (lambda _, x: nn.leakyrelu(x, 0.1), lambda x: np.where(x > 0, x, 0.1 * x)),
    "silu": (silu, lambda x: x * sigmoid(x)),
    "silu at once": (lambda _, x: nn.silu(x), lambda x: x * sigmoid(x)),
    "hard-swish": (hard_swish, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "gelu": (gelu, lambda x: x / 2 * (1 + np.tanh(0.7978846 * (x + 0.044715 * x**3)))),
    "floor": (lambda _, x: op.maximum(x, number(-0.25)), lambda x: np.maximum(x, -0.25)),
    "filled": (lambda _, x: op.maximum(x, filled(-0.25)), lambda x: np.maximum(x, -0.25)),
}
SHAPE = (4, 8, 8)


def network(build: Build) -> Any:
    net = Net(*SHAPE)
    x = net.bias("c.bias", net.conv("c", net.x, 4, padding=1))
    return net.done(net.conv("d", net.emit("f", build(net, x)), 3))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_one_table(name: str, bits: int) -> None:
    build, meaning = FUNCTIONS[name]
    recipe = Recipe(activations=bits, first_last=None)
    _, quantized, integer = walk(network(build), images(*SHAPE), recipe)
    assert kept(integer) == []
    assert specs.between_borders(integer) == []
    assert op_names(integer).count("nybble.table") == 1
    (entries,) = (graph.numpy_of(c) for c in call_of(integer, "f").args if graph.is_constant(c))
    (scale, zero), (scale_out, zero_out) = (
        [float(graph.numpy_of(a)) for a in call_of(quantized, f"{n}.quantize").args[1:]]
        for n in ("c.bias", "f")
    )
    dtype, dtype_out = (
        graph.dtype_of(call_of(quantized, f"{n}.quantize")) for n in ("c.bias", "f")
    )
    lo, hi = numerics.limits(dtype)
    assert len(entries) == hi - lo + 1
    right = meaning((np.arange(lo, hi + 1) - zero) * scale) / scale_out + zero_out
    np.testing.assert_allclose(entries, np.clip(right, *numerics.limits(dtype_out)), atol=0.501)
    simulated, exact = (interpreter.run(m, [images(*SHAPE)])[0] for m in (quantized, integer))
    assert np.abs(exact - simulated).mean() <= 0.01 * np.abs(simulated).max()  # ties may flip


def test_lopsided_results_use_the_whole_grid() -> None:
    _, quantized, _ = walk(network(silu), images(*SHAPE))
    call = call_of(quantized, "f.quantize")
    assert graph.dtype_of(call) == "uint8"
    assert 0 < graph.numpy_of(call.args[2]) < 100
    assert shifted_grid(-1.0, 3.0).zero_point == 64
    assert shifted_grid(0.0, 0.0).scale > 0
    assert shifted_grid(-1.0, 0.0, 4).zero_point == 15


def test_what_kernels_do_by_the_way_is_no_function() -> None:
    net = Net(*SHAPE)
    x = net.relu("r", net.bias("c.bias", net.conv("c", net.x, 4)))
    scaled = net.emit("s", op.multiply(x, number(2)))
    normed = net.norm("n", net.emit("cat", op.concat([scaled, x], 1)))
    mod = net.done(net.conv("d", normed, 3))
    assert functions(View(mod)) == {}
    canonical = pipeline.canonicalize(mod)
    assert functions(View(canonical)) == {}


def test_what_others_read_too_ends_a_function() -> None:
    net = Net(*SHAPE)
    x = net.bias("c.bias", net.conv("c", net.x, 4, padding=1))
    gate = net.emit("gate", op.sigmoid(x))
    both = net.emit("both", op.multiply(x, gate))
    mod = net.done(net.emit("sum", op.add(net.conv("d", both, 3), net.conv("e", gate, 3))))
    found = functions(View(mod))
    assert {name: (f.root, f.steps) for name, f in found.items()} == {
        "gate": ("c.bias", ("gate",))
    }  # its product with x is one of two tensors
    _, _, integer = walk(mod, images(*SHAPE))
    assert kept(integer) == []
    ops = op_names(integer)
    assert (ops.count("nybble.table"), ops.count("nybble.multiply")) == (1, 1)


def test_two_functions_of_one_tensor() -> None:
    net = Net(*SHAPE)
    x = net.bias("c.bias", net.conv("c", net.x, 4, padding=1))
    a, b = net.emit("a", op.tanh(x)), net.emit("b", silu(net, x))
    mod = net.done(net.emit("sum", op.add(net.conv("d", a, 3), net.conv("e", b, 3))))
    _, _, integer = walk(mod, images(*SHAPE))
    assert kept(integer) == []
    assert op_names(integer).count("nybble.table") == 2


def test_a_step_that_is_kept_float_splits_a_function() -> None:
    x = images(*SHAPE)
    canonical, _, integer = walk(network(hard_swish), x, Recipe(keep_float=("gate",)))
    assert kept(integer) == ["gate: relax.clip: the recipe keeps 'gate' float"]
    assert {"nybble.table", "nybble.multiply"} <= set(
        op_names(integer)
    )  # x / 6 + 1/2, and x · gate
    real, exact = (interpreter.run(m, [x])[0] for m in (canonical, integer))
    assert np.abs(exact - real).max() <= 0.05 * np.abs(real).max()


@pytest.mark.parametrize(("target", "bits"), [("native", 8), ("x86-64-v3", 4), ("x86-64", 3)])
def test_the_library_equals_the_law(target: str, bits: int, tmp_path: Path) -> None:
    x = images(*SHAPE)
    recipe = Recipe(weights=bits, activations=bits)
    quantized = nybble.quantize(Model(network(hard_swish)), [x], recipe)
    path = nybble.compile(quantized, target).save(tmp_path / "net.so")
    report, session = compared(law_of(quantized, x), path, x, 1)
    assert report.equal
    assert session.manifest.kept_float == ()
