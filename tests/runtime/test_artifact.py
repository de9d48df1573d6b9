"""Export: the file appears whole or not at all, and every failure says what to do."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nybble import compilers
from nybble.errors import ArtifactError
from nybble.runtime import artifact, host
from nybble.runtime.manifest import read
from nybble.runtime.session import load
from tests.runtime.tiny import tiny_executable, tiny_manifest


def fill_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_replaces_an_older_file_and_leaves_nothing_else(executable: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.so"
    path.write_text("older")
    written = artifact.export(executable, tiny_manifest(), path)
    assert read(path) == written
    assert os.listdir(tmp_path) == ["net.so"]


def test_same_model_gives_the_same_file(executable: Any, tmp_path: Path) -> None:
    first = artifact.export(executable, tiny_manifest(), tmp_path / "a.so")
    second = artifact.export(executable, tiny_manifest(), tmp_path / "b.so")
    assert first == second
    assert (tmp_path / "a.so").read_bytes() == (tmp_path / "b.so").read_bytes()


def test_is_small_and_stripped(library: Path) -> None:
    assert library.stat().st_size < 40_000
    listed = subprocess.run(["nm", library], capture_output=True, text=True, check=False)
    assert "no symbols" in listed.stderr


def test_missing_directory_and_directory_as_path(executable: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no directory"):
        artifact.export(executable, tiny_manifest(), tmp_path / "none" / "net.so")
    with pytest.raises(ArtifactError, match="it is a directory"):
        artifact.export(executable, tiny_manifest(), tmp_path)


def test_unwritable_directory(executable: Any) -> None:
    with pytest.raises(ArtifactError, match=r"Cannot write /proc/net.so"):
        artifact.export(executable, tiny_manifest(), "/proc/net.so")  # even root may not


@pytest.mark.parametrize("moment", ["posix_fallocate", "fsync", "replace"])
def test_full_disk_leaves_the_older_file(
    executable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = tmp_path / "net.so"
    path.write_text("older")
    monkeypatch.setattr(os, moment, fill_disk)
    with pytest.raises(ArtifactError, match="no space left"):
        artifact.export(executable, tiny_manifest(), path)
    monkeypatch.undo()
    assert path.read_text() == "older"
    assert os.listdir(tmp_path) == ["net.so"]


def test_really_full_disk(executable: Any, tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with pytest.raises(ArtifactError, match="no space left"):
            artifact.export(executable, tiny_manifest(), tmp_path / "net.so")
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_linker_failures_are_shown(
    executable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "broken-cc"
    compiler.write_text("#!/bin/sh\necho cannot do it >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(ArtifactError, match=r"(?s)Linking .*cannot do it"):
        artifact.export(executable, tiny_manifest(), tmp_path / "net.so")
    compiler.write_text("#!/bin/sh\necho ld: No space left on device >&2\nexit 1\n")
    with pytest.raises(ArtifactError, match="no space left"):
        artifact.export(executable, tiny_manifest(), tmp_path / "net.so")
    assert os.listdir(tmp_path) == ["broken-cc"]


def test_no_compiler_says_what_to_install(
    executable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ArtifactError, match=r"No C compiler.*apt install gcc"):
        artifact.export(executable, tiny_manifest(), tmp_path / "net.so")
    monkeypatch.setenv("CC", "icx -O2")
    with pytest.raises(ArtifactError, match="CC='icx -O2' is not on the PATH"):
        artifact.export(executable, tiny_manifest(), tmp_path / "net.so")
    assert os.listdir(tmp_path) == []


def test_cross_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArtifactError, match=r"aarch64-linux-gnu-gcc.*gcc-aarch64-linux-gnu"):
        compilers.find_compiler("aarch64")
    (tmp_path / "aarch64-linux-gnu-gcc").touch(mode=0o755)
    assert compilers.find_compiler("aarch64") == ["aarch64-linux-gnu-gcc"]


def test_cross_compiled_library(tmp_path: Path) -> None:
    arch = "aarch64" if host.arch() != "aarch64" else "x86_64"
    if not shutil.which(f"{arch}-linux-gnu-gcc"):
        pytest.skip(f"no cross compiler {arch}-linux-gnu-gcc on the PATH")
    path = tmp_path / "net.so"
    artifact.export(tiny_executable(arch=arch), tiny_manifest(arch=arch, target=arch), path)
    (machine,) = struct.unpack_from("<H", path.read_bytes(), 18)
    assert machine == {"aarch64": 183, "x86_64": 62}[arch]  # ELF's e_machine
    with pytest.raises(ArtifactError, match=f"Compiled for {arch}"):
        load(path)
