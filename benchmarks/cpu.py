"""Speed on the CPU beside every peer: networks, products, convolutions, the rest.

    python -m benchmarks.cpu --only resnet18 --threads 1 2 --isa native x86-64-v3

``--stage prepare`` makes all files and measures nothing; ``--stage race`` measures what was
prepared, Nybble's files too. Peers' files are kept under build/benchmarks/files.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ggml, hold, limits, prepare, results
from benchmarks.cases import CONTENDERS, OWN, Case, cases
from benchmarks.engines import Job
from benchmarks.output import RESULTS, console, cpu, table
from benchmarks.peers import Timing, race
from benchmarks.problems import Array
from benchmarks.results import Row

NYBBLE = "Nybble"
OWN_RECIPE = {"weights": 8, "activations": 8, "first_last": None}


def elsewhere(make: Callable[[], Path]) -> Path | str:
    """Calls a function in a fresh process; the path that it made, or why it made none."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        future = pool.submit(make)
        error = future.exception()
        if error is None:
            return future.result()
    if isinstance(error, ImportError):
        return f"not installed ({error.name})"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


class Files:
    """The prepared files of one level.

    Args:
        isa: the level.
        stage: ``race`` makes nothing; otherwise Nybble's files are made anew, once a run.
        threads: the most that Nybble's will run with.
    """

    def __init__(self, isa: str, stage: str, threads: int):
        self.isa, self.threads = isa, threads
        self.stage = stage
        self._made: dict[Path, Path | str] = {}

    def of(self, case: Case, name: str) -> Path | str:
        """The file of a contender, or why there is none."""
        if name in {NYBBLE, OWN}:
            recipe = case.recipe if name == NYBBLE else OWN_RECIPE
            path = prepare.nybble_path(case.problem, recipe, self.isa)
            make = partial(prepare.nybble_file, case.problem, recipe, self.isa, self.threads)
        else:
            peer = CONTENDERS[name]
            if peer.engine == "ggml" and not ggml.path(self.isa).exists():
                return f"not built (python -m benchmarks.ggml --isa {self.isa})"
            path = prepare.folder(case.problem) / peer.file
            make = partial(peer.make, case.problem)
        if path.exists() and (self.stage == "race" or name not in {NYBBLE, OWN}):
            return path
        if self.stage == "race":
            return "not prepared"
        if path not in self._made:
            self._made[path] = elsewhere(make)
        return self._made[path]


