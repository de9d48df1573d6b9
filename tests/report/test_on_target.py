"""Parity where the law is a value and a bound: weight-only layers on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import relax

from nybble.ir import graph, interpreter, ops, specs
from nybble.ir.weight_only import in_half
from nybble.model import QuantizedModel
from nybble.passes import pipeline
from nybble.report.parity import ParityReport, parity_on_target
from nybble.runtime.manifest import Layer
from nybble.runtime.session import Session
from tests.weight_only_cases import Arrays, Case, operands

Array = NDArray[Any]
CASE = Case((3, 96), 24, 32)


def network(arrays: Arrays) -> QuantizedModel:
    """Two layers, a clamp behind the first."""
    x = relax.Var("x", relax.TensorType((3, 96), "float32"))
    emitter, second = graph.Emitter([x]), Case((3, 24), 8, 24).data(1)
    names = ("w", "scale", "zero_point", "bias")

    def layer(given: Any, values: Arrays, group: int, name: str) -> Any:
        constants = [graph.constant(values[n], "int4" if n == "w" else None) for n in names]
        return emitter.emit(ops.call("weight_only", [given, *constants], group=group), name)

    clamped = emitter.emit(relax.op.nn.relu(layer(x, arrays, 32, "a")), "a.relu")
    kept = {specs.KEPT_FLOAT: ["a.relu: relu: only weights"]}
    module = emitter.finish([layer(clamped, second, 24, "b")], ["b"], "integer", kept)
    return QuantizedModel(module, module, None)


class Gpu:
    """Stands in for a session on a GPU: the law in half precision, and something wrong."""

    def __init__(self, model: QuantizedModel, wrong: dict[str, Array]):
        self.model, self.wrong, self.threads = model, wrong, 1
        self.manifest = SimpleNamespace(float_ops=(), kept_float=("a.relu",), device={})
        self.manifest.device = {"kind": "cuda"}

    def observe(self, inputs: Any, observer: Callable[[Layer, Array], None]) -> None:
        values: dict[str, Array] = {}
        law, own = pipeline.for_gpu(self.model.integer), dict[str, Array]()

        def see(name: str, value: Array) -> None:
            own[name] = values[name] = value + self.wrong.get(name, np.float32(0))

        interpreter.run(law, inputs, see, own)
        for name, output in (("a", "a.relu"), ("b", "b")):
            layer = {"name": name, "output": output, "kernel": "k", "form": "values"}
            observer(cast("Layer", {**layer, "dtype": "float32"}), values[output])


def compared(wrong: Callable[[Array], Array]) -> ParityReport:
    arrays = CASE.data()
    model, (_, bound) = network(arrays), in_half(*operands(arrays), group=32)
    added = {"a.relu": wrong(bound).astype(np.float32)}
    return parity_on_target(
        model.integer, cast("Session", Gpu(model, added)), {"x": arrays["x"]}
    )  # fmt: skip


def test_the_law_itself_keeps_it() -> None:
    report = compared(np.zeros_like)
    assert report.equal
    assert [(row.bounded, row.strain < 0.01) for row in report.rows] == [(True, True)] * 2


def test_what_is_allowed_in_one_layer_is_not_held_against_the_next() -> None:
    report = compared(lambda bound: 0.9 * bound)
    assert report.equal
    first, second = report.rows
    assert first.strain == pytest.approx(0.9, abs=0.01)
    assert second.strain < 0.01


def test_more_is_found() -> None:
    report = compared(lambda bound: np.where(np.arange(24) == 7, 1.1, 0) * bound)
    assert not report.equal
    assert report.rows[0].strain == pytest.approx(1.1, abs=0.01)


def test_a_lost_value_is_found() -> None:
    report = compared(lambda bound: np.where(np.arange(24) == 7, np.nan, 0) * bound)
    assert report.rows[0].strain == np.inf


def test_the_law_follows_the_target() -> None:
    arrays = CASE.data()
    model = network(arrays)
    cpu, gpu = (model.run(arrays["x"], target=t) for t in (None, "cuda:sm_90"))
    np.testing.assert_array_equal(cpu, model.run(arrays["x"], target="x86-64-v3"))
    want = interpreter.run(pipeline.for_gpu(model.integer), [arrays["x"]])[0]
    np.testing.assert_array_equal(gpu, want)
    assert not np.array_equal(np.asarray(cpu), np.asarray(gpu))
