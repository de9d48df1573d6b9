"""Writing a `.so`: link, append the manifest, put it in place in one step."""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nybble import tiles
from nybble.compilers import find_compiler
from nybble.errors import ArtifactError
from nybble.runtime import engine, parameters
from nybble.runtime.manifest import Manifest, Variant, read_all, seal

_LINK = ("-shared", "-fPIC", "-s", "-Wl,--build-id=none")  # -s: nobody debugs by these symbols
# For kernels written as C: integers wrap, memory is reinterpreted, products and sums stay apart.
_COMPILE = ("-O3", "-fwrapv", "-fno-strict-aliasing", "-ffp-contract=off", "-w")
_CODE = 8 << 20  # bytes of machine code, more than any network here has

_PAGE = 4096  # where a further variant starts

Link = Callable[..., None]


def export(executable: Any, manifest: Manifest, path: str | Path) -> Manifest:
    """`export_all` of one variant; returns its manifest as it was written."""
    return export_all([(executable, manifest)], path)[0]


def export_all(
    variants: Sequence[tuple[Any, Manifest]],
    path: str | Path,
    outside: Sequence[Sequence[NDArray[Any]]] = (),
) -> tuple[Manifest, ...]:
    """Writes a deployable library; the file appears whole or not at all.

    Args:
        variants: what ``tvm.compile`` returned, and the manifest that describes it, whose ``hash``
            is filled in here; the one that needs the fewest CPU features first.
        path: where to write; an existing file is replaced at the very end.
        outside: the constants of each variant that go to a file of their own beside it, in the
            order in which its entry takes them; none of any when omitted. Where there are none,
            those of the library that is replaced disappear with it.

    Returns:
        The manifests as they were written.

    Raises:
        ArtifactError: the directory is missing or not writable, the disk is full, there is no C
            compiler for the target, or it fails.
    """
    path = Path(path)
    compiler = find_compiler(variants[0][1].arch)
    with staged(path) as staging:
        _reserve(staging, [executable for executable, _ in variants], outside)
        libraries = [staging / f"library{i}.so" for i in range(len(variants))]
        for library, (executable, manifest) in zip(libraries, variants, strict=True):
            link = _linker([*compiler, *_sources(manifest.features, staging)], path)
            executable.export_library(str(library), fcompile=link, workspace_dir=str(staging))
        manifests = [manifest for _, manifest in variants]
        stale = None if any(outside) else _own_parameters(path)
        if any(outside):
            manifests = _write_parameters(staging / "parameters", path, manifests, outside)
        sealed = _join(libraries, manifests)
        if any(outside):
            os.replace(staging / "parameters", _beside(path))
        os.replace(libraries[0], path)
        if stale is not None:
            stale.unlink(missing_ok=True)
        _sync_directory(path.parent)
    return tuple(variant.manifest for variant in sealed)


def _beside(path: Path) -> Path:
    """Where a library's file of parameters is written."""
    return path.with_name(path.name + parameters.SUFFIX)


def _own_parameters(path: Path) -> Path | None:
    """The file of parameters that was written with the library at ``path``; None without one.

    Its name alone says little: every manifest in the library has to name it and to know its bytes.
    """
    beside = _beside(path)
    if not beside.is_file():
        return None
    try:
        for variant in read_all(path):
            stored = variant.manifest.parameters
            if stored is None or stored["file"] != beside.name:
                return None
            parameters.load(path, stored)
    except ArtifactError:  # no library of Nybble's, or not its bytes
        return None
    return beside


def _write_parameters(
    whole: Path,
    path: Path,
    manifests: Sequence[Manifest],
    outside: Sequence[Sequence[NDArray[Any]]],
) -> list[Manifest]:
    """Writes the constants of the library to come; returns manifests that tell of them.

    Args:
        whole: where they are written first.
        path: of the library, beside which they will stand.
        manifests: of its variants.
        outside: the constants of each.
    """
    with whole.open("wb") as file:
        found = parameters.write(file, _beside(path).name, outside)
        file.flush()
        os.fsync(file.fileno())
    return [
        replace(manifest, parameters=one) for manifest, one in zip(manifests, found, strict=True)
    ]


def write_whole(path: str | Path, data: bytes) -> Path:
    """Writes any other file; it appears whole or not at all.

    Raises:
        ArtifactError: the directory is missing or not writable, or the disk is full.
    """
    path = Path(path)
    with staged(path) as staging:
        whole = staging / "whole"
        whole.write_bytes(data)
        os.replace(whole, path)
    return path


