"""GPUs are tuned elsewhere: their spaces, the batch that goes there, and records that come back."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tvm import relax, tirx

import nybble
from nybble.errors import NybbleError
from nybble.executors.interface import Done
from nybble.ir import graph, ops
from nybble.place import Place
from nybble.runtime import gpu
from nybble.runtime.events import singly
from nybble.schedules.cuda import toolkit
from nybble.schedules.lower import lower
from nybble.schedules.machine import Machine
from nybble.schedules.records import Records
from nybble.schedules.replay import Replay
from nybble.schedules.select import Planner
from nybble.schedules.target import resolve
from nybble.tune_elsewhere import Batches, exchange
from nybble.tune_run import TuneOptions, tune
from nybble.tuning import candidate, offline, offline_gpu
from nybble.tuning.candidate import Library
from nybble.tuning.extract import tasks_of
from nybble.tuning.features import features
from nybble.tuning.memory import SURE, Memory
from nybble.tuning.pool import LocalPool
from nybble.tuning.remote import Described
from nybble.tuning.rpc import DevicePool
from nybble.tuning.runner import race
from nybble.tuning.space import variants_of
from nybble.tuning.tasks import Point, Task
from nybble.tuning.tracker import Tracker
from tests.cuda.layers import gpu as target_of
from tests.cuda.serial import serial

TARGET = target_of("sm_80")
GENERIC = Point("cuda.generic", "int8")


def module() -> Any:
    """One linear layer of integers."""
    rng, emitter = (
        np.random.default_rng(0),
        graph.Emitter([relax.Var("x", relax.TensorType([4, 64], "int8"))]),
    )
    w = graph.constant(rng.integers(-127, 127, (48, 64), np.int8))
    bias = graph.constant(rng.integers(-99, 99, 48, np.int32))
    y = emitter.emit(ops.call("linear", [emitter.params[0], w, bias]), "y")
    return emitter.finish([y], ["y"], "integer")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (found,) = tasks_of(module(), TARGET, 1, tmp_path / "tasks")
    return found


def test_every_draw_from_a_kernels_knobs_can_be_planned(task: Task) -> None:
    variants = variants_of(task)
    assert {v.kernel.name for v in variants} >= {"cuda.int8.mma"}
    assert all(v.kernel.arch == "cuda" for v in variants)
    rng, drawn = Random(0), set()
    for variant in variants:
        for _ in range(4):
            point = variant.draw(rng)
            variant.plan(point)
            drawn.add(point)
            drawn.add(variant.mutate(point, rng))
            assert features(variant, point)[f"kernel {variant.kernel.name}"] == 1
    assert len(drawn) >= 8
    first = list(islice(variants[0].every(), 9))
    assert len(set(first)) == 9
    assert all(variants[0].plan(point) is not None for point in first)
    assert task.reference.realize(task.problem)[0].name == task.reference.kernel


# ---------------------------------------------------------------- batches


class Builders:
    """An executor without processes."""

    def submit(self, function: Any, arguments: Any, _seconds: float) -> Any:
        done = Done(function(*arguments))
        return SimpleNamespace(result=lambda: done)


def exported(task: Task, points: list[Point], folder: Path, monkeypatch: Any) -> dict[str, Any]:
    monkeypatch.setattr(
        offline, "each", lambda _ex, function, calls, _limit: (
            (i, Done(function(*call))) for i, call in enumerate(calls)
        ),
    )  # fmt: skip
    asked: Any = [(task, points)]
    offline.export_batch(folder, asked, Builders(), SURE, lambda _task, _point: Library(b"code"))  # type: ignore[arg-type]
    batch: dict[str, Any] = json.loads((folder / "batch.json").read_text())
    return batch


def tuned_points(task: Task) -> list[Point]:
    """Two legal points beside the reference."""
    (variant,) = (v for v in variants_of(task) if v.kernel.name == "cuda.int8.mma")
    found: dict[Point, None] = {}
    rng = Random(1)
    while len(found) < 2:
        point = variant.draw(rng)
        if point != task.reference:
            found[point] = None
    return list(found)


def test_a_batch_says_which_gpus_it_is_for(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = exported(task, [GENERIC], tmp_path / "batch", monkeypatch)
    assert batch["gpu"] == {"archs": ["sm_80"], "portable": 80}
    assert (batch["target"], batch["arch"]) == ("cuda:sm_80", TARGET.host.arch)
    if isinstance(gpu.find(), str):  # the script finds its runtime in the batch, and no GPU
        done = subprocess.run(
            [sys.executable, "-I", str(tmp_path / "batch" / "run.py")],
            cwd="/", capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "Compiled for cuda:sm_80, and there is no NVIDIA driver" in done.stderr


def returned(folder: Path, batch: dict[str, Any], ratios: list[float], capability: int) -> None:
    """Times as the script writes them: the reference, then others by their ratio to it."""
    head = {"batch": batch["id"], "cpu": "a GPU", "caches": [], "capability": capability}
    rows = [[[2e-5 * ratio, 2e-5]] * SURE for ratio in ratios]
    found = [head, *({"candidate": i, "turns": turns} for i, turns in enumerate(rows))]
    (folder / "times.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))


def test_times_that_come_back_decide_a_compilation(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, slow = tuned_points(task)
    batch = exported(task, [fast, slow], tmp_path / "batch", monkeypatch)
    returned(tmp_path / "batch", batch, [1.0, 0.5, 2.0], 80)
    times = offline.import_times(tmp_path / "batch", TARGET)
    assert times.machine.arch == "sm_80"
    assert times.machine.cpu == "a GPU"
    records = Records.open(tmp_path / "r.jsonl")
    memory = Memory([task], records, times.machine)
    for _, outcome in times.outcomes:
        memory.remember(task, outcome, times.turns)
    read = Records.read([tmp_path / "r.jsonl"])
    for arch, kind in (("sm_80", "exact"), ("sm_86", "nearest"), ("sm_90", "default")):
        target = target_of(arch)
        planner = Planner(force="cuda.int8.mma", replay=Replay(read, target, 1))
        (layer,) = lower(module(), target, planner).layers
        assert layer.match.kind == kind, arch
        assert layer.match.decisions == (() if kind == "default" else fast.decisions)
    assert Replay(read, target_of("sm_90"), 1).foreign == 3
    assert Place(TARGET, read, 4).threads == 1
    assert not Place(TARGET, read).notes()


def test_machines_with_gpus() -> None:
    one = Machine.of(TARGET, "NVIDIA A100", (), 80)
    other = Machine.of(target_of("sm_89"), "NVIDIA L4", ())
    assert (one.arch, other.arch, one.compiler) == ("sm_80", "sm_89", "nvcc")
    assert one.fits(TARGET)
    assert other.fits(TARGET)  # of one generation
    assert not one.fits(target_of("sm_90"))
    assert not one.fits(resolve("x86-64-v3"))
    assert not Machine.of(resolve("x86-64-v3"), "a CPU", ()).fits(TARGET)


# ---------------------------------------------------------------- on the GPU: here, the CPU


class Pretended:
    """In the place of `nybble.runtime.events.Events`."""

    def graph(self, call: Any, count: int, _on_stream: Any) -> Any:
        return singly(call, count), True

    def seconds(self, launch: Any) -> float:
        launch()
        return 1e-3


def test_candidates_run_against_the_reference(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "DEVICE", (1, 0))
    monkeypatch.setattr(gpu, "load_runtime", lambda: None)
    monkeypatch.setattr(offline_gpu, "Events", Pretended)
    monkeypatch.setattr(
        candidate, "device_code",
        lambda function, _target: SimpleNamespace(
            module=tirx.build(serial(function), target="llvm")
        ),
    )  # fmt: skip
    (tmp_path / "one.so").write_bytes(candidate.library(task, GENERIC))
    operands = task.operands()
    constants = candidate.packed(task, GENERIC, operands)
    sides = [
        offline_gpu.GpuRunner(
            str(tmp_path / "one.so"),
            [np.array(array) for array in (*operands.inputs, *constants)],
            np.empty_like(operands.expected),
        )
        for _ in range(2)
    ]
    for side in sides:
        np.testing.assert_array_equal(side.first(), operands.expected)
    pair: Any = sides  # that have what `race` asks for
    turns = race(pair[0], pair[1], 5)
    assert turns.shape == (5, 2)
    assert (turns > 0).all()


# ---------------------------------------------------------------- refusals


def test_gpus_are_not_measured_by_processes_of_this_machine(tmp_path: Path) -> None:
    for measurer in (None, LocalPool(1)):
        with pytest.raises(NybbleError, match=r"behind a tracker .* or by a folder"):
            tune(nybble.Model(None), tmp_path / "r", "cuda:sm_80", measurer=measurer)
    with pytest.raises(NybbleError, match="--export-batch"):
        LocalPool(1).machine(TARGET)


def test_a_device_without_a_gpu_is_refused() -> None:
    pool: Any = SimpleNamespace(tracker=Tracker("here", 1, "key"))
    with pytest.raises(NybbleError, match="has no GPU, which cuda:sm_80 needs"):
        DevicePool._machine(pool, TARGET, Described("a CPU"))
    found = DevicePool._machine(pool, TARGET, Described("a CPU", (1,), "NVIDIA A100", 80))
    assert found == Machine.of(TARGET, "NVIDIA A100", (), 80)


@pytest.mark.slow
def test_a_network_is_exported_tuned_and_compiled(tmp_path: Path) -> None:
    """Up to where a GPU is needed, with nvcc; the times are made up."""
    try:
        toolkit.find()
    except NybbleError as error:
        pytest.skip(str(error))
    net = nybble.load_torch(torch.nn.Linear(64, 48), (torch.zeros(4, 64),), dynamic_batch=False)
    quantized = nybble.quantize(
        net, [np.random.default_rng(0).standard_normal((4, 64), np.float32)]
    )
    options = TuneOptions(trials=6, folder=tmp_path / "tasks")
    records = tmp_path / "net.records"
    _, made = exchange(
        quantized, records, "cuda:sm_80", options, Batches(None, tmp_path / "b", "1")
    )
    assert made is not None
    assert made.candidates > 3
    assert not [outcome for _, outcome in made.failed if outcome.failure != "illegal"]
    batch = json.loads((tmp_path / "b" / "batch.json").read_text())
    code = [(tmp_path / "b" / side["library"]).read_bytes() for side in batch["candidates"]]
    assert all(one[:4] == b"\x7fELF" and b"__global__" not in one for one in code)
    turned = [
        0.5
        if side["point"]["kernel"] == "cuda.int8.mma" and side["point"] != task["point"]
        else 1.0
        for side in batch["candidates"]
        for task in [batch["tasks"][side["task"]]["reference"]]
    ]
    returned(tmp_path / "b", batch, turned, 80)
    times, _ = exchange(quantized, records, "cuda:sm_80", options, Batches(tmp_path / "b", None))
    assert times is not None
    assert times.missing == 0
    compiled = nybble.compile(quantized, "cuda:sm_80", records=records)
    tuned = [layer["tuned"] for layer in compiled.manifest.layers if layer["symbol"]]
    assert "exact" in [one["kind"] for one in tuned if one is not None]
