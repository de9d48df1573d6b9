"""What `nybble bundle` writes runs without Python, and its program answers as Python does."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nybble.errors import ArtifactError
from nybble.runtime import artifact, bundle, engine, host
from nybble.runtime.manifest import Device
from nybble.runtime.session import load
from tests.runtime.tiny import tiny_cache, tiny_executable, tiny_manifest, tiny_outside, tiny_pair

X = np.arange(12, dtype=np.float32).reshape(3, 4)
W = np.arange(1, 5, dtype=np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, of a network with its parameters in a file."""
    place = tmp_path_factory.mktemp("cpp")
    executable, parameters = tiny_outside()
    net = place / "net.so"
    artifact.export_all([(executable, tiny_manifest(layers=()))], net, [parameters])
    made = bundle.bundle(net, place / "bundle")
    assert made.runtime <= 7_000_000
    total = sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file())
    assert made.network == sum(path.stat().st_size for path in place.glob("net.so*"))
    assert made.runtime + made.network == total
    return made.folder


def run(
    program: Path, net: Path, inputs: Sequence[Any], *options: str, env: Any = None
) -> tuple[dict[str, Any], str]:
    """The outputs by name, and what went wrong."""
    place = net.parent / "results"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for i, array in enumerate(inputs):
        np.save(place / f"{i}.in", array)
    paths = [str(place / f"{i}.in.npy") for i in range(len(inputs))]
    done = subprocess.run(
        [program, net, *paths, "-o", place, *options],
        capture_output=True, text=True, check=False, env=env or {}, timeout=60,
    )  # fmt: skip
    found = {p.stem: np.load(p) for p in place.glob("*.npy") if str(p) not in paths}
    assert (done.returncode == 0) == (done.stderr == "") == bool(found)
    return found, done.stderr


def test_bundle_runs_by_itself(folder: Path) -> None:
    outputs, errors = run(folder / "run", folder / "net.so", [X])
    assert errors == ""
    np.testing.assert_array_equal(outputs["y"], X * W)
    np.testing.assert_array_equal(load(folder / "net.so")(X), X * W)
    listed = subprocess.run(
        ["ldd", folder / "run"], env={}, capture_output=True, text=True, check=True
    ).stdout
    found = {line.split()[0]: line.split()[2] for line in listed.splitlines() if "=> " in line}
    assert {name for name in found if "tvm" in name} == {"libtvm_ffi.so", "libtvm_runtime.so"}
    for name, path in found.items():
        assert path.startswith(str(folder) if "tvm" in name else ("/lib", "/usr/lib")), path


def test_bundle_runs_where_nothing_else_is(folder: Path, tmp_path: Path) -> None:
    """In a root directory that holds the bundle and the C library: no Python, no wheel."""
    if os.geteuid() != 0:
        pytest.skip("changing the root directory needs root")
    shutil.copytree(folder, tmp_path / "b")
    listed = subprocess.run(
        ["ldd", folder / "run"], capture_output=True, text=True, check=True
    ).stdout
    for path in [word for word in listed.split() if word.startswith("/") and "tvm" not in word]:
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, tmp_path / path[1:])
        os.chmod(tmp_path / path[1:], 0o755)
    for name in ("o", "proc"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "x.npy", X)
    inside = f"mount --bind /proc {tmp_path}/proc && exec chroot {tmp_path} "
    command = ["unshare", "-m", "sh", "-c", inside + "/b/run /b/net.so /x.npy -o /o"]
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no mounts here, and $ORIGIN is looked up in /proc")
    assert done.stderr == ""
    np.testing.assert_array_equal(np.load(tmp_path / "o" / "y.npy"), X * W)


def test_manifest_is_shown_without_running(folder: Path) -> None:
    done = subprocess.run(
        [folder / "run", folder / "net.so"], env={}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "for x86-64, 0 layers", "  takes x: float32 (n, 4)", "  gives y: float32 (n, 4)",
    ]  # fmt: skip


