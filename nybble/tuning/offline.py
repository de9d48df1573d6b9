"""Measures on machines that can only run a script: a folder of candidates goes, times come back."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import nybble
from nybble import cpuinfo, lines, nvidia, runtime, tiles, torchless
from nybble import errors as nybble_errors
from nybble.errors import NybbleError
from nybble.executors.interface import Done, Executor, each
from nybble.schedules.cuda.arch import CudaTarget
from nybble.schedules.machine import Machine
from nybble.schedules.target import Target, host_of
from nybble.tuning import candidate, offline_gpu, offline_runner, runner
from nybble.tuning.candidate import Library
from nybble.tuning.measure import TURNS, Limits, Outcome
from nybble.tuning.offline_runner import BATCH, TIMES
from nybble.tuning.tasks import Operands, Point, Task

SCRIPTS = {"run.py": offline_runner, "runner.py": runner, "cpuinfo.py": cpuinfo}
FOR_GPUS = {"offline_gpu.py": offline_gpu}
RUNTIME = (nybble_errors, nvidia, torchless, tiles, cpuinfo)  # beside the folder ``runtime``
Asked = Sequence[tuple[Task, Sequence[Point]]]
Attempt = Callable[[Task, Point], Library]
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Exported:
    """A batch that was written.

    Attributes:
        archive: the folder as one file.
        candidates: how many are in it.
        failed: those that could not be built.
    """

    archive: Path
    candidates: int
    failed: tuple[tuple[Task, Outcome], ...]


@dataclass(frozen=True)
class Times:
    """What came back.

    Attributes:
        machine: that measured.
        turns: of every candidate against its reference.
        outcomes: by the key of their task.
        missing: candidates without a time: the script was stopped before.
    """

    machine: Machine
    turns: int
    outcomes: tuple[tuple[str, Outcome], ...]
    missing: int


def export_batch(
    folder: Path,
    asked: Asked,
    builders: Executor,
    turns: int = TURNS,
    build: Attempt = candidate.attempt,
    progress: Progress | None = None,
) -> Exported:
    """Builds candidates and writes them with all that it takes to measure them.

    Args:
        folder: made here; its parent must exist.
        asked: candidates of tasks, all for one target.
        builders: where they are compiled.
        turns: against the reference.
        build: what builders do with a candidate.
        progress: called with (candidates built, candidates in all).

    Raises:
        NybbleError: the folder is there already or cannot be made, or a reference cannot be built.
        ArtifactError: this machine cannot link for the target.
    """
    try:
        (folder / "lib").mkdir(parents=True)
        (folder / "data").mkdir()
    except FileExistsError:
        raise NybbleError(
            f"--export-batch {folder}: it is there already. Name a new folder."
        ) from None
    except OSError as error:
        raise NybbleError(f"--export-batch {folder}: {error.strerror}.") from error
    writer = _Writer(folder, turns)
    points = [(t, p) for t, some in asked for p in dict.fromkeys((t.reference, *some))]
    for done, (index, built) in enumerate(each(builders, build, points, Limits().start)):
        writer.add(*points[index], built)
        if progress is not None:
            progress(done + 1, len(points))
    return writer.finish(asked)


class _Writer:
    """The folder as it fills."""

    def __init__(self, folder: Path, turns: int):
        self.folder, self.turns = folder, turns
        self.failed: list[tuple[Task, Outcome]] = []
        self._built: list[tuple[Task, dict[str, Any]]] = []
        self._operands: dict[str, Operands] = {}
        self._packed: dict[tuple[str, str, str | None], str] = {}

    def add(self, task: Task, point: Point, built: Done[Library]) -> None:
        """A candidate's library, and its constants unless they are there."""
        failed = candidate.not_built(point, built)
        if failed is not None:
            self.failed.append((task, failed))
            return
        assert built.value is not None
        name = f"lib/{hashlib.sha256(built.value.code).hexdigest()[:20]}.so"
        (self.folder / name).write_bytes(built.value.code)
        if task.key not in self._operands:
            self._operands[task.key] = task.operands()
        key = (task.key, point.kernel, point.weights)
        if key not in self._packed:
            arrays = candidate.packed(task, point, self._operands[task.key])
            self._packed[key] = self._store("c", arrays)
        side = {"point": point.as_dict(), "library": name, "constants": self._packed[key]}
        self._built.append((task, side))

    def finish(self, asked: Asked) -> Exported:
        """Writes the table of contents, the script and the archive."""
        target = asked[0][0].target
        host = host_of(target)
        references = {t.key: s for t, s in self._built if s["point"] == t.reference.as_dict()}
        for task, _ in asked:
            if task.key not in references:
                why = next(o.detail for t, o in self.failed if t.key == task.key)
                raise NybbleError(f"The default kernel of {task.key} cannot be built: {why}.")
        contents = {
            "nybble": nybble.__version__, "target": target.name, "arch": host.arch,
            "features": sorted(host.features), "turns": self.turns, "limit": 3 * Limits().run,
            "gpu": _device(target),
            "tasks": {t.key: self._described(t, references[t.key]) for t, _ in asked},
            "candidates": [{"task": t.key, **s} for t, s in self._built],
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]
        (self.folder / BATCH).write_text(json.dumps({"id": digest, **contents}, indent=1))
        on_gpu = isinstance(target, CudaTarget)
        for name, module in {**SCRIPTS, **(FOR_GPUS if on_gpu else {})}.items():
            shutil.copy(str(module.__file__), self.folder / name)
        if on_gpu:
            _put_runtime(self.folder / "nybble")
        whole = self.folder.resolve()
        archive = shutil.make_archive(str(whole), "gztar", whole.parent, whole.name)
        return Exported(Path(archive), len(self._built), tuple(self.failed))

    def _described(self, task: Task, reference: dict[str, Any]) -> dict[str, Any]:
        operands = self._operands[task.key]
        expected = np.asarray(operands.expected, order="C")
        described = {
            "threads": task.threads, "reference": reference,
            "inputs": self._store("x", operands.inputs),
            "shape": expected.shape, "dtype": str(expected.dtype),
        }  # fmt: skip
        if task.is_exact:
            return {**described, "sha256": hashlib.sha256(expected.tobytes()).hexdigest()}
        np.save(self.folder / "data" / f"{task.key}.npy", expected)
        return {**described, "expected": f"data/{task.key}.npy", "rounded": task.rounded}

    def _store(self, letter: str, arrays: Sequence[Any]) -> str:
        """The name of a file of arrays; equal ones share it."""
        digest = hashlib.sha256(letter.encode())
        for array in arrays:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        name = f"data/{digest.hexdigest()[:20]}.npz"
        if not (self.folder / name).exists():
            np.savez(self.folder / name, **{f"{letter}{i}": a for i, a in enumerate(arrays)})
        return name


