"""Whatever op an integer module may have compiles for GPUs, and computes the law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from nybble.ir import graph, interpreter, ops, specs
from nybble.passes import pipeline
from nybble.schedules.lower import lower
from nybble.schedules.target import resolve
from tests.cuda.serial import Network
from tests.schedules.modules import inputs_of, module
from tests.schedules.test_integer import EVERY_OP

TARGETS = ("cuda:sm_75", "cuda:sm_80", "cuda:sm_90")


@pytest.mark.parametrize("op", ops.VOCABULARY)
def test_every_op_of_the_vocabulary_has_a_kernel(op: str) -> None:
    for name in TARGETS:
        layers = lower(pipeline.for_gpu(EVERY_OP[op]), resolve(name)).layers
        assert layers[-1].op == op
        assert all(layer.kernel.startswith("cuda.") for layer in layers)


TABLE = graph.constant(np.arange(-60, 60, dtype=np.int8).reshape(5, 24))
MOVES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "relax.permute_dims": (lambda x: relax.op.permute_dims(x, [0, 2, 1, 3]), "int8"),
    "relax.permute_dims, last": (lambda x: relax.op.permute_dims(x, [0, 2, 3, 1]), "int8"),
    "relax.nn.pad": (lambda x: relax.op.nn.pad(x, (0, 0, 1, 0, 0, 2, 0, 0), pad_value=3), "int8"),
    "relax.nn.pad, last": (lambda x: relax.op.nn.pad(x, (0, 0, 0, 0, 0, 0, 2, 1)), "uint8"),
    "relax.take": (lambda x: relax.op.take(TABLE, x, 0), "int32"),
    "relax.take, last": (lambda x: relax.op.take(TABLE, x, 1), "int32"),
    "relax.strided_slice": (
        lambda x: relax.op.strided_slice(x, [1, 3], [0, 1], [2, 9], [1, 2]), "int8",
    ),
    "relax.concat": (lambda x: relax.op.concat([x, x], 1), "int8"),
    "relax.concat, batch": (lambda x: relax.op.concat([x, x], 0), "int8"),
    "relax.reshape": (lambda x: relax.op.reshape(x, (-1, 16)), "int8"),
    "relax.flip": (lambda x: relax.op.flip(x, 2), "int8"),
    "relax.tile": (lambda x: relax.op.tile(x, (1, 3, 1)), "int8"),
    "relax.broadcast_to": (
        lambda x: relax.op.broadcast_to(x, [2, *x.ty.shape]), "int8",
    ),
}  # fmt: skip


def test_every_structural_op_is_tried() -> None:
    assert {name.partition(",")[0] for name in MOVES} == specs.STRUCTURAL


@pytest.mark.parametrize("name", MOVES)
def test_moves(name: str) -> None:
    """Their threads one after the other."""
    move, dtype = MOVES[name]
    mod = module(lambda e, x: e.emit(move(x), "y"), ((3, 4, 16), dtype))
    network = Network(mod, "*")
    for batch in (1, 3):
        arrays = [a % 5 if dtype == "int32" else a for a in inputs_of(mod, batch)]
        np.testing.assert_array_equal(network(arrays), interpreter.run(mod, arrays)[0])


def test_lines_are_moved_by_sixteen_bytes() -> None:
    def function(name: str) -> str:
        mod = module(lambda e, x: e.emit(MOVES[name][0](x), "y"), ((3, 4, 16), MOVES[name][1]))
        found = lower(mod, resolve("cuda:sm_80")).module
        (one,) = [f for f in found.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
        return str(one.script())

    assert "T.vectorized(T.int64(16))" in function("relax.permute_dims")
    assert "T.vectorized(T.int64(8))" in function("relax.take")  # of 24 channels
    assert "vectorized" not in function("relax.permute_dims, last")