def test_several_inputs_outputs_and_shapes(folder: Path, tmp_path: Path) -> None:
    executable, manifest = tiny_pair()
    artifact.export(executable, manifest, tmp_path / "pair.so")
    session = load(tmp_path / "pair.so")
    for n, m in ((1, 1), (3, 5), (0, 2), (2, 0), (0, 0)):
        a = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
        b = np.arange(2 * m * n, dtype=np.int32).reshape(m, 2, n)
        outputs, errors = run(folder / "run", tmp_path / "pair.so", [a, b])
        if (n, m) == (2, 0):
            assert "output 'double' (n, 4) is not empty" in errors
            continue
        assert errors == ""
        np.testing.assert_array_equal(outputs["double"], 2 * a)
        np.testing.assert_array_equal(outputs["më\t😀"], b + 1)
        both = session(a, b)
        assert isinstance(both, dict)
        for name, array in both.items():
            np.testing.assert_array_equal(outputs[name], array)


def test_cache_that_grows_from_nothing(folder: Path, tmp_path: Path) -> None:
    """Sizes that are sums are checked; an empty past is computed with, not answered by nothing."""
    executable, manifest = tiny_cache()
    artifact.export(executable, manifest, tmp_path / "cache.so")
    session = load(tmp_path / "cache.so")
    for n in (0, 2):
        past, mask = np.arange(4 * n, dtype=np.float32).reshape(n, 4), np.ones((n + 3, 1), "f4")
        both = np.concatenate([past, X])
        wanted = {"both": both, "kept": both * mask, "new": -X}
        outputs, errors = run(folder / "run", tmp_path / "cache.so", [mask, past, X])
        assert errors == ""
        np.testing.assert_equal(outputs, wanted)
        np.testing.assert_equal(session(mask, past, X), wanted)
        with pytest.raises(ArtifactError, match=rf"'mask': expected shape .n \+ m, 1. .*'n': {n}"):
            session(mask[1:], past, X)
        _, errors = run(folder / "run", tmp_path / "cache.so", [mask[1:], past, X])
        assert "'mask': expected float32 (n + m, 1)" in errors
    with pytest.raises(ArtifactError, match="m is 0"):  # no new tokens: nothing to compute
        session(mask[:2], past, X[:0])
    _, errors = run(folder / "run", tmp_path / "cache.so", [mask[:2], past, X[:0]])
    assert "is not empty with it" in errors


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([X.astype(np.float64)], "'x': expected float32 (n, 4), contiguous in this machine's"),
        ([X[:, :3]], "got float32 (3, 3)"),
        ([X[0]], "got float32 (4)"),
        ([X, X], "2 inputs given, the network has 1"),
        ([np.asfortranarray(X)], "in Fortran's order"),
        ([X.astype(np.complex64)], "elements of type '<c8'"),
    ],
)
def test_wrong_inputs(folder: Path, inputs: list[Any], message: str) -> None:
    assert message in run(folder / "run", folder / "net.so", inputs)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threads", "0"), "0: a positive number"),
        (("--threads", "100000"), "100000 threads: this process may use 1 to"),
        (("--best", "1"), "--best: no such option"),
        (("--repeat",), "its value is missing"),
        (("--variant", "other"), "the file holds no variant other"),
    ],
)
def test_wrong_options(folder: Path, options: tuple[str, ...], message: str) -> None:
    assert message in run(folder / "run", folder / "net.so", [X], *options)[1]


def test_no_inputs_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\1\0")
    for name, message in (("x.npy", "truncated"), ("none.npy", "not an .npy file")):
        command = [*map(str, (folder / "run", folder / "net.so", tmp_path / name, "-o", tmp_path))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, message in done.stderr) == (1, True), done.stderr


def test_variants(folder: Path, tmp_path: Path) -> None:
    nowhere = ("feature9",)
    needs = {"low": (), "middle": tuple(sorted(host.features())[:3]), "high": nowhere}
    parts = [
        (tiny_executable(factor=i + 1), tiny_manifest(target=name, features=features))
        for i, (name, features) in enumerate(needs.items())
    ]
    device = Device(
        kind="cuda", archs=["sm_80"], portable=80, toolkit="13", graphed=False, usage=[]
    )
    parts.append((tiny_executable(factor=9), tiny_manifest(target="gpu", device=device)))
    fat = tmp_path / "fat.so"
    artifact.export_all(parts, fat)
    for options, env, factor in (
        ((), {}, 2), (("--variant", "low"), {}, 1), ((), {"NYBBLE_VARIANT": "low"}, 1),
    ):  # fmt: skip
        outputs, _ = run(folder / "run", fat, [X], *options, env=env)
        np.testing.assert_array_equal(outputs["y"], X * (W * factor) ** 2)
    for name, message in {
        "high": "the variant high needs feature9",
        "gpu": "the variant gpu needs a GPU, which only",
        "none": "holds no variant none",
    }.items():
        assert message in run(folder / "run", fat, [X], env={"NYBBLE_VARIANT": name})[1]


