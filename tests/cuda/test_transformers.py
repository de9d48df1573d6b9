"""Transformers in integers compile for GPUs as whole networks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nybble
from nybble import simt
from nybble.errors import NybbleError
from nybble.ir import graph, interpreter
from nybble.runtime.manifest import read_all
from nybble.schedules.cuda import toolkit
from nybble.schedules.kernel import Knobs
from nybble.schedules.lower import plan_steps
from nybble.schedules.select import Planner
from nybble.schedules.target import resolve
from tests import models, transformers

slow = pytest.mark.slow
WIDTH, HEADS, LENGTH, SIZE = 64, 4, 24, 32


@cache
def quantized(name: str) -> tuple[nybble.QuantizedModel, Any]:
    """A network of one block with a fixed batch, and an input."""
    if name == "bert":
        net = transformers.drawn(lambda: transformers.Bert(WIDTH, HEADS))
        data = [transformers.tokens(2, LENGTH, WIDTH, seed) for seed in range(3)]
    else:
        net = transformers.drawn(lambda: transformers.VisionTransformer(SIZE, 8, WIDTH, 1))
        data = [models.images(1, (3, SIZE, SIZE), seed) for seed in range(3)]
    model = nybble.load_torch(net, torch.from_numpy(data[0]), dynamic_batch=False)
    return nybble.quantize(model, data), data[0]


WANTED = {"matmul": "cuda.int8.mma", "softmax": "cuda.rows", "layer_norm": "cuda.rows"}
"""Kernels of the ops that only transformers have."""


@slow
@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90"])
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_block_compiles(name: str, target: str, tmp_path: Path) -> None:
    """All in integers, on tensor cores, one graph, without a spill."""
    try:
        toolkit.find()
    except NybbleError as error:
        pytest.skip(str(error))
    made, _ = quantized(name)
    path = nybble.compile(made, target).save(tmp_path / "net.so")
    (variant,) = read_all(path)
    manifest = variant.manifest
    assert manifest.float_ops == ()
    assert manifest.device is not None
    assert manifest.device["graphed"]
    assert all(use["spills"] == 0 for use in manifest.device["usage"])
    taken = {op: layer["kernel"] for layer in manifest.layers for op in layer["op"].split("+")}
    assert {op: taken[op] for op in WANTED} == WANTED
    if name == "bert":  # whose heads and keys are read and written as they lie
        assert "permute_dims" not in [layer["op"] for layer in manifest.layers]


def layers(made: nybble.QuantizedModel, target: Any) -> Iterator[tuple[str, Any, Any]]:
    """(op, the layer, its kernel) of the ops that only transformers have."""
    for step, choice in plan_steps(made.integer, target, Planner()):
        if choice is not None and step.problem is not None and step.problem.op in WANTED:
            yield step.problem.op, step.group, choice.candidate


@slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_block_computes_the_law(name: str, arch: str) -> None:
    """Each such layer, with the network's own scales, on what the law gives it."""
    made, x = quantized(name)
    target = resolve(f"cuda:{arch}")
    values: dict[str, Any] = {}
    interpreter.run(made.integer, [x], values.__setitem__)
    seen = []
    for op, group, taken in layers(made, target):
        function = taken.kernel.build(taken.problem, target, Knobs())
        given = [values[str(one.name)] for one in group.activations]
        wanted = values[str(group.output.name)]
        got = np.zeros_like(wanted, order="C")
        arrays = [np.ascontiguousarray(one) for one in (*given, *taken.packed)]
        named = function.with_attr("global_symbol", "layer")
        simt.run(named, [*arrays, got], target=f"cuda:{arch}")
        np.testing.assert_array_equal(got, wanted, err_msg=str(group.output.name))
        seen.append(op)
    there = [full.removeprefix("nybble.") for _, full, _ in graph.walk(made.integer)]
    assert sorted(seen) == sorted(op for op in there if op in WANTED)
