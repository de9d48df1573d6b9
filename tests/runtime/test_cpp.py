"""The C++ example compiles against the installed headers and computes what Python computes."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from nybble.runtime import engine
from nybble.runtime.session import load

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


def test_bad_input_is_a_message(program: Path, library: Path, tmp_path: Path) -> None:
    (tmp_path / "in.raw").write_bytes(b"1234")
    arguments = [*map(str, (library, tmp_path / "in.raw", tmp_path / "out.raw")), "3", "4"]
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "does not hold exactly 48 bytes" in done.stderr
