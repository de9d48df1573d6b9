"""What the commands of ``nybble`` do, once their arguments are read."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

import nybble
from nybble import known
from nybble.allocated import allocated
from nybble.commands_quantized import check_calibration
from nybble.errors import ArtifactError, ImportModelError, NybbleError
from nybble.options import RecipeOptions
from nybble.report import data, tables, units
from nybble.report.progress import console, step
from nybble.runtime import host
from nybble.runtime.artifact import check_writable, staged, write_whole
from nybble.runtime.manifest import Manifest, Variant, read, read_all
from nybble.runtime.session import LayerTime
from nybble.schedules.outside import INSIDE, check_place
from nybble.schedules.select import Planner
from nybble.schedules.target import resolve_all

if TYPE_CHECKING:
    from nybble.commands_drop import Drop

Array = NDArray[Any]


@dataclass(frozen=True)
class CompileJob:
    """The arguments of ``nybble compile``."""

    model: Path
    output: Path
    calibration: Path | None
    recipe: RecipeOptions
    targets: tuple[str, ...]
    keep_float: bool
    measure: bool = False
    prefer: str = "speed"
    onnx: Path | None = None
    records: Sequence[Path] | None = None
    threads: int | None = None
    allocation: Path | None = None
    drop: Drop | None = None
    parameters: str = INSIDE


def compile_to_file(job: CompileJob) -> None:
    """Imports, quantizes, compiles and writes one network.

    Raises:
        NybbleError: the arguments do not go together, or a stage of the walk refuses.
    """
    recipe = job.recipe.recipe()
    is_calibrated = not job.keep_float and recipe.is_calibrated
    _check(job, is_calibrated)
    start = time.perf_counter()
    for path in filter(None, (job.output, job.onnx, job.allocation)):
        check_writable(path)
    check_place(job.parameters, resolve_all(job.targets))
    with step("read records"):
        records = known.gather(job.records)
    samples: Any = Samples(job.calibration) if job.calibration else ()
    with step(f"import {job.model.name}"):
        model = load_model(job.model)
    network: Any = model
    is_quantized = check_calibration(model, job, is_calibrated, HOW)
    if not job.keep_float and not is_quantized:
        with step("calibrate and quantize", len(samples)) as advance:
            network = nybble.quantize(
                model, samples, recipe, progress=advance, records=records, threads=job.threads,
                target=job.targets[0], **(job.drop.options(model) if job.drop else {}),
            )  # fmt: skip
    if job.onnx is not None:
        with step(f"write {job.onnx}"):
            network.to_onnx(job.onnx)
    with step(f"compile for {', '.join(job.targets)}") as advance:
        artifact = nybble.compile(
            network, job.targets, advance, measure=job.measure, prefer=job.prefer,
            records=records, threads=job.threads, parameters=job.parameters,
        )  # fmt: skip
    with step(f"write {job.output}"):
        artifact.save(job.output)
        if job.allocation is not None:
            text = allocated(network, artifact.manifest).to_json()
            write_whole(job.allocation, f"{text}\n".encode())
    _tell(job, artifact, time.perf_counter() - start)


def _tell(job: CompileJob, artifact: nybble.Artifact, seconds: float) -> None:
    """Says what was chosen, what was left aside, and what was written."""
    rows = data.layer_rows(artifact.manifest)
    if job.measure:
        _show(tables.chosen(rows))
    _show(tables.decided(rows), *map(Text, artifact.notes), tables.exceptions(artifact.manifest))
    written = units.size(job.output.stat().st_size)
    stored = read(job.output).parameters
    if stored:
        written += f" and {units.size(stored['size'])} in {stored['file']}"
    console.print(Text(f"{job.output}: {written}, {seconds:.1f} s"))


def _show(*parts: RenderableType) -> None:
    """Prints what is not empty: a table without rows is an empty text."""
    for part in filter(None, parts):
        console.print(part)


def _check(job: CompileJob, is_calibrated: bool) -> None:
    """Refuses what cannot go together whatever the network is."""
    if job.calibration is not None and not is_calibrated:
        raise NybbleError(HOW)
    if job.onnx is not None and job.keep_float:
        raise NybbleError("--onnx writes the quantized network; it does not go with --float.")
    if job.allocation is not None and not is_calibrated:
        raise NybbleError("--allocation-out needs a network with integer activations.")
    Planner(prefer=job.prefer)  # refuses what is no preference


HOW = (
    "Give --calibration FILE to quantize (some dozens of representative inputs as .npy, .npz or a "
    "folder of them), or --float to compile without quantizing, or --activations float to "
    "quantize weights only; just one of them."
)


def load_model(path: Path) -> nybble.Model:
    """Imports by suffix: ``.pt2`` is an exported program of torch, everything else ONNX."""
    if path.suffix in (".pt", ".pth"):
        raise ImportModelError(
            f"{path}: weights or a pickled module, which only your own code can load. Load it "
            "there, then write it with torch.export.save(torch.export.export(net, (example,)), "
            "'net.pt2') or torch.onnx.export, or pass the module to nybble.load_torch."
        )
    return (
        nybble.load_torch(_exported(path), ()) if path.suffix == ".pt2" else nybble.load_onnx(path)
    )


def _exported(path: Path) -> Any:
    try:
        import torch  # noqa: PLC0415  (takes seconds to load)
    except ImportError as error:
        raise ImportModelError(f"{path}: torch is needed: pip install nybble[torch].") from error
    if not zipfile.is_zipfile(path):
        raise ImportModelError(f"{path}: not what torch.export.save writes, or cut off.")
    logging.disable(logging.WARNING)  # torch logs the traceback of what it then raises
    try:
        return torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ImportModelError(
            f"{path}: torch.export.load cannot read it. Write it again with torch.export.save of "
            f"torch {torch.__version__}, or pass the module to nybble.load_torch."
        ) from error
    finally:
        logging.disable(logging.NOTSET)


class Samples:
    """Calibration samples, one at a time, read from disk when asked for.

    A ``.npy`` file holds samples along its first axis; so does every array of an ``.npz``, named
    after the inputs. In a folder every file is one such batch.
    """

    def __init__(self, path: Path):
        found = path.iterdir() if path.is_dir() else [path]
        self._files = sorted(f for f in found if f.suffix in (".npy", ".npz"))
        if not self._files:
            raise NybbleError(
                f"{path}: no .npy or .npz calibration files. Store the inputs as the network takes "
                "them (after resizing and normalizing): numpy.save(file, array)."
            )
        self._lengths = [len(next(iter(arrays_of(f).values()))) for f in self._files]

    def __len__(self) -> int:
        return sum(self._lengths)

    def __iter__(self) -> Iterator[Array | dict[str, Array]]:
        for file, length in zip(self._files, self._lengths, strict=True):
            arrays = arrays_of(file)
            for i in range(length):
                sample = {name: array[i : i + 1] for name, array in arrays.items()}
                yield sample if file.suffix == ".npz" else sample[""]


def arrays_of(file: Path) -> dict[str, Array]:
    """The arrays of a file by name; the one of a ``.npy`` is called "".

    Raises:
        NybbleError: it is no NumPy file of arrays with as many samples each.
    """
    try:
        loaded = np.load(file, mmap_mode="r", allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError) as error:
        raise NybbleError(
            f"{file}: not a NumPy file of plain arrays. Write it with numpy.save or numpy.savez "
            "from numbers, not objects."
        ) from error
    if not arrays or any(a.ndim == 0 for a in arrays.values()):
        raise NybbleError(f"{file}: expected arrays with samples along the first axis.")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise NybbleError(f"{file}: the arrays differ in length: {lengths}.")
    return arrays


def run(net: Path, inputs: Path, output: Path | None, threads: int | None) -> None:
    """Runs a library on a file's arrays and stores or summarizes the outputs.

    Raises:
        ArtifactError: the library or the inputs do not fit, or the output cannot be written.
    """
    if output is not None:
        check_writable(output)
    session = nybble.load(net, threads)
    arrays = arrays_of(inputs)
    result = session(arrays[""] if inputs.suffix == ".npy" else arrays)
    named = result if isinstance(result, dict) else {session.manifest.outputs[0].name: result}
    table = Table("output", "shape", "dtype", "min", "mean", "max", "argmax of the first")
    for name, array in named.items():
        numbers = (f"{v:.5g}" for v in (array.min(), array.mean(), array.max()))
        table.add_row(
            Text(name), str(array.shape), str(array.dtype), *numbers, str(array[:1].argmax())
        )
    console.print(table)
    if output is not None:
        _store(output, named)
        console.print(Text(f"written: {output}"))


def _store(output: Path, named: Mapping[str, Array]) -> None:
    """Writes an ``.npz`` whole or not at all."""
    with staged(output) as folder:
        with zipfile.ZipFile(folder / "outputs", "w") as archive:  # np.savez has names of its own
            for name, array in named.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
        (folder / "outputs").replace(output)


def random_inputs(manifest: Manifest, batch: int, seed: int = 0) -> dict[str, Array]:
    """Inputs that fit the manifest: standard normal floats, or integers of the whole range."""
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for port in manifest.inputs:
        shape = tuple(batch if isinstance(d, str) else d for d in port.shape)
        if np.dtype(port.dtype).kind == "f":
            made[port.name] = rng.standard_normal(shape).astype(port.dtype)
        else:
            limits = np.iinfo(port.dtype)
            made[port.name] = rng.integers(
                limits.min, limits.max, shape, dtype=port.dtype, endpoint=True
            )
    return made


def bench(net: Path, threads: str, repeats: int, batch: int) -> None:
    """Measures whole calls for every thread count.

    Raises:
        NybbleError: ``threads`` is no list of positive numbers, or the library does not load.
    """
    counts = [part.strip() for part in threads.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in counts):
        raise NybbleError(f"--threads {threads}: expected positive numbers such as 1,2,4.")
    table = Table(
        "threads", "median", "best", "90 %", "images/s", title=f"{net.name}, batch {batch}"
    )
    for part in counts:
        session = nybble.load(net, int(part))
        found = session.benchmark(random_inputs(session.manifest, batch), repeats)
        times = (found.median, found.best, found.percentile(90))
        table.add_row(part, *map(units.duration, times), f"{batch / found.median:.1f}")
    console.print(table)


def inspect(net: Path, as_json: bool, timed: bool, batch: int) -> None:
    """Shows the manifest, with every layer's time where this machine can run the library.

    Raises:
        ArtifactError: the file is no sound Nybble library.
    """
    variants = read_all(net)
    manifests = [variant.manifest for variant in variants]
    chosen, why_not = _chosen(manifests)
    times = None
    if timed and why_not is None:
        session = nybble.load(net)
        times = session.profile(random_inputs(session.manifest, batch))
    if not timed:
        why_not = "not asked for"
    manifest = manifests[chosen]
    if as_json:
        found = {**_as_dict(manifest, times, why_not), "variants": _variant_dicts(variants)}
        print(json.dumps(found, indent=2))  # noqa: T201
        return
    console.print(tables.about([("file", f"{net}, {units.size(net.stat().st_size)}")]))
    if len(variants) > 1:
        console.print(_variant_table(variants, chosen))
    console.print(tables.about(data.facts(manifest)))
    console.print(tables.layers(data.layer_rows(manifest, times), console.width))
    _show(tables.decided(data.layer_rows(manifest)), *map(tables.kernels_on_gpu, manifests))
    console.print(tables.exceptions(manifest))
    if timed and why_not:
        console.print(Text(f"No times: {why_not}", style="yellow"))


def _chosen(manifests: Sequence[Manifest]) -> tuple[int, str | None]:
    """The variant that this machine runs, or the first and the reason why it runs none."""
    try:
        return host.choose(manifests), None
    except ArtifactError as error:
        return 0, str(error)


def _variant_table(variants: Sequence[Variant], chosen: int) -> Table:
    table = Table("variant", "needs", "size", "", title="Variants in the file")
    for i, variant in enumerate(variants):
        needs = ", ".join(_needs(variant.manifest)) or "nothing"
        shown = "shown below" if i == chosen else ""
        table.add_row(variant.manifest.target, needs, units.size(variant.size), shown)
    return table


def _needs(manifest: Manifest) -> tuple[str, ...]:
    """What a variant needs of the machine: its CPU's features, and its GPU."""
    device = manifest.device
    return (*manifest.features, *([data.gpus(device)] if device else []))


def _variant_dicts(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Every variant for scripts: its manifest's fields and its size in bytes."""
    return [{**dataclasses.asdict(v.manifest), "size": v.size} for v in variants]


def _as_dict(
    manifest: Manifest, times: list[LayerTime] | None, why_not: str | None
) -> Mapping[str, Any]:
    """The manifest for scripts: its own fields, and ``widths`` and ``time`` (seconds) per layer."""
    rows = data.layer_rows(manifest, times)
    layers = [
        {**layer, "widths": row.widths, "time": row.seconds}
        for layer, row in zip(manifest.layers, rows, strict=True)
    ]
    return {**dataclasses.asdict(manifest), "layers": layers, "times_missing_because": why_not}
