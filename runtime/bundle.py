"""A folder with just what a machine without Python needs to run a network."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackagePath, files
from pathlib import Path

from nybble.compilers import find_cxx
from nybble.errors import ArtifactError
from nybble.runtime import engine, host
from nybble.runtime.artifact import staged
from nybble.runtime.manifest import Variant, read_all

PROGRAM = "run"
CSRC = Path(__file__).resolve().parent / "csrc"
_LIBRARIES = "lib"
_PACKAGES = ("apache-tvm", "apache-tvm-ffi")


@dataclass(frozen=True)
class Bundle:
    """What was written.

    Attributes:
        folder: that holds it.
        network: bytes of the library and its parameters.
        runtime: bytes of everything else.
    """

    folder: Path
    network: int
    runtime: int


def bundle(net: str | Path, folder: str | Path) -> Bundle:
    """Puts a network, the TVM runtime and a program that runs it into a folder.

    ``folder/run`` finds its libraries beside itself, wherever the folder is copied. It needs the C
    and C++ libraries of a Linux system, no Python.

    Args:
        net: a file that `nybble.Artifact.save` wrote, for this machine's architecture.
        folder: to be made; it may be there already if it is empty.

    Returns:
        What was written, and how large it is.

    Raises:
        ArtifactError: the file is no sound library, is for another architecture or for GPUs alone,
            its parameters are missing, there is no C++ compiler, or the folder cannot be written.
            Then nothing is.
    """
    net, folder = Path(net), Path(folder)
    variants = read_all(net)
    _check(net, variants)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ArtifactError(f"{folder} is no empty folder. Name one that is, or a new one.")
    compiler = find_cxx()
    with staged(folder, is_folder=True) as scratch:
        made = scratch / "bundle"
        (made / _LIBRARIES).mkdir(parents=True)
        for source in _network(net, variants):
            shutil.copyfile(source, made / source.name)
        for source in [*_runtime(), *_licences()]:
            shutil.copyfile(source, made / _LIBRARIES / _flat(source))
        _build(compiler, made)
        _try(made, net.name)
        found = _measured(made, folder, [path.name for path in _network(net, variants)])
        os.replace(made, folder)
    return found


def build_command(compiler: Sequence[str], program: Path, libraries: Path) -> list[str]:
    """The command that compiles the program of `nybble/runtime/csrc`.

    Args:
        compiler: a C++ compiler's command.
        program: to be written.
        libraries: the folder that holds the TVM runtime, which the program finds from its own.
    """
    where = os.path.relpath(libraries, program.parent)
    include = Path(engine.ffi().__file__).parent / "include"
    return [
        *compiler, "-std=c++17", "-O1", "-s", "-o", str(program), str(CSRC / "run.cc"),
        f"-isystem{include}", f"-L{libraries}", f"-Wl,-rpath,$ORIGIN/{where}",
        "-Wl,--disable-new-dtags",  # so that the libraries find each other by the same path
        "-Wl,--no-as-needed", "-ltvm_ffi", "-ltvm_runtime",
    ]  # fmt: skip


def _check(net: Path, variants: Sequence[Variant]) -> None:
    arch = variants[0].manifest.arch
    if arch != host.arch():
        raise ArtifactError(
            f"{net}: compiled for {arch}; the TVM runtime that is installed here is for "
            f"{host.arch()}. Make the bundle on a machine of that architecture."
        )
    if all(variant.manifest.device for variant in variants):
        raise ArtifactError(f"{net}: only for GPUs, which Nybble's Python runtime alone sets up.")


def _network(net: Path, variants: Sequence[Variant]) -> list[Path]:
    """The library and its file of parameters."""
    stored = [one.manifest.parameters for one in variants if one.manifest.parameters]
    found = [net, *{net.parent / one["file"] for one in stored}]
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise ArtifactError(f"{missing[0]}: the parameters of {net.name} are not there.")
    return found


def _runtime() -> list[Path]:
    package = importlib.util.find_spec("tvm")
    assert package is not None
    assert package.origin is not None
    ffi = Path(engine.ffi().__file__).parent / "lib" / "libtvm_ffi.so"
    return [Path(package.origin).parent / "lib" / "libtvm_runtime.so", ffi]


def _licences() -> list[Path]:
    """The texts that must go along with the libraries."""
    found: list[PackagePath] = []
    for package in _PACKAGES:
        found += [path for path in files(package) or () if path.parent.name == "licenses"]
    return [Path(str(path.locate())) for path in found]


def _flat(source: Path) -> str:
    """A file's name in the folder of libraries: licences of two packages are called the same."""
    if source.suffix == ".so":
        return source.name
    return f"{source.name}.{source.parent.parent.name.partition('-')[0]}"


def _build(compiler: list[str], made: Path) -> None:
    command = build_command(compiler, made / PROGRAM, made / _LIBRARIES)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ArtifactError(f"Compiling the program failed: {compiler[0]}\n{done.stderr.strip()}")


def _try(made: Path, name: str) -> None:
    """Starts the program once, with nothing in its environment that could help it."""
    command = [str(made / PROGRAM), str(made / name)]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ArtifactError(f"The program does not start: {done.stderr.strip()}")


def _measured(made: Path, folder: Path, network: Sequence[str]) -> Bundle:
    sizes = {path: path.stat().st_size for path in made.rglob("*") if path.is_file()}
    own = sum(size for path, size in sizes.items() if path.name in network)
    return Bundle(folder, own, sum(sizes.values()) - own)
