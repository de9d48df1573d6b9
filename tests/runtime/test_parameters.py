"""Constants in a file beside the library: checked, mapped, shared, and half the memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import nybble
from nybble import commands
from nybble.errors import ArtifactError, NybbleError
from nybble.runtime import artifact, parameters
from nybble.runtime.manifest import read
from nybble.runtime.session import load
from tests.runtime.test_artifact import fill_disk
from tests.runtime.tiny import tiny_executable, tiny_manifest, tiny_outside

X = np.arange(12, dtype=np.float32).reshape(3, 4)
W = np.arange(1, 5, dtype=np.float32)
ROOT = Path(__file__).parents[2]


def linear(layers: int, width: int) -> nybble.Model:
    """Layers of ``width`` x ``width`` weights with a ReLU behind each."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        values = rng.standard_normal((width, width), dtype=np.float32) * width**-0.5
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"], name=f"fc{i}"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"], name=f"relu{i}"))
        last = f"r{i}"
    kind = onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, ["n", width]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "linear", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    return nybble.load_onnx(helper.make_model(graph, opset_imports=opsets, ir_version=8))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parameters") / "net.so"
    executable, values = tiny_outside()
    artifact.export_all([(executable, tiny_manifest(layers=()))], path, [values])
    return path


def test_compiled_network_keeps_to_the_law(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized = nybble.quantize(linear(2, 64), recipe=nybble.Recipe(weights=8, activations="float"))
    path = nybble.compile(quantized, "x86-64", parameters="outside").save(tmp_path / "net.so")
    stored = read(path).parameters
    assert stored is not None
    assert sum(np.prod(one["shape"]) for one in stored["tensors"]) >= 2 * 64 * 64
    assert {one["offset"] % parameters.ALIGNMENT for one in stored["tensors"]} == {0}
    assert sorted(os.listdir(tmp_path)) == ["net.so", "net.so.params"]
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    session, law = load(path), quantized.run(x)
    np.testing.assert_array_equal(session(x), law)
    seen: list[str] = []
    session.observe(x, lambda layer, _: seen.append(layer["name"]))
    assert len(seen) == len(session.profile(x, 1)) > 0
    commands.inspect(path, True, False, 1)
    assert json.loads(capsys.readouterr().out)["parameters"]["file"] == "net.so.params"


def test_what_cannot_stand_outside_is_refused() -> None:
    model = linear(1, 8)
    with pytest.raises(NybbleError, match="parameters='beside' is not one of: inside, outside"):
        nybble.compile(model, "x86-64", parameters="beside")
    with pytest.raises(NybbleError, match="is for CPUs; cuda:sm_80"):
        nybble.compile(model, ["x86-64", "cuda:sm_80"], parameters="outside")


def test_arrays_cannot_be_written(net: Path) -> None:
    stored = read(net).parameters
    assert stored is not None
    program = (
        "import sys, json; from pathlib import Path; from nybble.runtime import parameters\n"
        "arrays = parameters.load(Path(sys.argv[1]), json.loads(sys.argv[2]))\n"
        "print(arrays[0].tolist(), flush=True); arrays[0][0] = 1"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, net, json.dumps(stored)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "[1.0, 2.0, 3.0, 4.0]\n"
    assert done.returncode == -11  # the hardware refuses


def test_equal_constants_stand_there_once(tmp_path: Path) -> None:
    values: list[NDArray[Any]] = [W, W.reshape(2, 2), W + 1, np.zeros(0, np.int8)]
    with (tmp_path / "p").open("wb") as file:
        found = parameters.write(file, "p", [values, values[2:]])
    assert [one["size"] for one in found] == [128, 128]  # 16, to 64, 16, to 128, 0
    for stored, wanted in zip(found, (values, values[2:]), strict=True):
        for array, want in zip(parameters.load(tmp_path / "x", stored), wanted, strict=True):
            np.testing.assert_array_equal(array, want)


Damage = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-1], r"15 bytes, but the parameters of net.so are 16: truncated"),
        (lambda whole: whole + b"\0", r"17 bytes, but"),
        (lambda _: b"", r"0 bytes, but"),
        (lambda whole: whole[:-1] + b"?", r"damaged, or another network's"),
        (None, r"cannot be read \(No such file or directory\)\. Copy the library and its"),
    ],
)
def test_damaged_or_missing(net: Path, tmp_path: Path, damage: Damage | None, message: str) -> None:
    shutil.copyfile(net, tmp_path / "net.so")
    if damage is not None:
        (tmp_path / "net.so.params").write_bytes(damage(Path(f"{net}.params").read_bytes()))
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path / "net.so")


