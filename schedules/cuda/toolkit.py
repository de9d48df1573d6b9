"""NVIDIA's compiler, and TVM's CUDA back end, on machines with and without a GPU.

TVM makes CUDA machine code only while its CUDA runtime is loaded, and embeds source text when it is
not. That runtime is linked against the driver's ``libcuda.so.1``, which a machine without a GPU has
not. There a library of the same name takes its place (`STUB`) whose functions say that there is no
driver: enough to load, never enough to run.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi

from nybble import compilers, nvidia
from nybble.cache import folder
from nybble.errors import NybbleError

NVCC = "NYBBLE_NVCC"
_BACKEND = "libtvm_runtime_cuda.so"
_LOADED = "ffi.Module.create.cuda"  # a function that TVM's CUDA runtime registers

STUB = """\
/* Stands in for the NVIDIA driver where there is none, so that TVM's CUDA runtime loads.
   34 is CUDA_ERROR_STUB_LIBRARY. */
#define MISSING(name) int name(void) { return 34; }
MISSING(cuInit) MISSING(cuDeviceGetCount) MISSING(cuDriverGetVersion) MISSING(cuDeviceGetName)
MISSING(cuFuncSetAttribute) MISSING(cuLaunchKernelEx) MISSING(cuModuleGetFunction)
MISSING(cuModuleLoadData) MISSING(cuModuleUnload) MISSING(cuTensorMapEncodeTiled)
static int text(const char **p, const char *s) { *p = s; return 0; }
int cuGetErrorName(int e, const char **p) { (void)e; return text(p, "CUDA_ERROR_STUB_LIBRARY"); }
int cuGetErrorString(int e, const char **p) { (void)e; return text(p, "there is no driver here"); }
"""


@dataclass(frozen=True)
class Toolkit:
    """An installed CUDA toolkit.

    Attributes:
        nvcc: the compiler's command.
        root: the folder with ``bin``, ``include`` and the libraries.
        version: of the compiler, ``13.0.88``.
    """

    nvcc: Path
    root: Path
    version: str

    def tool(self, name: str) -> Path | None:
        """A program of the toolkit, of the PATH or of the wheels; None where there is none."""
        places = [self.root / "bin", *(home / "bin" for home in nvidia.wheels())]
        found = shutil.which(name, path=os.pathsep.join(map(str, places))) or shutil.which(name)
        return Path(found) if found else None


def find() -> Toolkit:
    """The toolkit: of ``NYBBLE_NVCC``, ``CUDA_PATH``, the PATH, or the wheels, in this order.

    Raises:
        NybbleError: there is none, or what the environment names does not run; says what to do.
    """
    return _toolkit(_nvcc())


def _nvcc() -> Path:
    for name, parts in ((NVCC, ()), (nvidia.HOME, ("bin", "nvcc"))):
        given = os.environ.get(name)
        if given:
            path = Path(given, *parts)
            if not os.access(path, os.X_OK):
                raise NybbleError(f"{name}={given!r}: {path} is no program. Correct or unset it.")
            return path
    found = shutil.which("nvcc")
    candidates = [Path(found)] if found else [home / "bin" / "nvcc" for home in nvidia.wheels()]
    here = next((path for path in candidates if os.access(path, os.X_OK)), None)
    if here is None:
        raise NybbleError(
            "Compiling for CUDA needs nvcc, and there is none: not in NYBBLE_NVCC, CUDA_PATH or "
            "the PATH. Install it from wheels, pip install nybble[cuda], or NVIDIA's toolkit."
        )
    return here


@functools.cache
def _toolkit(nvcc: Path) -> Toolkit:
    version = re.search(r"V(\d+\.\d+\.\d+)", _said(nvcc, "--version"))
    top = re.search(r"^#\$ TOP=(.+)$", _said(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.M)
    if version is None or top is None:
        raise NybbleError(f"{nvcc} does not answer like nvcc. Name another one in {NVCC}.")
    return Toolkit(nvcc, Path(top[1]).resolve(), version[1])


def _said(*command: str | Path) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NybbleError(f"{command[0]} does not run: {error}.") from error
    return done.stdout + done.stderr


# ---------------------------------------------------------------- TVM's back end


def load_backend() -> None:
    """Makes TVM able to turn CUDA source into machine code, with a driver or without.

    Raises:
        NybbleError: the CUDA runtime library is missing, or TVM's own does not load.
        ArtifactError: there is no C compiler for the stub.
    """
    if _is_loaded():
        return
    if not has_driver():
        ctypes.CDLL(str(_stub()), ctypes.RTLD_GLOBAL)
    said = nvidia.load_cudart((find().root,))
    if said is not None:
        raise NybbleError(
            f"TVM's CUDA runtime needs {nvidia.CUDART}: {said}. Install it: pip install "
            "nybble[cuda]."
        )
    backend = Path(tvm.__file__).parent / "lib" / _BACKEND
    try:
        ctypes.CDLL(str(backend))
    except OSError as error:
        raise NybbleError(f"TVM's CUDA runtime does not load: {error}.") from error
    if not _is_loaded():
        raise NybbleError(f"{backend} registers no {_LOADED}: it is not of this TVM.")


def has_driver() -> bool:
    """Whether NVIDIA's driver loads here; it is not called."""
    return nvidia.load(nvidia.DRIVER) is None


def _is_loaded() -> bool:
    return tvm_ffi.get_global_func(_LOADED, allow_missing=True) is not None


def _stub() -> Path:
    """The stand-in for the driver, compiled once into the cache."""
    home = folder() / "cuda" / hashlib.sha256(STUB.encode()).hexdigest()[:16]
    library = home / nvidia.DRIVER
    if library.exists():
        return library
    home.mkdir(parents=True, exist_ok=True)
    compiler = compilers.find_compiler(platform.machine())
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        source, made = Path(scratch, "stub.c"), Path(scratch, nvidia.DRIVER)
        source.write_text(STUB)
        options = ("-shared", "-fPIC", f"-Wl,-soname,{nvidia.DRIVER}", "-o", str(made), str(source))
        done = subprocess.run([*compiler, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NybbleError(f"The C compiler {compiler[0]} fails: {done.stderr.strip()}")
        os.replace(made, library)
    return library