def test_variants_with_parameters(folder: Path, tmp_path: Path) -> None:
    """One file of parameters for all variants; equal ones stand in it once."""
    made = [tiny_outside(factor) for factor in (1, 2, 1)]
    parts = [
        (executable, tiny_manifest(layers=(), target=f"t{i}"))
        for i, (executable, _) in enumerate(made)
    ]
    fat = tmp_path / "fat.so"
    manifests = artifact.export_all(parts, fat, [values for _, values in made])
    assert [m.parameters["size"] for m in manifests if m.parameters] == [80] * 3  # 16, 48 to 64, 16
    for name, factor in (("t0", 1), ("t1", 2), ("t2", 1)):
        outputs, errors = run(folder / "run", fat, [X], "--variant", name)
        assert errors == ""
        np.testing.assert_array_equal(outputs["y"], X * W * factor)


Damage = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-1], "truncated"),
        (lambda whole: whole[:4000] + b"?" + whole[4001:], "do not match their checksum"),
        (lambda whole: whole[: len(whole) - 60] + b"?" + whole[len(whole) - 59 :], "checksum"),
        (lambda whole: b"#!/bin/sh" + whole, "not a shared library"),
        (lambda _: b"", "not a shared library"),
    ],
)
def test_damaged_files_are_messages(
    folder: Path, library: Path, tmp_path: Path, damage: Damage, message: str
) -> None:
    path = tmp_path / "net.so"
    path.write_bytes(damage(library.read_bytes()))
    assert message in run(folder / "run", path, [X])[1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-1], "15 bytes, but the library's parameters are 16"),
        (lambda whole: whole[:-1] + b"?", "do not match the library"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_parameters_are_checked(
    folder: Path, tmp_path: Path, damage: Damage | None, message: str
) -> None:
    shutil.copyfile(folder / "net.so", tmp_path / "net.so")
    if damage is not None:
        damaged = damage((folder / "net.so.params").read_bytes())
        (tmp_path / "net.so.params").write_bytes(damaged)
    assert message in run(folder / "run", tmp_path / "net.so", [X])[1]


PROGRAM = r"""
#include <thread>

#include "nybble.h"

// Several threads call one network, each with a batch of its own, and check every result.
int main(int, char** argv) {
  const nybble::Network network(argv[1], {"", 2});
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) {
        const nybble::Tensor x = nybble::Empty("float32", {t + 1 + i % 3, 4});
        for (int64_t k = 0; k < x.numel(); ++k) nybble::Data<float>(x)[k] = t + i;
        const nybble::Tensor y = network.Run({{"x", x}}).at("y");
        for (int64_t k = 0; k < y.numel(); ++k) {
          wrong += nybble::Data<float>(y)[k] != (t + i) * (k % 4 + 1) * (k % 4 + 1);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return wrong != 0;
}
"""


@pytest.mark.slow
def test_one_network_in_several_threads(folder: Path, library: Path, tmp_path: Path) -> None:
    """A user's own program, built with all warnings as errors."""
    (tmp_path / "threads.cc").write_text(PROGRAM)
    include = Path(engine.ffi().__file__).parent / "include"
    libraries = folder / "lib"
    command = [
        "g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread",
        tmp_path / "threads.cc", "-o", tmp_path / "threads", f"-I{bundle.CSRC}",
        f"-isystem{include}", f"-L{libraries}", f"-Wl,-rpath,{libraries}",
        "-Wl,--disable-new-dtags", "-Wl,--no-as-needed", "-ltvm_ffi", "-ltvm_runtime",
    ]  # fmt: skip
    subprocess.run([*map(str, command)], check=True)
    subprocess.run([tmp_path / "threads", library], check=True, timeout=120)
