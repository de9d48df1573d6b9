"""Constants of a network in a file of their own beside the library, mapped into memory.

A library with its constants inside holds them twice in memory when it is loaded: the dynamic
linker maps them, the virtual machine copies them. Here they stand in a file of their own
(``net.so.params`` beside ``net.so``), each on a cache line as kernels want it, without anything
between them but padding. The manifest says where each one starts and gives its SHA-256.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
from numpy.typing import NDArray

from nybble.errors import ArtifactError

SUFFIX = ".params"
ALIGNMENT = 64  # generated code loads whole cache lines and assumes that they start on one


class Stored(TypedDict):
    """One constant in the file."""

    offset: int
    """Of its first byte, a multiple of 64."""
    shape: list[int]
    """Extents, as the kernel that reads it packs it."""
    dtype: str
    """NumPy's name of its element type."""
    hash: str
    """SHA-256 of its bytes in hex."""


class Parameters(TypedDict):
    """The constants that a library takes from a file."""

    file: str
    """Its name, in the folder of the library."""
    size: int
    """Its bytes."""
    tensors: list[Stored]
    """In the order in which the library's entry takes them behind its inputs."""


def write(
    file: BinaryIO, name: str, variants: Sequence[Sequence[NDArray[Any]]]
) -> list[Parameters]:
    """Writes the constants of all variants of a network; equal ones once.

    Args:
        file: empty, to be written.
        name: that it will have beside the library.
        variants: the constants of each.

    Returns:
        What each variant's manifest says of the file.
    """
    places: dict[str, int] = {}
    tensors: list[list[Stored]] = [[] for _ in variants]
    for arrays, stored in zip(variants, tensors, strict=True):
        for array in map(np.ascontiguousarray, arrays):
            raw = array.reshape(-1).view(np.uint8).data
            digest = hashlib.sha256(raw).hexdigest()
            if digest not in places:
                file.write(bytes(-file.tell() % ALIGNMENT))
                places[digest] = file.tell()
                file.write(raw)
            stored.append(
                Stored(
                    offset=places[digest],
                    shape=list(array.shape),
                    dtype=str(array.dtype),
                    hash=digest,
                )
            )
    return [Parameters(file=name, size=file.tell(), tensors=stored) for stored in tensors]


def load(library: Path, parameters: Mapping[str, Any]) -> list[NDArray[Any]]:
    """Maps the constants of a library; all of them are checked, none is copied.

    Args:
        library: the ``.so``; the file stands in its folder.
        parameters: what its manifest says (`Parameters`).

    Returns:
        Arrays in memory that the kernel lets nobody write, whatever their flags say: a tensor
        cannot be made of an array that is marked so.

    Raises:
        ArtifactError: the file is missing, unreadable, truncated, damaged or another network's.
    """
    path = library.parent / parameters["file"]
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size != parameters["size"]:
                raise ArtifactError(
                    f"{path}: {size:,} bytes, but the parameters of {library.name} are "
                    f"{parameters['size']:,}: truncated, or another network's. {_COPY}"
                )
            memory = _mapped(file, size)
    except OSError as error:
        raise ArtifactError(
            f"{path}: the parameters of {library.name} cannot be read ({error.strerror}). {_COPY}"
        ) from error
    return [_checked(memory, one, path, library) for one in parameters["tensors"]]


_COPY = "Copy the library and its parameters together from where they were made."


def _mapped(file: BinaryIO, size: int) -> NDArray[np.uint8]:
    """The file's bytes as an array that keeps them mapped."""
    return np.asarray(_Mapped(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)))


class _Mapped:
    """What NumPy makes an array of that does not know that it is read-only, and keeps."""

    def __init__(self, memory: mmap.mmap):
        self._memory = memory
        address = np.frombuffer(memory, np.uint8).ctypes.data
        self.__array_interface__ = {
            "version": 3, "shape": (len(memory),), "typestr": "|u1", "data": (address, False),
        }  # fmt: skip


def _checked(memory: NDArray[np.uint8], one: Stored, path: Path, library: Path) -> NDArray[Any]:
    dtype, start = np.dtype(one["dtype"]), one["offset"]
    raw = memory[start : start + prod(one["shape"]) * dtype.itemsize]
    if hashlib.sha256(raw.data).hexdigest() != one["hash"]:
        raise ArtifactError(
            f"{path}: damaged, or another network's: its contents do not match the checksums in "
            f"{library.name}. {_COPY}"
        )
    return raw.view(dtype).reshape(one["shape"])
