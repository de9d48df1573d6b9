"""A network compiled for GPUs: its file, what it says of itself, and what it computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax
from typer.testing import CliRunner

import nybble
from nybble.__main__ import app
from nybble.describe import describe
from nybble.errors import ArtifactError, NybbleError
from nybble.ir import graph, interpreter, ops
from nybble.model import Artifact
from nybble.runtime import gpu
from nybble.runtime.manifest import read_all
from nybble.schedules.build import built
from nybble.schedules.cuda import toolkit
from nybble.schedules.lower import lower
from nybble.schedules.select import Planner
from nybble.schedules.target import resolve
from tests import models
from tests.cuda.serial import Network
from tests.cuda.test_compile import FATBIN
from tests.walking import SMALL, few, tiny


@pytest.fixture(scope="module", autouse=True)
def _needs_nvcc() -> None:
    try:
        toolkit.find()
    except NybbleError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def network() -> nybble.QuantizedModel:
    return nybble.quantize(tiny(), [few()])


def test_generic_kernels_compute_the_law(network: nybble.QuantizedModel) -> None:
    compiled = Network(network.integer)
    assert compiled.kernels == {"cuda.generic"}
    x = models.images(3, (3, SMALL, SMALL), seed=7)
    np.testing.assert_array_equal(compiled([x]), interpreter.run(network.integer, [x])[0])


def pooled(batch: int | str) -> tvm.IRModule:
    """The same kernel three times, one behind the other."""
    extent = batch if isinstance(batch, int) else tvm.tirx.Var(batch, "int64")
    x = relax.Var("x", relax.TensorType([extent, 8, 8, 16], "uint8"))
    emitter, value = graph.Emitter([x]), x
    for name in ("first", "second", "third"):
        window = {"pool_size": (3, 3), "strides": (1, 1), "padding": (1, 1, 1, 1)}
        value = emitter.emit(ops.call("max_pool2d", [value], **window), name)
    return emitter.finish([value], ["y"], "integer")


def artifact(name: str, batch: int | str) -> tuple[Artifact, str]:
    """What would be saved, and its bytecode in words."""
    target, mod = resolve(name), pooled(batch)
    scheduled = lower(mod, target, Planner(force="cuda.generic"))
    made = built(scheduled.module, target)
    manifest = describe(mod, scheduled.layers, target, None, None, made)
    return Artifact(made.executable, manifest), made.executable.as_text()


def test_file_of_two_generations(tmp_path: Path) -> None:
    made = [artifact(name, "n")[0] for name in ("cuda:sm_80", "cuda:sm_90")]
    path = replace(made[0], higher=(made[1],)).save(tmp_path / "net.so")
    data = path.read_bytes()
    for variant, archs, portable in zip(
        read_all(path), (["sm_80"], ["sm_90a"]), (80, None), strict=True
    ):
        device = variant.manifest.device
        assert device is not None
        assert (device["archs"], device["portable"], device["kind"]) == (archs, portable, "cuda")
        assert device["toolkit"] == toolkit.find().version
        assert [use["symbol"] for use in device["usage"]] == ["max_pool2d_0_kernel"]
        assert [(use["arch"], use["spills"]) for use in device["usage"]] == [(archs[0], 0)]
        code = data[variant.offset : variant.offset + variant.size]
        assert code.count(FATBIN) == 1
        assert b"__global__" not in code  # machine code, no source
    shown = CliRunner().invoke(app, ["inspect", str(path)], env={"COLUMNS": "140"}).output
    for expected in ("cuda:sm_80", "sm_80 and later; CUDA 13", "max_pool2d_0_kernel", "sm_90a"):
        assert expected in shown
    if isinstance(gpu.find(), str):
        with pytest.raises(ArtifactError, match="Compiled for GPUs, target 'cuda:sm_80'"):
            nybble.load(path)


def test_static_networks_have_graphs() -> None:
    made, text = artifact("cuda:sm_80", 2)
    assert made.manifest.device is not None
    assert made.manifest.device["graphed"]
    assert "cuda_graph.run_or_capture" in text.partition("@graphed:")[2].partition("@")[0]
    assert "cuda_graph" not in text.partition("@main:")[2].partition("\n\n")[0]
    made, text = artifact("cuda:sm_80", "n")
    assert made.manifest.device is not None
    assert not made.manifest.device["graphed"]
    assert "cuda_graph" not in text


@pytest.mark.slow
def test_whole_network_compiles(network: nybble.QuantizedModel, tmp_path: Path) -> None:
    path = nybble.compile(network, "cuda:sm_80").save(tmp_path / "net.so")
    (variant,) = read_all(path)
    device = variant.manifest.device
    assert device is not None
    kernels = {use["symbol"].removesuffix("_kernel") for use in device["usage"]}
    assert kernels == {layer["symbol"] for layer in variant.manifest.layers if layer["symbol"]}
    assert all(use["spills"] == 0 for use in device["usage"])


@pytest.mark.cuda
def test_gpu_computes_the_law(network: nybble.QuantizedModel, tmp_path: Path) -> None:
    found = gpu.find()
    assert isinstance(found, gpu.Gpu)
    path = nybble.compile(network, f"cuda:sm_{found.capability}").save(tmp_path / "net.so")
    session = nybble.load(path)
    for batch in (1, 3):
        x = models.images(batch, (3, SMALL, SMALL), seed=batch)
        np.testing.assert_array_equal(session(x), network.run(x))
    seen = []
    session.observe(x, lambda layer, values: seen.append((layer["name"], values.shape)))
    assert len(seen) == sum(layer["symbol"] is not None for layer in session.manifest.layers)
