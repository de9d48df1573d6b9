"""Writing a `.so`: link, append the manifest, put it in place in one step."""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nybble.errors import ArtifactError
from nybble.runtime import engine, host
from nybble.runtime.manifest import Manifest, seal

_LINK = ("-shared", "-fPIC", "-s", "-Wl,--build-id=none")  # -s: nobody debugs by these symbols
_CODE = 8 << 20  # bytes of machine code, more than any network here has

Link = Callable[..., None]


def export(executable: Any, manifest: Manifest, path: str | Path) -> Manifest:
    """Writes a deployable library; the file appears whole or not at all.

    Args:
        executable: what ``tvm.compile`` returned.
        manifest: describes it; ``hash`` is filled in here.
        path: where to write; an existing file is replaced at the very end.

    Returns:
        The manifest as it was written.

    Raises:
        ArtifactError: the directory is missing or not writable, the disk is full, there is no C
            compiler for the target, or it fails.
    """
    path = Path(path)
    compiler = find_compiler(manifest.arch)
    with _staging(path) as staging:
        _reserve(staging, executable)
        library = staging / "library.so"
        executable.export_library(
            str(library), fcompile=_linker(compiler, path), workspace_dir=str(staging)
        )
        sealed = _append(library, manifest)
        os.replace(library, path)
        _sync_directory(path.parent)
    return sealed


def find_compiler(arch: str) -> list[str]:
    """The command of a C compiler that links for ``arch``.

    Raises:
        ArtifactError: there is none; says what to install.
    """
    chosen = shlex.split(os.environ.get("CC", ""))
    if arch != host.arch():
        cross = f"{arch}-linux-gnu-gcc"
        if shutil.which(cross):
            return [cross]
        raise ArtifactError(
            f"Linking for {arch} on {host.arch()} needs {cross}, which is not on the PATH. "
            f"On Debian and Ubuntu: apt install gcc-{arch.replace('_', '-')}-linux-gnu."
        )
    if chosen:
        if shutil.which(chosen[0]):
            return chosen
        raise ArtifactError(f"CC={os.environ['CC']!r} is not on the PATH. Unset or correct it.")
    found = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if found is None:
        raise ArtifactError(
            "No C compiler: writing a .so needs one for the last step, linking. Install gcc or "
            "clang (Debian and Ubuntu: apt install gcc; Fedora: dnf install gcc), or set CC."
        )
    return [found]


def _linker(compiler: list[str], path: Path) -> Link:
    """The function that TVM calls with the object files."""

    def link(output: str, objects: list[str], options: list[str] | None = None) -> None:
        command = [*compiler, *_LINK, "-o", output, *objects, *(options or [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise ArtifactError(_full(path))
        raise ArtifactError(f"Linking {path} failed: {shlex.join(command)}\n{done.stderr.strip()}")

    return link


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A directory beside ``path``, so that the last step is a rename; gone afterwards."""
    if path.is_dir():
        raise ArtifactError(f"Cannot write {path}: it is a directory. Name a file in it.")
    if not path.parent.is_dir():
        raise ArtifactError(f"Cannot write {path}: there is no directory {path.parent}.")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as name:
            yield Path(name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ArtifactError(_full(path)) from error
        raise ArtifactError(f"Cannot write {path}: {error.strerror or error}.") from error


def _reserve(staging: Path, executable: Any) -> None:
    """Raises OSError while there is no room; LLVM would abort the process on a full disk."""
    packed = engine.ffi().get_global_func("runtime.ModulePackImportsToTensor")(executable.mod)
    needed = 2 * (packed.shape[0] + _CODE)  # objects and the library lie side by side
    probe = staging / "reserve"
    with probe.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, needed)
    probe.unlink()


def _full(path: Path) -> str:
    return f"Cannot write {path}: no space left on the device. Nothing was written."


def _append(library: Path, manifest: Manifest) -> Manifest:
    """Appends the trailer and brings the file to the disk."""
    with library.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256")
        sealed = replace(manifest, hash=digest.hexdigest())
        file.seek(0, os.SEEK_END)
        file.write(seal(sealed, digest))
        file.flush()
        os.fsync(file.fileno())
    return sealed


def _sync_directory(directory: Path) -> None:
    """Makes the rename survive a power failure."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
