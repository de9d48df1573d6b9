"""Packs kernels, operands, what the law expects and TVM's runtime for a machine with a GPU."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nybble
from benchmarks import cuda_arrays, cuda_goals, cuda_networks
from benchmarks.cuda_row import Row
from benchmarks.cuda_rows import rows
from benchmarks.output import ROOT, console
from nybble.errors import NybbleError, ScheduleError
from nybble.runtime.artifact import export_module
from nybble.schedules import table as kernels
from nybble.schedules.cuda import compile as code
from nybble.schedules.cuda import toolkit
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import resolve

RUNTIME = ("errors.py", "nvidia.py", "torchless.py", "tiles.py", "cpuinfo.py", "runtime")
SCRIPTS = (
    "arrays",
    "clock",
    "goals",
    "jobs",
    "op_peers",
    "peers",
    "resnet",
    "run",
    "sanitizer",
    "triton",
    "work",
)
LIBRARIES = ("libtvm_runtime.so", "libtvm_runtime_cuda.so")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
TOGETHER = 16  # kernels that nvcc compiles side by side
HELD = 1 << 30  # bytes of operands that wait for them, about
BEGIN = """\
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent
sys.path.insert(0, str(HOME / "lib"))

from benchmarks.cuda_run import main

main(HOME)
"""


@dataclass(frozen=True)
class Wish:
    """What to pack.

    Attributes:
        archive: the file; its suffix, ``.tar.xz`` or ``.tar.gz``, says how it is packed.
        target: of the kernels.
        rows: pattern of layers' names.
        kernels: pattern of kernels' names.
        networks: saved libraries with variants for the GPU and for this CPU.
        resnet: ResNet-50 too.
        python: the other machine's, ``3.12``.
        most: MiB that the archive may have.
    """

    archive: Path
    target: str = "cuda:sm_90"
    rows: str = "*"
    kernels: str = "*"
    networks: tuple[Path, ...] = ()
    resnet: bool = True
    python: str = HERE
    most: float = 60


def pack(wish: Wish) -> list[dict[str, Any]]:
    """Compiles, and writes the archive; its rows.

    Raises:
        NybbleError: an unknown target, no ``nvcc``, nothing to pack, or the archive is too large.
    """
    target = resolve(wish.target)
    if not isinstance(target, CudaTarget):
        raise NybbleError(f"--target {wish.target} is no GPU; give one such as cuda:sm_90.")
    toolkit.load_backend()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "kernels"
        (home / "data").mkdir(parents=True)
        put_runtime(home, wish.python)
        packed = [*_kernels(home / "data", wish, target)]
        if wish.resnet:
            packed += cuda_networks.resnets(home / "data", wish.target)
        for path in wish.networks:
            packed += cuda_networks.saved(home / "data", path)
        if not packed:
            raise NybbleError("No kernel takes a layer of such a name: nothing to pack.")
        has_cutlass = _cutlass(home / "data" / "cutlass.so", target)
        about = {"target": target.name, "nybble": nybble.__version__, "rows": packed}
        (home / "rows.json").write_text(json.dumps(about, indent=1))
        _archived(home, wish)
    console.print(
        f"{len(packed)} kernels and networks in {wish.archive}, "
        f"{wish.archive.stat().st_size / 2**20:.1f} MiB; "
        f"CUTLASS {'too' if has_cutlass else 'not: pip install nvidia-cutlass has its headers'}"
    )
    return packed


def _archived(home: Path, wish: Wish) -> None:
    kind: Any = {".xz": "w:xz", ".gz": "w:gz"}.get(wish.archive.suffix)
    if kind is None:
        raise NybbleError(f"{wish.archive}: expected a name in .tar.xz or .tar.gz.")
    given: Any = {"preset": 1} if kind == "w:xz" else {}
    with tarfile.open(wish.archive, kind, **given) as archive:
        archive.add(home, "kernels")
    size = wish.archive.stat().st_size / 2**20
    if size > wish.most:
        raise NybbleError(
            f"{wish.archive} has {size:.0f} MiB, more than {wish.most:g}. Pack fewer layers "
            "(--rows, --kernels, --no-resnet) in several archives, or allow more (--most)."
        )


# ---------------------------------------------------------------- kernels


@dataclass(frozen=True)
class Made:
    """A kernel's function for a row, not compiled yet."""

    row: Row
    kernel: Kernel
    function: Any
    given: list[Any]
    name: str
    is_default: bool

    @property
    def arrays(self) -> list[Any]:
        """What it holds."""
        return [*self.row.arrays.values(), *self.given]


def _kernels(folder: Path, wish: Wish, target: CudaTarget) -> Iterator[dict[str, Any]]:
    """Compiles some side by side and writes them; their entries."""
    found = enumerate(rows(wish.rows))
    made = (one for n, row in found for one in built(row, n, target, wish.kernels))
    for some in together(made):
        for _ in code.prepare((one.function for one in some), target):
            pass
        for one in some:
            console.print(f"{one.row.name}: {one.kernel.name}", highlight=False)
            yield put(folder, one, target)


def together(made: Iterable[Made]) -> Iterator[list[Made]]:
    """Kernels to be compiled side by side, as far as their operands fit into memory."""
    some: list[Made] = []
    for one in made:
        some.append(one)
        held = sum(array.nbytes for kept in some for array in kept.arrays)
        if len(some) == TOGETHER or held > HELD:
            yield some
            some = []
    if some:
        yield some