def test_library_may_be_renamed_and_moved_with_its_file(net: Path, tmp_path: Path) -> None:
    shutil.copyfile(net, tmp_path / "other.so")
    shutil.copyfile(f"{net}.params", tmp_path / "net.so.params")
    np.testing.assert_array_equal(load(tmp_path / "other.so")(X), X * W)


def test_a_loaded_network_survives_being_replaced(tmp_path: Path) -> None:
    path = tmp_path / "net.so"
    sessions = []
    for factor in (1, 2):
        executable, values = tiny_outside(factor)
        artifact.export_all([(executable, tiny_manifest(layers=()))], path, [values])
        sessions.append(load(path))
    for session, factor in zip(sessions, (1, 2), strict=True):
        np.testing.assert_array_equal(session(X), X * W * factor)


def test_parameters_go_with_their_library(tmp_path: Path) -> None:
    path = tmp_path / "net.so"
    executable, values = tiny_outside()
    artifact.export_all([(executable, tiny_manifest(layers=()))], path, [values])
    session = load(path)
    artifact.export(tiny_executable(), tiny_manifest(), path)
    assert os.listdir(tmp_path) == ["net.so"]
    np.testing.assert_array_equal(load(path)(X), X * W * W)
    np.testing.assert_array_equal(session(X), X * W)  # they are mapped still


def another_name(net: Path, path: Path) -> None:
    """A library that was renamed: what is named after its new name is not its own."""
    shutil.copyfile(net, path)
    shutil.copyfile(f"{net}.params", path.with_name("other.so.params"))


def other_bytes(net: Path, path: Path) -> None:
    shutil.copyfile(net, path)
    Path(f"{path}.params").write_bytes(bytes(16))


def no_manifest(_net: Path, path: Path) -> None:
    path.write_bytes(b"a plug-in")
    Path(f"{path}.params").write_bytes(b"of another tool")


def none_told_of(_net: Path, path: Path) -> None:
    artifact.export(tiny_executable(), tiny_manifest(), path)
    Path(f"{path}.params").write_bytes(b"of another tool")


@pytest.mark.parametrize("prepare", [another_name, other_bytes, no_manifest, none_told_of])
def test_files_of_others_stay(
    net: Path, tmp_path: Path, prepare: Callable[[Path, Path], None]
) -> None:
    path = tmp_path / ("other.so" if prepare is another_name else "net.so")
    prepare(net, path)
    before = Path(f"{path}.params").read_bytes()
    artifact.export(tiny_executable(), tiny_manifest(), path)
    assert Path(f"{path}.params").read_bytes() == before
    np.testing.assert_array_equal(load(path)(X), X * W * W)


@pytest.mark.parametrize(
    ("where", "moment"),
    [(os, "posix_fallocate"), (os, "fsync"), (os, "replace"), (artifact, "seal")],
)
def test_full_disk_leaves_the_older_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, moment: str
) -> None:
    path = tmp_path / "net.so"
    executable, values = tiny_outside()
    artifact.export_all([(executable, tiny_manifest(layers=()))], path, [values])
    monkeypatch.setattr(where, moment, fill_disk)
    with pytest.raises(ArtifactError, match="no space left"):
        artifact.export_all([(executable, tiny_manifest(layers=()))], path, [[W * 9]])
    monkeypatch.undo()
    np.testing.assert_array_equal(load(path)(X), X * W)
    assert sorted(os.listdir(tmp_path)) == ["net.so", "net.so.params"]


PEAK = """
import sys
import numpy as np
from nybble.runtime.session import load
session = load(sys.argv[1], threads=1)
session(np.ones((1, int(sys.argv[2])), np.float32))
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
"""


def peak(path: Path, width: int) -> int:
    """The most memory in bytes that a process of its own takes to load a network and run it."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path, str(width)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.slow
def test_memory_of_a_large_network(tmp_path: Path) -> None:
    small = tmp_path / "small.so"
    artifact.export(tiny_executable(), tiny_manifest(), small)
    recipe, width = nybble.Recipe(weights=8, activations="float"), 4096
    quantized = nybble.quantize(linear(6, width), recipe=recipe)
    path = nybble.compile(quantized, "x86-64", parameters="outside").save(tmp_path / "net.so")
    stored = read(path).parameters
    assert stored is not None
    assert stored["size"] > 6 * width**2  # 100 MB
    share = (peak(path, width) - peak(small, 4)) / stored["size"]
    assert share <= 1.2, f"{share:.3f} times the parameters"
