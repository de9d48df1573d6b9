"""The NVIDIA GPU of this machine: what it can run, and tensors to it and back."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nybble import nvidia
from nybble.errors import ArtifactError
from nybble.runtime.manifest import Device

DEVICE = (2, 0)  # kDLCUDA, the first one: CUDA_VISIBLE_DEVICES says which that is
_MAJOR, _MINOR = 75, 76  # the driver's numbers of these attributes
_STUB = 34  # what `nybble.schedules.cuda.toolkit` answers in the driver's place


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: ``NVIDIA H200``.
        capability: 90 for compute capability 9.0.
    """

    name: str
    capability: int


@cache
def find() -> Gpu | str:
    """The first GPU, or why there is none."""
    said = nvidia.load(nvidia.DRIVER)
    if said is not None:
        return f"there is no NVIDIA driver ({said})"
    driver = ctypes.CDLL(nvidia.DRIVER)
    failed = driver.cuInit(0)
    if failed:
        why = "is missing" if failed == _STUB else f"reports error {failed} and no usable GPU"
        return f"the NVIDIA driver {why}"
    device, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    version = []
    for attribute in (_MAJOR, _MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        version.append(value.value)
    return Gpu(name.value.decode(), 10 * version[0] + version[1])


def refusal(device: Device) -> str | None:
    """Why this machine cannot run code for GPUs, None if it can."""
    found = find()
    if isinstance(found, str):
        return found
    return None if fits(device, found.capability) else (
        f"its GPU '{found.name}' is sm_{found.capability}"
    )  # fmt: skip


def fits(device: Device, capability: int) -> bool:
    """Whether a GPU runs code: machine code of its own kind, or portable code of an older one.

    Machine code runs on the same major and any later minor version, that with Hopper's own
    instructions (``sm_90a``) on exactly the one; the driver compiles portable code for any later.
    """
    for arch in device["archs"]:
        number = int(arch.removeprefix("sm_").rstrip("a"))
        is_own = arch.endswith("a")
        same = number // 10 == capability // 10 and number <= capability
        if capability == number or (same and not is_own):
            return True
    portable = device["portable"]
    return portable is not None and portable <= capability


@cache
def load_runtime() -> None:
    """Loads TVM's CUDA runtime, which ``libtvm_runtime`` alone has not.

    Raises:
        ArtifactError: a library is missing; says what to install.
    """
    said = nvidia.load_cudart()
    if said is not None:
        raise ArtifactError(
            f"CUDA's runtime library does not load: {said}. Install it: pip install "
            "nvidia-cuda-runtime==13.0.*, or name a CUDA 13 toolkit in CUDA_PATH."
        )
    package = importlib.util.find_spec("tvm")  # finds, imports nothing
    assert package is not None
    assert package.origin is not None
    library = Path(package.origin).parent / "lib" / "libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise ArtifactError(f"TVM's CUDA runtime does not load: {error}.") from error


class Memory:
    """Copies between this machine's memory and the GPU's.

    Tensors for inputs are kept and filled again: the memory of a call's inputs is that of the next
    call of the same shapes.

    Args:
        ffi: the ``tvm_ffi`` package with the runtime behind it.
    """

    def __init__(self, ffi: Any):
        self._ffi = ffi
        self._device = ffi.Device(*DEVICE)
        self._allocate = ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        self._copy = ffi.get_global_func("runtime.TVMTensorCopyFromTo")
        self._wait = ffi.get_global_func("runtime.Device_StreamSync")
        self._kept: dict[Any, list[Any]] = {}

    def take(self, arrays: Sequence[NDArray[Any]]) -> list[Any]:
        """The arrays as tensors of the GPU."""
        key = tuple((array.shape, str(array.dtype)) for array in arrays)
        if key not in self._kept:
            self._kept = {key: [self._empty(*one) for one in key]}
        tensors = self._kept[key]
        for array, tensor in zip(arrays, tensors, strict=True):
            self._copy(self._ffi.from_dlpack(array), tensor)
        return tensors

    def give(self, tensor: Any) -> NDArray[Any]:
        """A tensor of the GPU as an array, once everything launched so far is done."""
        found = np.empty(tuple(tensor.shape), str(tensor.dtype))
        self._copy(tensor, self._ffi.from_dlpack(found))
        self.wait()
        return found

    def wait(self) -> None:
        """Returns once everything launched so far is done."""
        self._wait(self._device, 0)

    def _empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._allocate(self._ffi.Shape(shape), self._ffi.dtype(dtype), self._device, None)
