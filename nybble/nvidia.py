"""NVIDIA's libraries, for compiler and runtime alike: the driver's, and where wheels put theirs."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

DRIVER, CUDART = "libcuda.so.1", "libcudart.so.13"
HOME = "CUDA_PATH"
_SYSTEM = Path("/usr/local/cuda")


def homes() -> list[Path]:
    """Folders of CUDA that may be there: of ``CUDA_PATH``, the wheels, and NVIDIA's installer."""
    given = os.environ.get(HOME)
    return [*([Path(given)] if given else []), *wheels(), _SYSTEM]


def wheels() -> list[Path]:
    """The folders that NVIDIA's wheels fill, newest CUDA first."""
    package = importlib.util.find_spec("nvidia")
    places = package.submodule_search_locations if package else None
    return sorted((home for at in places or () for home in Path(at).glob("cu1*")), reverse=True)


@cache
def load(name: str, folders: Iterable[Path] = ()) -> str | None:
    """Loads a library so that others find its symbols.

    Args:
        name: as the dynamic linker looks it up.
        folders: of CUDA, in whose ``lib`` and ``lib64`` it may be.

    Returns:
        None when it is loaded; else what the linker says.
    """
    places = [home / lib / name for home in folders for lib in ("lib64", "lib")]
    said = ""
    for path in (name, *map(str, filter(Path.exists, places))):
        try:
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
        except OSError as error:
            said = said or str(error)
        else:
            return None
    return said


def load_cudart(further: Iterable[Path] = ()) -> str | None:
    """`load` for CUDA's runtime library.

    Args:
        further: folders to look into beside `homes`.
    """
    return load(CUDART, (*further, *homes()))