def export_module(module: Any, arch: str, features: Iterable[str], path: Path) -> None:
    """Links a module of kernels alone, without manifest.

    Args:
        module: TVM's runtime module.
        arch: of its machine code.
        features: of the CPU, that the code needs.
        path: where to write.

    Raises:
        ArtifactError: there is no C compiler for the architecture, or it fails.
    """
    with staged(path) as staging:
        command = [*find_compiler(arch), *_sources(features, staging)]
        link = _linker(command, path)
        module.export_library(str(path), fcompile=link, workspace_dir=str(staging))


def _sources(features: Iterable[str], staging: Path) -> list[str]:
    """C files that become part of a library: one that asks for AMX's tiles where it uses them."""
    if tiles.FEATURES.isdisjoint(features):
        return []
    source = staging / "tiles.c"
    source.write_text(tiles.ASKING)
    return [str(source)]


def _linker(compiler: list[str], path: Path) -> Link:
    """The function that TVM calls with the object files, or with C sources."""

    def link(output: str, objects: list[str], options: list[str] | None = None) -> None:
        is_c = any(name.endswith(".c") for name in objects)
        name, *chosen = compiler
        command = [name, *(_COMPILE if is_c else ()), *chosen, *_LINK, "-o", output, *objects]
        command += [*(options or []), "-Wl,--as-needed", "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise ArtifactError(_full(path))
        raise ArtifactError(f"Linking {path} failed: {shlex.join(command)}\n{done.stderr.strip()}")

    return link


def check_writable(path: Path, is_folder: bool = False) -> None:
    """Finds out before long work, not after it, that a file or folder cannot be written.

    Raises:
        ArtifactError: there is a directory where a file shall be, or none to hold it, or that is
            read-only.
    """
    if path.is_dir() and not is_folder:
        raise ArtifactError(f"Cannot write {path}: it is a directory. Name a file in it.")
    if not path.parent.is_dir():
        raise ArtifactError(f"Cannot write {path}: there is no directory {path.parent}.")
    if not os.access(path.parent, os.W_OK):
        raise ArtifactError(f"Cannot write {path}: the directory {path.parent} is read-only.")


@contextmanager
def staged(path: Path, is_folder: bool = False) -> Iterator[Path]:
    """A directory beside ``path``, so that the last step is a rename; gone afterwards.

    Args:
        path: what will be written.
        is_folder: a folder, and not a file.

    Raises:
        ArtifactError: as `check_writable`, or what the block does ends on a full disk or on what
            may not be written.
    """
    check_writable(path, is_folder)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as name:
            yield Path(name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ArtifactError(_full(path)) from error
        raise ArtifactError(f"Cannot write {path}: {error.strerror or error}.") from error


def _reserve(
    staging: Path, executables: Sequence[Any], outside: Sequence[Sequence[NDArray[Any]]]
) -> None:
    """Raises OSError while there is no room; LLVM would abort the process on a full disk."""
    pack = engine.ffi().get_global_func("runtime.ModulePackImportsToTensor")
    needed = sum(2 * (pack(e.mod).shape[0] + _CODE) for e in executables)  # object and library
    needed += sum(array.nbytes for arrays in outside for array in arrays)
    probe = staging / "reserve"
    with probe.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, needed)
    probe.unlink()


def _full(path: Path) -> str:
    return f"Cannot write {path}: no space left on the device. Nothing was written."


def _join(libraries: Sequence[Path], manifests: Sequence[Manifest]) -> list[Variant]:
    """Appends the other libraries and the trailer to the first, and brings it to the disk."""
    variants, whole = list[Variant](), hashlib.sha256()
    with libraries[0].open("r+b") as file:
        for library, manifest in zip(libraries, manifests, strict=True):
            elf = library.read_bytes()
            padding = bytes(-file.seek(0, os.SEEK_END) % _PAGE) if variants else b""
            if variants:
                file.write(padding + elf)
            whole.update(padding + elf)
            sealed = replace(manifest, hash=hashlib.sha256(elf).hexdigest())
            variants.append(Variant(sealed, file.tell() - len(elf) if variants else 0, len(elf)))
        file.seek(0, os.SEEK_END)
        file.write(seal(variants, whole))
        file.flush()
        os.fsync(file.fileno())
    return variants


def _sync_directory(directory: Path) -> None:
    """Makes the rename survive a power failure."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
