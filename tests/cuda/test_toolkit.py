"""Finding the compiler, saying what is missing, and TVM's back end without a driver."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import tvm_ffi

from nybble import nvidia
from nybble.errors import NybbleError
from nybble.schedules.cuda import toolkit


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake(path: Path, version: str) -> Path:
    """A program that answers like ``nvcc``; its folder's parent is the toolkit."""
    return program(path, f'echo "release 0, V{version}"; echo "#\\$ TOP={path.parent.parent}" >&2')


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No toolkit but the one that a test makes."""
    for name in (toolkit.NVCC, nvidia.HOME):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/bin:/usr/bin")
    monkeypatch.setattr(nvidia, "wheels", list)


def test_nothing_there_says_what_to_install() -> None:
    with pytest.raises(NybbleError, match=r"needs nvcc.*pip install nybble\[cuda\]"):
        toolkit.find()


def test_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = fake(tmp_path / "wheel" / "bin" / "nvcc", "13.0.1")
    monkeypatch.setattr(nvidia, "wheels", lambda: [tmp_path / "wheel"])
    assert toolkit.find() == toolkit.Toolkit(wheel, (tmp_path / "wheel").resolve(), "13.0.1")
    fake(tmp_path / "path" / "nvcc", "13.0.2")
    assert toolkit.find().version == "13.0.2"
    fake(tmp_path / "home" / "bin" / "nvcc", "13.0.3")
    monkeypatch.setenv(nvidia.HOME, str(tmp_path / "home"))
    assert toolkit.find().version == "13.0.3"
    monkeypatch.setenv(toolkit.NVCC, str(fake(tmp_path / "named" / "bin" / "nvcc", "13.0.4")))
    assert toolkit.find().version == "13.0.4"
    assert toolkit.find().tool("nvcc") == tmp_path / "named" / "bin" / "nvcc"
    assert toolkit.find().tool("cuobjdump") is None


def test_what_the_environment_names_must_be_nvcc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(nvidia.HOME, str(tmp_path))
    with pytest.raises(NybbleError, match=f"CUDA_PATH='{tmp_path}': .* is no program"):
        toolkit.find()
    monkeypatch.setenv(toolkit.NVCC, str(program(tmp_path / "other", "echo hello")))
    with pytest.raises(NybbleError, match=r"does not answer like nvcc.*NYBBLE_NVCC"):
        toolkit.find()


def test_stub_of_the_driver_only_says_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NYBBLE_CACHE", str(tmp_path))
    library = toolkit._stub()
    made = library.stat().st_mtime_ns
    assert toolkit._stub().stat().st_mtime_ns == made  # once
    assert [path.name for path in library.parent.iterdir()] == [nvidia.DRIVER]
    stub, text = ctypes.CDLL(str(library)), ctypes.c_char_p()
    assert stub.cuInit(0) == stub.cuModuleLoadData(None, None) == 34
    assert stub.cuGetErrorString(34, ctypes.byref(text)) == 0
    assert text.value == b"there is no driver here"


def test_back_end_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    try:
        toolkit.find()
    except NybbleError as error:
        pytest.skip(str(error))
    toolkit.load_backend()
    toolkit.load_backend()
    assert tvm_ffi.get_global_func("ffi.Module.create.cuda") is not None
    assert tvm_ffi.get_global_func("vm.builtin.cuda_graph.run_or_capture") is not None
