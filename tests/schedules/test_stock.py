"""Leftover float ops as layers with knobs: every decision agrees with NumPy, records replay."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax

from nybble.ir import graph
from nybble.schedules import problems
from nybble.schedules.cpu import stock
from nybble.schedules.forms import Step
from nybble.schedules.kernel import Knobs, Problem
from nybble.schedules.lower import lower, plan_steps
from nybble.schedules.records import Records
from nybble.schedules.replay import Replay
from nybble.schedules.select import Planner
from nybble.tuning.extract import tasks_of
from nybble.tuning.space import variants_of
from nybble.tuning.worker import Bench
from tests.schedules.modules import V3, module
from tests.schedules.recording import record
from tests.schedules.test_float import drawn

R, NN = relax.op, relax.op.nn
Body = Callable[..., Any]
ROWS, IMAGE = (6, 24, 64), (6, 8, 48)
CASES: dict[str, tuple[Body, tuple[tuple[int, ...], ...]]] = {
    "matmul": (R.matmul, ((2, 12, 40), (2, 40, 48))),
    "matmul of odd extents": (R.matmul, ((3, 7, 5), (3, 5, 11))),
    "softmax": (lambda x: NN.softmax(x, -1), (ROWS,)),
    "softmax over rows": (lambda x: NN.softmax(x, 1), (ROWS,)),
    "softmax of an odd row": (lambda x: NN.softmax(x, -1), ((5, 19),)),
    "log_softmax": (lambda x: NN.log_softmax(x, -1), (ROWS,)),
    "layer_norm": (lambda x: NN.layer_norm(x, drawn(64), drawn(64), [-1]), (ROWS,)),
    "rms_norm": (lambda x: NN.rms_norm(x, drawn(64), [-1]), (ROWS,)),
    "mean of rows": (lambda x: R.mean(x, [-1], keepdims=True), (ROWS,)),
    "mean of pixels": (lambda x: R.mean(x, [1, 2]), (IMAGE,)),
    "mean of everything": (R.mean, (IMAGE,)),
    "sum of rows": (lambda x: R.sum(x, [-1]), (ROWS,)),
    "largest of all": (lambda x: R.max(x, [1, 2, 3]), (IMAGE,)),
    "variance": (lambda x: R.variance(x, [-1]), (ROWS,)),
    "average": (
        lambda x: NN.avg_pool2d(x, (3, 3), padding=(1, 1, 1, 1), layout="NHWC"), (IMAGE,),
    ),
    "cells": (lambda x: NN.adaptive_avg_pool2d(x, (2, 2), layout="NHWC"), (IMAGE,)),
    "gelu": (NN.gelu, (ROWS,)),
    "clip": (lambda x: R.clip(x, -0.5, 0.5), (ROWS,)),
    "sqrt": (R.sqrt, (ROWS,)),
    "number minus": (lambda x: R.subtract(graph.constant(np.float32(2)), x), ((4, 7),)),
    "channels plus": (lambda x: R.add(drawn(48), x), (IMAGE,)),
    "of itself": (lambda x: R.multiply(x, x), (ROWS,)),
    "to channels last": (lambda x: R.permute_dims(x, [0, 2, 3, 1]), ((3, 10, 12),)),
}  # fmt: skip


def body_of(case: str) -> Any:
    make, shapes = CASES[case]
    emitted: Body = lambda e, *xs: e.emit(make(*xs), "y")  # noqa: E731
    return module(emitted, *[(shape, "float32") for shape in shapes], stage="float")


def step_of(case: str) -> Step:
    ((step, _),) = plan_steps(body_of(case), V3, Planner())
    return step


def problem_of(case: str) -> Problem:
    found = step_of(case).problem
    assert found is not None
    return found


def test_every_op_that_has_knobs_has_a_kernel_and_none_twice() -> None:
    assert {kernel.op for kernel in stock.KERNELS} == set(stock.OPS)


@pytest.mark.parametrize("case", ["matmul", "softmax", "clip", "number minus", "to channels last"])
def test_a_problem_says_all_that_the_call_says(case: str) -> None:
    problem = problem_of(case)
    again = problems.from_dict(problems.to_dict(problem))
    assert again == problem
    assert stock.plan(again, V3, Knobs()) == stock.plan(problem, V3, Knobs())


@pytest.mark.parametrize(
    "make",
    [
        lambda x: R.astype(x, "float16"),
        lambda x: R.greater(x, graph.constant(np.float32(0))),
        lambda x: R.clip(x, 0.0, float("inf")),
        lambda x: R.squeeze(x, [1]),
        lambda x: R.permute_dims(x, [0, 2, 1]),
    ],
)  # fmt: skip
def test_what_is_no_layer_keeps_the_stock_schedule(make: Body) -> None:
    mod = module(lambda e, x: e.emit(make(x), "y"), ((1, 3), "float32"), stage="float")
    assert plan_steps(mod, V3, Planner())[-1][0].problem is None


def test_decisions_change_the_code() -> None:
    problem = problem_of("matmul")
    plain, tiled = ({"rows": r, "vectors": v, "parallel": False} for r, v in ((1, 1), (4, 3)))
    texts = [str(stock.build(problem, V3, Knobs(d))) for d in (plain, tiled)]
    assert "local" not in texts[0]
    assert "local" in texts[1]


def test_a_record_of_a_float_op_is_replayed() -> None:
    problem = problem_of("gelu")
    decisions = (("flat", True), ("lanes", 8), ("parallel", False))
    names = {"kernel": "cpu.stock", "weights": None, "reference": ("cpu.stock", None)}
    known = Records([record(0.5, problem=problem, decisions=decisions, **names)])
    made = lower(body_of("gelu"), V3, Planner(replay=Replay(known, V3, 1)))
    (layer,) = made.layers
    assert (layer.match.kind, layer.match.decisions) == ("exact", decisions)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_decision_agrees_with_the_law(case: str, tmp_path: Path) -> None:
    (task,) = tasks_of(body_of(case), V3, 2, tmp_path)
    (variant,) = variants_of(task)
    bench, rng = Bench(task, task.operands()), random.Random(0)
    for point in {variant.default(), *(variant.draw(rng) for _ in range(5))}:
        got = bench.runner(point).first()
        assert task.agrees(got, bench.operands.expected), point
