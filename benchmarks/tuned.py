"""What tuning gives: networks tuned for a while, then raced in turns against their defaults.

    python -m benchmarks.tuned --seconds 300 --isa x86-64-v3
    python -m benchmarks.tuned --only 'resnet18*'     # goes on with the records of earlier runs
    python -m benchmarks.tuned --seconds 1             # little more than a race of what is known

Records stand in build/benchmarks/tuned, one file a network. Both libraries must answer the same, a
float network's to a thousandth of the largest output.
They run in turns, by processor time on one thread, else by wall time. *predicted* is the network's
time as the session puts it together from its layers, by its fastest run in the race.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import nybble
from benchmarks import prepare
from benchmarks.accuracy import tasks
from benchmarks.output import RESULTS, console, record, table
from benchmarks.problems import Array, encoder, network
from nybble.model import QuantizedModel
from nybble.schedules.records import Records

FOLDER = RESULTS / "tuned"
ROUNDS = 61
SUMS = 1e-3  # of the largest output: how far float layers in another order of sums may be apart
MIXED = {"weights": "mixed", "choices": (4, 8), "budget": {"latency": 0.7}}
"""Between all 4 and all 8 bits; latencies are those of the records."""


@dataclass(frozen=True)
class Case:
    """A network at some widths; float without a recipe."""

    name: str
    model: Callable[[], nybble.Model]
    data: Callable[[], Array]
    recipe: dict[str, Any] | None


def cases() -> Iterator[Case]:
    """Five networks, more widths of one, a float one; those of photographs where data is."""
    for name, recipe in (
        ("resnet18", {}), ("mobilenet_v2", {}), ("resnet50", {}), ("resnet18", {"weights": 4}),
        ("resnet18", MIXED),
    ):  # fmt: skip
        problem = network(name)
        label = "mixed" if recipe is MIXED else prepare.label(recipe)
        yield Case(
            f"{name}-{label}",
            lambda p=problem: nybble.load_onnx(prepare.source(p), {"input": p.shape}),
            lambda p=problem: p.data(prepare.SAMPLES),
            recipe,
        )
    block = encoder(64, 256, 4)
    yield Case(
        f"{block.name}-float32",
        lambda: nybble.load_onnx(prepare.source(block), {"input": block.shape}),
        lambda: block.data(1),
        None,
    )
    for task in tasks():
        name = task.name.lower().replace(" ", "-")
        yield Case(f"{name}-w8a8", lambda t=task: t.model, lambda t=task: t.calibration[:32], {})


def run(case: Case, isa: str, threads: int, seconds: float) -> dict[str, Any]:
    """One row: tunes, compiles twice, races."""
    records, data = FOLDER / f"{case.name}-{isa}-{threads}.records", case.data()
    records.parent.mkdir(parents=True, exist_ok=True)
    model: Any = case.model()
    if case.recipe is not None:
        recipe, given = nybble.Recipe(**case.recipe), records if records.exists() else None
        model = nybble.quantize(
            model, data[:, None], recipe, target=isa, records=given, threads=threads
        )
    options = nybble.TuneOptions(trials=None, seconds=seconds, threads=threads)
    tuned = nybble.tune(model, records, isa, options)
    ratios, fastest = raced(model, data[:1], isa, threads, records)
    low, middle, high = statistics.quantiles(ratios, n=4)
    together = tuned.state.seconds  # None where the time was too short for every layer
    return {
        "network": case.name, "isa": isa, "threads": threads, "trials": tuned.state.trials,
        "estimated": tuned.speedup, "ratio": middle, "low": low, "high": high,
        "predicted": together and together / fastest, "rank correlation": tuned.correlation,
    }  # fmt: skip


def raced(
    model: nybble.Model | QuantizedModel, x: Array, isa: str, threads: int, records: Path
) -> tuple[list[float], float]:
    """Default by tuned, round by round, and the fastest run of the tuned one in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        made = {
            name: nybble.compile(model, isa, records=known, threads=threads)
            for name, known in (("default", Records()), ("tuned", records))
        }
        saved = {name: one.save(Path(folder) / f"{name}.so") for name, one in made.items()}
        sessions = {name: nybble.load(path, threads) for name, path in saved.items()}
        default, tuned = (np.asarray(session(x)) for session in sessions.values())
        near = 0.0 if isinstance(model, QuantizedModel) else SUMS * float(np.abs(default).max())
        if not np.allclose(default, tuned, rtol=0, atol=near):
            raise SystemExit("The tuned library answers otherwise than the default one.")
        times = race(list(sessions.values()), x, threads)
    return [a / b for a, b in times], min(b for _, b in times)


def race(sessions: list[nybble.Session], x: Array, threads: int) -> list[tuple[float, ...]]:
    """Seconds of a call of each, round by round; who begins changes."""
    clock = time.process_time if threads == 1 else time.perf_counter
    for session in sessions * 3:
        session(x)
    rounds = []
    for turn in range(ROUNDS):
        found = [0.0] * len(sessions)
        for place in range(len(sessions)):
            index = (place + turn) % len(sessions)
            start = clock()
            sessions[index](x)
            found[index] = clock() - start
        rounds.append(tuple(found))
    return rounds


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, tunes and races, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="shell-style pattern of names")
    parser.add_argument("--seconds", type=float, default=300.0, help="of tuning, a network")
    parser.add_argument("--isa", default="native")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    rows = list[dict[str, Any]]()
    for case in cases():
        if fnmatch.fnmatch(case.name, args.only):
            rows.append(run(case, args.isa, args.threads, args.seconds))
            console.print(rows[-1])
    if rows:
        keys = list(dict.fromkeys(key for row in rows for key in row))
        table("default by tuned", [{k: _shown(row.get(k)) for k in keys} for row in rows])
        console.print(f"written: {record('tuned', rows)}")


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