def jobs_of(case: Case, files: dict[str, Path], isa: str) -> list[Job]:
    """What to time: Nybble first, then the peers that have a file."""
    copies = 1
    if case.cold:
        copies = max(2, -(-3 * limits.last_cache() // (2 * case.bytes)))
    data = prepare.input_path(case.problem)
    jobs = []
    for name, path in files.items():
        ours = name in {NYBBLE, OWN}
        engine = "nybble" if ours else CONTENDERS[name].engine
        option = "" if ours else CONTENDERS[name].option
        several = prepare.copies(path, copies)
        jobs.append(Job(name, engine, several, data, isa=isa, option=option))
    return jobs


def rows_of(
    case: Case,
    run: tuple[str, int],
    timings: Sequence[Timing],
    absent: dict[str, str],
    bound: limits.Limits,
) -> list[Row]:
    """A row for every peer, and one for Nybble if it has no file.

    Args:
        case: what was raced.
        run: its level and its threads.
        timings: of those that have a file.
        absent: why the others have none.
        bound: the machine's limits.
    """
    isa, threads = run
    ran = {t.name: t for t in timings if t.seconds}
    notes = absent | {t.name: "its process died, see above" for t in timings if not t.seconds}
    reference = np.load(prepare.reference_path(case.problem))
    common: dict[str, Any] = {"case": case.name, "threads": threads, "isa": isa, "cpu": cpu()}
    common["date"] = datetime.date.today().isoformat()
    ours = ran.get(NYBBLE)
    if ours:
        common["nybble_ms"] = 1000 * ours.median
        common["gops"] = 2e-9 * case.problem.macs / ours.median or None  # no products: no rate
        least = bound.seconds(case.limit, case.problem.macs, case.bytes)
        common |= {"share": least / ours.median, "error": _error(ours, reference)}
    rows = []
    for name in (*([] if ours else [NYBBLE]), *case.peers):
        kind = CONTENDERS[name].kind if name in CONTENDERS else "own"
        made = Row(**common, peer=name, kind=kind, note=notes.get(name, ""))
        if name in ran:
            made = replace(
                made,
                peer_ms=1000 * ran[name].median,
                ratio=ran[name].ratio(ours) if ours else None,
                goal=case.goals.get(kind),
                peer_error=_error(ran[name], reference),
            )
        rows.append(made)
    return rows


def _error(timing: Timing, reference: Array) -> float | None:
    if timing.output is None:
        return None
    return float(np.linalg.norm(timing.output - reference) / np.linalg.norm(reference))


def measure(case: Case, files: Files, bounds: dict[int, limits.Limits], rounds: int) -> list[Row]:
    """Prepares a case and races it with every number of threads in ``bounds``.

    Raises:
        RuntimeError: the float network itself could not be made.
    """
    if not prepare.reference_path(case.problem).exists():
        made = elsewhere(partial(prepare.inputs, case.problem))
        if isinstance(made, str):
            raise RuntimeError(f"{case.name}: no input could be made: {made}")
    found = {name: files.of(case, name) for name in (NYBBLE, *case.peers)}
    paths = {name: made for name, made in found.items() if isinstance(made, Path)}
    absent = {name: why for name, why in found.items() if isinstance(why, str)}
    for name, why in absent.items():
        console.print(f"{case.name}: {name}: {why}", highlight=False)
    jobs = jobs_of(case, paths, files.isa) if bounds else []
    rows: list[Row] = []
    for threads, bound in bounds.items():
        several = [replace(job, threads=threads) for job in jobs]
        timings = race(several, rounds) if several else []
        rows += rows_of(case, (files.isa, threads), timings, absent, bound)
    shutil.rmtree(prepare.folder(case.problem) / "copies", ignore_errors=True)
    return rows


def show(title: str, rows: Sequence[Row]) -> None:
    """A table of the best peer of each kind, and a line a case with all of them."""
    lines = [dict(zip(results.COLUMNS, line, strict=True)) for line in results.cells(rows)]
    if lines:
        table(title, lines)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=["*"], help="shell patterns in a case's name")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--isa", nargs="+", choices=["native", *hold.LEVELS], default=["native"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--stage", choices=["all", "prepare", "race"], default="all")
    parser.add_argument("--json", type=Path, default=RESULTS / "cpu.json")
    parser.add_argument("--add", action="store_true", help="keep the JSON's rows of other cases")
    parser.add_argument("--plot", type=Path, default=RESULTS / "cpu.png")
    parser.add_argument("--markdown", type=Path, help="write the page docs/performance.md there")
    parser.add_argument("--baseline", type=Path, help="an earlier JSON; 10 %% worse: exit status 1")
    args = parser.parse_args(argv)
    if set(args.isa) - {"native"} and not hold.possible():
        parser.error("this kernel or CPU cannot fault on CPUID (cpuid_fault): only --isa native")
    return args


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, measures, prints and writes what was found."""
    args = arguments(argv)
    chosen = [c for c in cases() if any(fnmatch(c.name, f"*{p}*") for p in args.only)]
    if args.list or not chosen:
        console.print("\n".join(case.name for case in chosen or cases()), highlight=False)
        return
    console.print(f"{cpu()}; 1 thread: CPU time, more: wall; a ratio above 1: Nybble is faster")
    rows: list[Row] = []
    lines: dict[str, list[str]] = {}
    for isa in args.isa:
        counts = [] if args.stage == "prepare" else args.threads
        bounds = {threads: limits.measured(isa, threads) for threads in counts}
        lines |= {f"{isa}, {threads}": bound.lines() for threads, bound in bounds.items()}
        files = Files(isa, args.stage, max(args.threads))
        for case in chosen:
            made = measure(case, files, bounds, args.rounds)
            show(f"{case.name}, {isa}", made)
            rows += made
    if args.stage != "prepare":
        finish(rows, lines, args)


def finish(rows: list[Row], lines: dict[str, list[str]], args: argparse.Namespace) -> None:
    """Writes JSON, chart and page; compares with the baseline."""
    measured = rows
    if args.add and args.json.exists():
        rows = results.merged(results.load(args.json), rows)
    order = {case.name: i for i, case in enumerate(cases())}
    rows = sorted(rows, key=lambda r: (r.isa, r.threads, order.get(r.case, len(order))))
    results.save(rows, args.json)
    results.plot(rows, args.plot)
    console.print(f"written: {args.json}, {args.plot}")
    if args.markdown:
        command = " ".join(["python -m benchmarks.cpu", *sys.argv[1:]])
        page = results.markdown(rows, command, lines)
        args.markdown.write_text(page + results.notes(args.markdown))
    if args.baseline:
        worse = results.regressions(measured, results.load(args.baseline))
        for (case, threads, isa, peer), before in worse.items():
            console.print(f"worse: {case}, {isa}, {threads} threads, by {peer}: was {before:.2f}")
        if worse:
            sys.exit(1)


if __name__ == "__main__":
    main()
