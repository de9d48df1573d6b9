"""The tasks of a network: distinct layers, how often they are called, and what the law makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from nybble.ir import numerics
from nybble.runtime import host
from nybble.schedules.kernel import TensorSpec
from nybble.schedules.select import FORCE
from nybble.schedules.target import resolve
from nybble.tuning import candidate
from nybble.tuning.extract import as_stored, draw, tasks_of
from nybble.tuning.runner import SYMBOL
from nybble.tuning.tasks import Point, Task

V3 = resolve("x86-64-v3")


def network(widths: tuple[int, int] | None, size: int = 12) -> Any:
    """Three 3x3 convolutions, two of them alike, with a residual, and a linear layer."""
    torch = pytest.importorskip("torch")
    import nybble  # noqa: PLC0415
    from nybble.passes.pipeline import canonicalize  # noqa: PLC0415

    class Net(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.convs = torch.nn.ModuleList(
                torch.nn.Conv2d(c, 32, 3, padding=1) for c in (8, 32, 32)
            )
            self.fc = torch.nn.Linear(32, 10)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.convs[0](x))
            x = torch.relu(self.convs[1](x))
            x = torch.relu(self.convs[2](x) + x)
            return self.fc(x.mean((2, 3)))

    torch.manual_seed(0)
    example = torch.zeros(1, 8, size, size)
    model = nybble.load_torch(Net().eval(), example)
    if widths is None:
        return canonicalize(model.module)
    recipe = nybble.Recipe(weights=widths[0], activations=widths[1])
    data = np.random.default_rng(0).normal(size=(4, 8, size, size)).astype(np.float32)
    return nybble.quantize(model, data, recipe).integer


def run_reference(task: Task) -> Any:
    """What the default kernel makes of the task's inputs."""
    operands = task.operands()
    module = candidate.built(task, task.reference)
    output = tvm.runtime.tensor(np.zeros_like(operands.expected))
    packed = candidate.packed(task, task.reference, operands)
    inputs = map(tvm.runtime.tensor, (*operands.inputs, *packed))
    module[SYMBOL](*inputs, output)
    return output.numpy()


WIDTHS = (pytest.param((8, 8), marks=pytest.mark.slow), (4, 4), None)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_every_reference_gives_what_the_law_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, widths: tuple[int, int] | None
) -> None:
    if widths == (4, 4):
        monkeypatch.setenv(FORCE, "*.packed")  # so that activations lie two a byte
    if host.arch() != V3.arch or not V3.features <= host.features():
        pytest.skip("this CPU does not run x86-64-v3")
    done: list[tuple[int, int | None]] = []
    tasks = tasks_of(network(widths), V3, 1, tmp_path, lambda *now: done.append(now))
    assert sum(task.calls for task in tasks) == len(done)
    assert done[-1] == (len(done), len(done))
    assert len({task.key for task in tasks}) == len(tasks)
    for task in tasks:
        assert task.agrees(run_reference(task), task.operands().expected), task.problem
    forms = {spec.form for task in tasks for spec in task.problem.tensors}
    assert forms == ({"values", "packed"} if widths == (4, 4) else {"values"})


def test_layers_alike_are_one_task_and_their_folders_stay(tmp_path: Path) -> None:
    module = network(None)
    first = tasks_of(module, V3, 1, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.np*")}
    assert len(times) == 3 * len(first)
    again = tasks_of(module, V3, 2, tmp_path)
    assert [task.key for task in again] == [task.key for task in first]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.np*")} == times
    convolution = next(task for task in first if task.problem.op == "conv2d")
    reference = dict(convolution.reference.decisions)
    assert reference.keys() == {"parallel", "rows", "splits", "tile"}


def test_a_wrong_element_is_seen_and_rounding_is_not(tmp_path: Path) -> None:
    exact = tasks_of(network((8, 8)), V3, 1, tmp_path)[1]
    rounded = next(t for t in tasks_of(network(None), V3, 1, tmp_path) if t.problem.weights)
    expected = exact.operands().expected
    wrong = expected.copy()
    wrong.flat[-1] ^= 1
    assert exact.is_exact
    assert exact.agrees(expected, expected)
    assert not exact.agrees(wrong, expected)
    expected = rounded.operands().expected
    wrong = expected.copy()
    wrong.flat[-1] += 0.1 * np.abs(expected).max()
    assert not rounded.is_exact
    assert rounded.agrees(expected * np.float32(1 + 1e-6), expected)
    assert not rounded.agrees(wrong, expected)


@pytest.mark.parametrize("dtype", ["int1", "int3", "uint4", "int8", "int32", "float32"])
def test_inputs_are_drawn_from_all_that_a_dtype_holds(dtype: str) -> None:
    spec = TensorSpec(("n", 9, 200), dtype)
    drawn = draw(np.random.default_rng(0), spec)
    assert drawn.shape == (1, 9, 200)
    if dtype == "int1":
        assert set(np.unique(drawn)) == {-1, 1}
    elif dtype in ("int3", "uint4", "int8"):
        assert (drawn.min(), drawn.max()) == numerics.limits(dtype)
    if dtype in ("int1", "int3", "uint4"):
        for form in ("packed", "planes"):
            narrow = TensorSpec(spec.shape, dtype, form)
            assert as_stored(drawn, narrow).shape[1:] == narrow.stored.shape[1:]


def test_a_point_names_its_kernel(tmp_path: Path) -> None:
    task = tasks_of(network((4, 8)), V3, 1, tmp_path)[2]
    assert task.problem.weights is not None
    kernel, problem = Point(task.reference.kernel, "int8").realize(task.problem)
    assert kernel.name == task.reference.kernel
    assert problem.weights is not None
    assert (problem.weights.dtype, task.problem.weights.dtype) == ("int8", "int4")
    with pytest.raises(Exception, match=r"no kernel 'cpu\.none' for conv2d"):
        Point("cpu.none", None).realize(task.problem)