def takers(row: Row, target: CudaTarget, pattern: str) -> Iterator[Kernel]:
    """The kernels that compile a row; of what is timed, all but the fallback."""
    for kernel in kernels.of(target):
        is_fallback = kernel.name == "cuda.generic" and row.is_timed
        if kernel.op != row.problem.op or is_fallback or not fnmatch(kernel.name, pattern):
            continue
        if kernel.refuses(row.problem, target) is None:
            yield kernel


def built(row: Row, number: int, target: CudaTarget, pattern: str = "*") -> Iterator[Made]:
    """The functions of a row's kernels; those are left out that refuse the values."""
    constants = {name: values for name, values in row.arrays.items() if name not in ("x", "b")}
    is_default = True
    for kernel in takers(row, target, pattern):
        try:
            given = kernel.constants(row.problem, constants)
            function = kernel.build(row.problem, target, Knobs())
        except ScheduleError as error:
            console.print(f"{row.name}: {kernel.name}: left out: {error}", highlight=False)
            continue
        named = function.with_attr("global_symbol", "layer")
        usual = is_default and kernel.avoids(row.problem, target) is None
        is_default = is_default and not usual
        yield Made(row, kernel, named, given, f"{number}-{kernel.name}", usual)


def put(folder: Path, one: Made, target: CudaTarget) -> dict[str, Any]:
    """Writes a kernel's library and operands; what the other machine must know of them."""
    row, made = one.row, code.device_code(one.function, target)
    export_module(made.module, target.host.arch, target.host.features, folder / f"{one.name}.so")
    operands = [row.arrays[name] for name in ("x", "b") if name in row.arrays]
    arrays = {f"operand{i}": array for i, array in enumerate((*operands, *one.given))}
    arrays["expected"] = row.expected
    if row.bound is not None:
        arrays["bound"] = row.bound
    if row.at is not None:
        arrays["rows"], arrays["columns"] = row.at
    cuda_arrays.save(folder / f"{one.name}.npz", arrays)
    batch = len(row.arrays["x"])
    shape = [batch if isinstance(d, str) else int(d) for d in row.problem.output.stored.shape]
    weights = row.problem.weights
    return {
        "row": row.name, "kernel": one.kernel.name, "file": one.name, "op": row.problem.op,
        "macs": row.macs, "timed": row.is_timed,
        "default": one.is_default, "goal": row.name in cuda_goals.needed(),
        "inputs": [[list(array.shape), str(array.dtype)] for array in operands],
        "output": [shape, row.problem.output.stored.dtype], "attrs": dict(row.problem.attrs),
        "weights": weights and [list(weights.shape), weights.dtype],
        "usage": [vars(use) for use in made.usage],
    }  # fmt: skip


# ---------------------------------------------------------------- what goes along


def put_runtime(home: Path, python: str) -> None:
    """The script, Nybble's runtime, TVM's without its Python package, the binding for a Python."""
    (home / "run.py").write_text(BEGIN)
    folder, ours = home / "lib", Path(__file__).parent
    own, scripts = folder / "nybble", folder / "benchmarks"
    for package in (own, scripts, folder / "tvm"):
        package.mkdir(parents=True)
        (package / "__init__.py").touch()  # tvm's is found, never imported
    for name in SCRIPTS:
        shutil.copy(ours / f"cuda_{name}.py", scripts)
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in RUNTIME:
        source = ROOT / "nybble" / name
        if source.is_dir():
            shutil.copytree(source, own / name, ignore=unwanted)
        else:
            shutil.copy(source, own / name)
    site = Path(sysconfig.get_paths()["platlib"])
    (folder / "tvm" / "lib").mkdir()
    for name in LIBRARIES:
        shutil.copy(site / "tvm" / "lib" / name, folder / "tvm" / "lib")
    if python == HERE:
        shutil.copytree(site / "tvm_ffi", folder / "tvm_ffi", ignore=unwanted)
    else:
        _put_binding(folder, python)


def _put_binding(folder: Path, python: str) -> None:
    wanted = f"apache-tvm-ffi=={version('apache-tvm-ffi')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wanted]
    options = ["--only-binary=:all:", f"--python-version={python}", f"--dest={folder}"]
    subprocess.run([*command, *options], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    wheel.unlink()


def _cutlass(library: Path, target: CudaTarget) -> bool:
    """Compiles CUTLASS's product where its headers are and the target has it."""
    package = importlib.util.find_spec("cutlass_library")
    if package is None or not package.submodule_search_locations or target.generation != "hopper":
        return False
    headers = Path(next(iter(package.submodule_search_locations))) / "source"
    console.print("CUTLASS: compiling")
    command = [
        str(toolkit.find().nvcc), "-shared", "-Xcompiler=-fPIC", "-O3", "-std=c++17", "-DNDEBUG",
        "--expt-relaxed-constexpr", "-gencode=arch=compute_90a,code=sm_90a",
        *_included(headers), "-o", str(library), str(Path(__file__).parent / "cuda_cutlass.cu"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(f"CUTLASS does not compile: {done.stderr[-500:]}", highlight=False)
    return done.returncode == 0


def _included(headers: Path) -> Iterable[str]:
    return (f"-I{headers / part}" for part in ("include", "tools/util/include"))
