"""The C++ example compiles against the installed headers and computes what Python computes."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nybble.runtime import artifact, engine, host
from nybble.runtime.manifest import Device
from nybble.runtime.session import load
from tests.runtime.tiny import tiny_executable, tiny_manifest

SOURCE = Path(__file__).parents[2] / "runtime" / "csrc" / "run.cc"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++ or clang++) on the PATH")
    spec = find_spec("tvm")
    assert spec is not None
    assert spec.origin is not None
    runtime = Path(spec.origin).parent / "lib"
    ffi = Path(engine.ffi().__file__).parent
    path = tmp_path_factory.mktemp("cpp") / "run"
    subprocess.run(
        [
            compiler, "-std=c++17", "-O1", "-Wall", "-Werror", "-o", path, SOURCE,
            f"-isystem{ffi / 'include'}",
            f"-L{ffi / 'lib'}", f"-L{runtime}", f"-Wl,-rpath,{ffi / 'lib'}:{runtime}",
            "-Wl,--no-as-needed", "-ltvm_ffi", "-ltvm_runtime",
        ],
        check=True,
    )  # fmt: skip
    return path


def test_equals_python(program: Path, library: Path, tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    (tmp_path / "in.raw").write_bytes(x.tobytes())
    arguments = [*map(str, (library, tmp_path / "in.raw", tmp_path / "out.raw")), "3", "4"]
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "4"]
    assert (tmp_path / "out.raw").read_bytes() == np.asarray(load(library)(x)).tobytes()


def both(program: Path, net: Path, folder: Path, **env: str) -> tuple[int, str, bytes]:
    """Exit code, errors and output bytes of the program on ones (1, 4)."""
    (folder / "in.raw").write_bytes(np.ones((1, 4), np.float32).tobytes())
    arguments = [*map(str, (net, folder / "in.raw", folder / "out.raw")), "1", "4"]
    done = subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )
    wrote = folder / "out.raw"
    return done.returncode, done.stderr, wrote.read_bytes() if wrote.exists() else b""


def test_variants(program: Path, tmp_path: Path) -> None:
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
    for env, factor in (({}, 2), ({"NYBBLE_VARIANT": "low"}, 1)):
        code, errors, output = both(program, fat, tmp_path, **env)
        assert (code, errors) == (0, "")
        assert output == ((np.arange(1, 5, dtype=np.float32) * factor) ** 2).tobytes()
    code, errors, _ = both(program, fat, tmp_path, NYBBLE_VARIANT="high")
    assert (code, "the variant high needs feature9" in errors) == (1, True)
    code, errors, _ = both(program, fat, tmp_path, NYBBLE_VARIANT="gpu")
    assert (code, "the variant gpu needs a GPU, which only" in errors) == (1, True)
    code, errors, _ = both(program, fat, tmp_path, NYBBLE_VARIANT="none")
    assert (code, "holds no variant none" in errors) == (1, True)


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
    program: Path, library: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    path = tmp_path / "net.so"
    path.write_bytes(damage(library.read_bytes()))
    code, errors, output = both(program, path, tmp_path)
    assert (code, output) == (1, b"")
    assert message in errors


def test_bad_input_is_a_message(program: Path, library: Path, tmp_path: Path) -> None:
    (tmp_path / "in.raw").write_bytes(b"1234")
    arguments = [*map(str, (library, tmp_path / "in.raw", tmp_path / "out.raw")), "3", "4"]
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "does not hold exactly 48 bytes" in done.stderr