def _device(target: Target) -> dict[str, Any] | None:
    """What code for GPUs runs on, None for CPUs: as `nybble.runtime.gpu.fits` takes it."""
    if not isinstance(target, CudaTarget):
        return None
    return {"archs": target.machine_codes, "portable": target.portable}


def _put_runtime(own: Path) -> None:
    """Nybble's runtime, which moves operands to GPUs and back."""
    own.mkdir()
    (own / "__init__.py").touch()
    for module in RUNTIME:
        shutil.copy(str(module.__file__), own)
    source = Path(str(runtime.__file__)).parent
    shutil.copytree(source, own / "runtime", ignore=shutil.ignore_patterns("__pycache__", "csrc"))


def import_times(folder: Path, target: Target) -> Times:
    """What the script measured.

    Args:
        folder: of `export_batch`, with the script's file of times in it.
        target: that the batch was exported for.

    Raises:
        NybbleError: there are no times, they belong to another batch, or to another target.
    """
    try:
        batch = json.loads((folder / BATCH).read_text())
        head, *found = lines.read(folder / TIMES)
    except (OSError, ValueError) as error:
        raise NybbleError(
            f"--import-times {folder}: {error}. Expected the folder that --export-batch wrote, "
            f"with the script's {TIMES} in it."
        ) from error
    if head.get("batch") != batch["id"]:
        raise NybbleError(f"--import-times {folder}: {TIMES} was measured with another batch.")
    if batch["target"] != target.name:
        raise NybbleError(
            f"--import-times {folder}: exported for {batch['target']}, not {target.name}. Give "
            f"--target {batch['target']}."
        )
    outcomes = tuple(_outcomes(batch["candidates"], found))
    machine = Machine.of(target, head["cpu"], head["caches"], head.get("capability"))
    return Times(machine, batch["turns"], outcomes, len(batch["candidates"]) - len(outcomes))


def _outcomes(
    candidates: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, Outcome]]:
    by_index = {line["candidate"]: line for line in found if "candidate" in line}
    for index, line in sorted(by_index.items()):
        side = candidates[index]
        point = Point.from_dict(side["point"])
        turns = line.get("turns")
        if turns:
            yield side["task"], Outcome.timed(point, np.array(turns))
        else:
            yield side["task"], Outcome.failed(point, line["failure"], line["detail"])
