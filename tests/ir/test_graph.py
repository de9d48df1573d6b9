"""The module's shape: names and attributes survive a rewrite, specs refuse what they should."""

import numpy as np
import pytest
from tvm import relax

from nybble.errors import StageError
from nybble.ir import graph, interpreter, numerics, ops, specs, tvm


def one_conv(stage: str = "integer"):
    batch = tvm.tirx.Var("n", "int64")
    x = relax.Var("image/in:0", relax.TensorType((batch, 8, 8, 3), "float32"))
    e = graph.Emitter([x])
    scale, zero = graph.constant(np.float32(0.5)), graph.constant(np.int32(0))
    q = e.emit(ops.call("quantize", [x, scale, zero], dtype="uint8"), "image.q")
    w, b = graph.constant(np.ones((5, 3, 3, 3), np.int8)), graph.constant(np.zeros(5, np.int32))
    c = e.emit(ops.call("conv2d", [q, w, b], strides=(2, 2), padding=(1, 1, 1, 1)), "layer1.0/conv")
    m, s = graph.constant(np.full(5, 2**30, np.int32)), graph.constant(np.full(5, 34, np.int32))
    r = e.emit(ops.call("requantize", [c, m, s], dtype="uint4", lo=0, hi=15), "layer1.0/conv")
    d = e.emit(ops.call("dequantize", [r, scale, zero]), "out")
    return e.finish([d], ["logits"], stage, {"kept_float": []})


def test_types_carry_widths_and_the_symbolic_batch():
    mod = one_conv()
    variables = [b.var for b in graph.bindings(mod)]
    shapes = {str(v.name): (graph.shape_of(v), graph.dtype_of(v)) for v in variables}
    assert shapes["layer1.0/conv"] == (("n", 4, 4, 5), "int32")
    assert shapes["layer1.0/conv.2"] == (("n", 4, 4, 5), "uint4")


def test_rewriting_nothing_changes_nothing():
    mod = one_conv()
    again = graph.rewrite(mod, lambda _emitter, _name, _call: None)
    tvm.ir.assert_structural_equal(mod, again)
    assert [n for n, _, _ in graph.walk(again)] == [n for n, _, _ in graph.walk(mod)]
    assert graph.output_names(again) == ["logits"]


def test_interpreter_runs_any_batch_and_shows_every_binding():
    seen = {}
    x = np.ones((3, 8, 8, 3), np.float32)
    [out] = interpreter.run(one_conv(), [x], lambda name, value: seen.update({name: value.shape}))
    assert out.shape == (3, 4, 4, 5)
    assert list(seen) == ["image.q", "layer1.0/conv", "layer1.0/conv.2", "out"]
    assert out[0, 1, 1, 0] == (27 * 2 * 2**30 + 2**33 >> 34) * 0.5


def test_ops_refuse_wrong_attributes():
    q = relax.Var("q", relax.TensorType((1, 4), "int8"))
    with pytest.raises(TypeError, match=r"unknown attributes \['size'\], missing \['dtype'"):
        ops.call("requantize", [q, q, q], size=3)
    with pytest.raises(TypeError, match="got 1 operands"):
        ops.call("linear", [q])


def test_spec_accepts_the_stage_it_describes():
    specs.check(one_conv(), "integer")
    assert specs.between_borders(one_conv()) == []


def test_spec_refuses_another_stage():
    with pytest.raises(StageError, match="claims stage 'integer', expected 'scheduled'"):
        specs.check(one_conv(), "scheduled")
    with pytest.raises(StageError, match=r"'image\.q': nybble\.quantize is not a float op"):
        specs.check(one_conv("float"), "float")


def test_integer_spec_names_a_float_op_between_the_borders():
    def spoil(emitter, name, call):
        if name != "out":
            return None
        back = emitter.emit(call, "island")
        relu = emitter.emit(relax.op.nn.relu(back), "island.relu")
        scale, zero = graph.constant(np.float32(1)), graph.constant(np.int32(0))
        q = emitter.emit(ops.call("quantize", [relu, scale, zero], dtype="int8"), "island.q")
        return ops.call("dequantize", [q, scale, zero])

    mod = graph.rewrite(one_conv(), spoil)
    assert specs.between_borders(mod) == [("island.relu", "relax.nn.relu")]
    with pytest.raises(StageError, match=r"'island\.relu': relax\.nn\.relu computes in floating"):
        specs.check(mod, "integer")


@pytest.mark.parametrize("dtype", [f"{s}int{b}" for s in ("", "u") for b in range(1, 9)])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (2, 1, 3)])
def test_constants_of_every_width_keep_their_values(dtype, shape):
    lo, hi = numerics.limits(dtype)
    step = 2 if dtype == "int1" else 1
    drawn = np.random.default_rng(0).integers(0, (hi - lo) // step, shape, endpoint=True)
    values = (lo + step * drawn).astype(numerics.storage(dtype))
    constant = graph.constant(values, dtype)
    assert graph.dtype_of(constant) == dtype
    assert graph.shape_of(constant) == shape
    np.testing.assert_array_equal(graph.numpy_of(constant), values)
    assert graph.numpy_of(constant).dtype == values.dtype
