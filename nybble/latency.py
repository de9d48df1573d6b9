"""Times kernels on this machine, and remembers what it measured.

A candidate is compiled in this process and runs one image, on one thread if not told otherwise.
The candidates for a layer take turns, so a busy machine slows them alike, and the fastest of
several runs counts. Times are kept on disk under a key of everything that they depend on: CPU,
target, threads, layer, kernel sources, TVM.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import tirx

from nybble import lines
from nybble.cache import folder
from nybble.errors import NybbleError, ScheduleError
from nybble.ir import numerics
from nybble.runtime import engine, host
from nybble.schedules import problems, sources
from nybble.schedules.kernel import Extent, Knobs, TensorSpec, usual
from nybble.schedules.select import Candidate
from nybble.schedules.target import CpuTarget, Target

ROUNDS = 7
ROUND_SECONDS = (
    0.004  # of one candidate in one round: enough for the clock, too short to be noticed
)


class Ruler:
    """Measures candidates, as `nybble.schedules.select.Planner.ruler`.

    Attributes:
        cache: the file of known times, one JSON object a line; None keeps them in memory only.
        threads: that kernels run with; None for one, with code that could use more.
    """

    def __init__(self, cache: Path | None, threads: int | None = None):
        self.cache, self.threads = cache, threads
        self._known = dict(_read(cache)) if cache else {}

    def __call__(self, candidates: Sequence[Candidate], target: Target) -> list[float]:
        """Seconds of one call of each candidate.

        Raises:
            NybbleError: this machine cannot run code for the target.
            ScheduleError: two candidates disagree about the result.
            ArtifactError: there are not so many CPUs.
        """
        if not isinstance(target, CpuTarget):
            refuse_foreign(target)
        keys = [self._key(candidate, target) for candidate in candidates]
        if not all(key in self._known for key in keys):
            refuse_foreign(target)
            runs = [_prepared(candidate, target, usual(self.threads)) for candidate in candidates]
            _agree(candidates, runs)
            seconds = engine.run(self.threads or 1, lambda: _race([run for run, _ in runs]))
            found = dict(zip(keys, seconds, strict=True))
            self._known |= found
            self._append(candidates, found)
        return [self._known[key] for key in keys]

    def _key(self, candidate: Candidate, target: Target) -> str:
        kernel, problem = candidate.kernel.name, candidate.problem
        sizes = [array.shape for array in candidate.packed]  # these may depend on the values
        assert isinstance(target, CpuTarget)
        machine = (target.llvm, host.model(), self.threads)
        parts = (kernel, problem, sizes, machine, sources.digest(problem.op, kernel))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def _append(self, candidates: Iterable[Candidate], found: dict[str, float]) -> None:
        if self.cache is None:
            return
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        lines.append(self.cache, (
            {
                "key": key, "kernel": c.kernel.name, "seconds": seconds, "cpu": host.model(),
                "date": date.today().isoformat(), "layer": problems.words(c.problem),
            }
            for c, (key, seconds) in zip(candidates, found.items(), strict=True)
        ))  # fmt: skip


def default_cache() -> Path:
    """``latencies.jsonl`` in the cache folder."""
    return folder() / "latencies.jsonl"


def _read(file: Path) -> Iterator[tuple[str, float]]:
    """Keys and seconds of a cache; a line that is none, such as a torn one, is no time."""
    if not file.exists():
        return
    for record in lines.read(file):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            yield str(record["key"]), float(record["seconds"])


# ---------------------------------------------------------------- measuring


def refuse_foreign(target: Target) -> None:
    """Refuses a target that this machine cannot run.

    Raises:
        NybbleError: says what it lacks.
    """
    if not isinstance(target, CpuTarget):
        raise NybbleError(
            f"Cannot measure for {target.name} in a process of this machine. GPUs are measured by "
            "`nybble tune` behind a tracker (--tracker) or by a folder that goes there "
            "(--export-batch); compile with its records, without measuring."
        )
    missing = target.features - host.features()
    if target.arch != host.arch() or missing:
        other = target.arch != host.arch()
        lacks = f"it is {host.arch()}" if other else f"it lacks {', '.join(sorted(missing))}"
        raise NybbleError(
            f"Cannot measure for {target.name} on this machine: {lacks}. Compile without "
            "measuring, or on a machine of that kind."
        )


Run = Callable[[], Any]


def _prepared(candidate: Candidate, target: Target, knobs: Knobs) -> tuple[Run, Any]:
    """A call of the candidate on one random image, and the tensor that it writes."""
    problem = candidate.problem
    function = candidate.kernel.build(problem, target, knobs)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    compiled = tirx.build(module, target=target.tvm_target())["main"]
    rng = np.random.default_rng(0)
    other = problem.epilogue.other
    specs = [*problem.inputs, *([other] if other else [])]
    arrays = [*(_drawn(rng, spec) for spec in specs), *candidate.packed]
    output = tvm.runtime.tensor(np.zeros(_shape(problem.output.shape), _stored(problem.output)))
    operands = [*map(tvm.runtime.tensor, arrays), output]
    return lambda: compiled(*operands), output


def _drawn(rng: np.random.Generator, spec: TensorSpec) -> NDArray[Any]:
    shape = _shape(spec.shape)
    if spec.dtype.startswith("float"):
        return rng.normal(size=shape).astype(np.float32)
    lo, hi = numerics.limits(spec.dtype)
    return rng.integers(max(lo, -(1 << 20)), min(hi, 1 << 20), shape, _stored(spec), endpoint=True)


def _stored(spec: TensorSpec) -> Any:
    return np.float32 if spec.dtype.startswith("float") else numerics.storage(spec.dtype)


def _shape(extents: Iterable[Extent]) -> tuple[int, ...]:
    """The shape for one image."""
    return tuple(extent if isinstance(extent, int) else 1 for extent in extents)


def _agree(candidates: Sequence[Candidate], runs: Sequence[tuple[Run, Any]]) -> None:
    """All integer kernels must give the same bits; what differs is a defect, and named."""
    results: list[tuple[Candidate, NDArray[Any]]] = []
    for candidate, (run, output) in zip(candidates, runs, strict=True):
        run()
        if not candidate.problem.inputs[0].dtype.startswith("float"):
            results.append((candidate, output.numpy().copy()))
    for candidate, result in results[1:]:
        if not np.array_equal(result, results[0][1]):
            raise ScheduleError(
                f"{candidate.kernel.name} and {results[0][0].kernel.name} disagree on "
                f"{problems.words(candidate.problem)}. This is a defect of Nybble: please report "
                "it, and compile without measuring."
            )


def _race(runs: Sequence[Run]) -> list[float]:
    """Seconds of the fastest call of each, taking turns."""
    repeats, best = [], []
    for run in runs:
        start = time.perf_counter()
        run()
        once = max(time.perf_counter() - start, 1e-7)
        repeats.append(max(1, math.ceil(ROUND_SECONDS / once)))
        best.append(once)
    for _ in range(ROUNDS):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            for _ in range(repeats[i]):
                run()
            best[i] = min(best[i], (time.perf_counter() - start) / repeats[i])
    return best
