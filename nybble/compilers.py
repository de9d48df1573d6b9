"""The C compiler that links what is built here, and the C++ compiler of programs."""

from __future__ import annotations

import os
import platform
import shlex
import shutil

from nybble.errors import ArtifactError


def find_compiler(arch: str) -> list[str]:
    """The command of a C compiler that links for ``arch``.

    Raises:
        ArtifactError: there is none; says what to install.
    """
    chosen, here = shlex.split(os.environ.get("CC", "")), platform.machine()
    if arch != here:
        cross = f"{arch}-linux-gnu-gcc"
        if shutil.which(cross):
            return [cross]
        raise ArtifactError(
            f"Linking for {arch} on {here} needs {cross}, which is not on the PATH. "
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


def find_cxx() -> list[str]:
    """The command of a C++ compiler for this machine.

    Raises:
        ArtifactError: there is none; says what to install.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        if shutil.which(chosen[0]):
            return chosen
        raise ArtifactError(f"CXX={os.environ['CXX']!r} is not on the PATH. Unset or correct it.")
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if found is None:
        raise ArtifactError(
            "No C++ compiler: the program that runs a network is compiled by one. Install g++ or "
            "clang (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or set CXX."
        )
    return [found]
