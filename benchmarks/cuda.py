"""Kernels for GPUs, packed here for a machine with a GPU and no network, checked and timed there.

    python -m benchmarks.cuda pack kernels.tar.xz --target cuda:sm_90
    tar xf kernels.tar.xz && python3 kernels/run.py         # there; writes kernels/results.json
    python -m benchmarks.cuda show kernels/results.json     # a table, and a plot beside the file

``pack`` compiles every kernel that takes a layer of `benchmarks.cuda_rows`, and puts the machine
code, operands, what the law expects and TVM's runtime into the archive. ``--python`` names the
Python of the other machine: the runtime's binding is compiled for one version.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import nybble
from benchmarks.cuda_rows import Row, rows
from benchmarks.output import ROOT, console, table
from nybble.commands import random_inputs
from nybble.errors import ScheduleError
from nybble.runtime.artifact import export_module
from nybble.runtime.session import load
from nybble.schedules import table as kernels
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.cuda.compile import device_code
from nybble.schedules.kernel import Kernel, Knobs
from nybble.schedules.target import resolve

BATCHES = (1, 64)  # of networks with a symbolic one
RUNTIME = ("errors.py", "nvidia.py", "torchless.py", "tiles.py", "cpuinfo.py", "runtime")
LIBRARIES = ("libtvm_runtime.so", "libtvm_runtime_cuda.so")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def pack(args: argparse.Namespace) -> None:
    """Compiles, and writes the archive."""
    target = resolve(args.target)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "kernels"
        (home / "data").mkdir(parents=True)
        shutil.copy(Path(__file__).parent / "cuda_run.py", home / "run.py")
        _put_runtime(home / "lib", args.python)
        packed: list[dict[str, Any]] = []
        for number, row in enumerate(rows(args.rows)):
            for kernel in _takers(row, target, args.kernels):
                console.print(f"{row.name}: {kernel.name}", highlight=False)
                found = _put(home / "data", f"{number}-{kernel.name}", row, (kernel, target))
                packed += [found] if found else []
        for path in args.network:
            packed += _put_network(home / "data", path)
        about = {"target": target.name, "nybble": nybble.__version__, "rows": packed}
        (home / "rows.json").write_text(json.dumps(about, indent=1))
        with (
            lzma.open(args.archive, "wb", preset=1) as file,
            tarfile.open(fileobj=file, mode="w") as archive,
        ):
            archive.add(home, "kernels")
    console.print(f"{len(packed)} kernels in {args.archive}")


def _takers(row: Row, target: CudaTarget, pattern: str) -> Iterator[Kernel]:
    """The kernels that compile a row; of large products, all but the fallback."""
    for kernel in kernels.of(target):
        is_fallback = kernel.name == "cuda.generic" and row.macs > 0
        if kernel.op != row.problem.op or is_fallback or not fnmatch(kernel.name, pattern):
            continue
        if kernel.refuses(row.problem, target) is None:
            yield kernel


def _put(folder: Path, name: str, row: Row, by: tuple[Kernel, CudaTarget]) -> dict[str, Any] | None:
    """Writes a kernel's library and operands; what the other machine must know of them.

    None where the values, not the shapes, are beyond the kernel.
    """
    kernel, target = by
    constants = {name: values for name, values in row.arrays.items() if name not in ("x", "b")}
    try:
        given = kernel.constants(row.problem, constants)
        function = kernel.build(row.problem, target, Knobs())
    except ScheduleError as error:
        console.print(f"  left out: {error}", highlight=False)
        return None
    made = device_code(function.with_attr("global_symbol", "layer"), target)
    export_module(made.module, target.host.arch, target.host.features, folder / f"{name}.so")
    operands = [row.arrays[name] for name in ("x", "b") if name in row.arrays]
    arrays = {f"operand{i}": array for i, array in enumerate((*operands, *given))}
    arrays["expected"] = row.expected
    if row.bound is not None:
        arrays["bound"] = row.bound
    if row.at is not None:
        arrays["rows"], arrays["columns"] = row.at
    np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]  # its stub knows no **
    batch = len(row.arrays["x"])
    shape = [batch if isinstance(d, str) else int(d) for d in row.problem.output.stored.shape]
    weights = row.problem.weights
    return {
        "row": row.name, "kernel": kernel.name, "file": name, "macs": row.macs,
        "inputs": len(operands), "output": [shape, row.problem.output.stored.dtype],
        "weights": weights and [list(weights.shape), weights.dtype],
        "usage": [vars(use) for use in made.usage],
    }  # fmt: skip


def _put_network(folder: Path, path: Path) -> Iterator[dict[str, Any]]:
    """Copies a library that holds code for GPUs and for this CPU, which says what is expected."""
    network = load(path)
    shutil.copy(path, folder / path.name)
    is_open = any(
        isinstance(extent, str) for port in network.manifest.inputs for extent in port.shape
    )
    for batch in BATCHES if is_open else BATCHES[:1]:
        inputs = random_inputs(network.manifest, batch)
        outputs = network(inputs)
        found = (
            outputs if isinstance(outputs, dict) else {network.manifest.outputs[0].name: outputs}
        )
        name = f"{path.stem}, batch {batch}" if is_open else path.stem
        operands = f"{path.stem}-{batch}.npz"
        arrays = {f"in_{k}": v for k, v in inputs.items()}
        arrays |= {f"out_{k}": v for k, v in found.items()}
        np.savez(folder / operands, **arrays)  # type: ignore[arg-type]  # its stub knows no **
        yield {"row": name, "file": path.name, "operands": operands, "macs": 0}


def _put_runtime(folder: Path, python: str) -> None:
    """Nybble's runtime, TVM's without its Python package, and the binding for one Python."""
    own = folder / "nybble"
    own.mkdir(parents=True)
    (own / "__init__.py").touch()
    for name in RUNTIME:
        source = ROOT / "nybble" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, own / name)
    site = Path(sysconfig.get_paths()["platlib"])
    (folder / "tvm" / "lib").mkdir(parents=True)
    (folder / "tvm" / "__init__.py").touch()  # is found, never imported
    for name in LIBRARIES:
        shutil.copy(site / "tvm" / "lib" / name, folder / "tvm" / "lib")
    if python == HERE:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(site / "tvm_ffi", folder / "tvm_ffi", ignore=unwanted)
        return
    wanted = f"apache-tvm-ffi=={version('apache-tvm-ffi')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wanted]
    options = ["--only-binary=:all:", f"--python-version={python}", f"--dest={folder}"]
    subprocess.run([*command, *options], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    wheel.unlink()


# ---------------------------------------------------------------- results


def show(args: argparse.Namespace) -> None:
    """Prints the table of a results file, and draws the plot beside it."""
    found = json.loads(args.results.read_text())
    console.print(f"{found['gpu']}, driver {found['driver']}, {found['date']}", highlight=False)
    wrong = [one for one in found["rows"] if not one["right"]]
    console.print(f"{len(found['rows'])} kernels and networks checked, {len(wrong)} wrong")
    for one in wrong:
        console.print(f"  {one['row']}: {one.get('kernel', '')}: {one['why']}", style="red")
    for one in found["rows"]:
        if "operands" in one and "seconds" in one:
            console.print(f"{one['row']}: {1e3 * one['seconds']:.3f} ms", highlight=False)
    timed = [one for one in found["rows"] if one.get("ratios")]
    peers = list(dict.fromkeys(peer for one in timed for peer in one["ratios"]))
    if timed:
        cells = [
            {
                "layer": one["row"], "kernel": one["kernel"],
                **{f"× {peer}": f"{one['ratios'].get(peer, 0) or float('nan'):.2f}"
                   for peer in peers},
                "TMAC/s": f"{one['macs'] / one['seconds'] / 1e12:.1f}",
                "GB/s": f"{one['bytes'] / one['seconds'] / 1e9:.0f}",
            }
            for one in timed
        ]  # fmt: skip
        table("How many times as fast as the peers, medians", cells)
        _plot(timed, peers, args.results.with_suffix(".png"))


def _plot(timed: list[dict[str, Any]], peers: list[str], path: Path) -> None:
    import matplotlib.pyplot as plt  # noqa: PLC0415  (of the group bench)

    figure, axes = plt.subplots(figsize=(9, 1 + 0.3 * len(timed)), layout="constrained")
    places = np.arange(len(timed))
    for i, peer in enumerate(peers):
        ratios = [one["ratios"].get(peer, 0) for one in timed]
        axes.barh(places + 0.8 * i / len(peers), ratios, 0.8 / len(peers), label=f"against {peer}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(places, [f"{one['row']}, {one['kernel']}" for one in timed], fontsize=7)
    axes.set_xlabel("times as fast")
    axes.legend()
    figure.savefig(path, dpi=150)
    console.print(f"The plot: {path}", highlight=False)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack", help="compile and write the archive")
    packing.add_argument("archive", type=Path)
    packing.add_argument("--target", default="cuda:sm_90")
    packing.add_argument("--rows", default="*", help="pattern of layers' names")
    packing.add_argument("--kernels", default="*", help="pattern of kernels' names")
    packing.add_argument(
        "--network", type=Path, action="append", default=[],
        help="a saved library with variants for the GPU and for this CPU; may be repeated",
    )  # fmt: skip
    packing.add_argument("--python", default=HERE, help="the other machine's Python, 3.12")
    packing.set_defaults(run=pack)
    showing = commands.add_parser("show", help="a table and a plot of results")
    showing.add_argument("results", type=Path)
    showing.set_defaults(run=show)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
