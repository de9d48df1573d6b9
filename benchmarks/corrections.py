"""What every correction does to real networks: top-1 of the deployed library, method by width.

    python -m benchmarks.corrections                      # hours; goes on where it was stopped
    python -m benchmarks.corrections --only 'Fashion*W4A4*'
    python -m benchmarks.corrections --table              # only writes docs/corrections.md

A cell is a network, its widths and a list of stages. Finished cells stand in
``build/benchmarks/corrections.json`` and are not run again. Data as in `benchmarks.accuracy`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy import Task, tasks
from benchmarks.deployed import Bench
from benchmarks.output import RESULTS, ROOT, console
from nybble.recipe import Calibrator, Recipe

PAGE = ROOT / "docs" / "corrections.md"
STATE = RESULTS / "corrections.json"
FLOAT = "float"
NONE = "round to nearest"
BY_OUTPUT = {"scales": {"by": "output"}}
BY_PREDICTION = {"scales": {"by": "prediction"}}


@dataclass(frozen=True)
class Method:
    """Stages of correction, and what sets the ranges of activations before them."""

    stages: tuple[Any, ...] = ()
    calibrator: Calibrator = "minmax"


LISTS: dict[str, tuple[Any, ...]] = {
    NONE: (),
    "bias_correction": ("bias_correction",),
    "statistics": ("statistics",),
    "equalize by weights": ({"equalize": {"by": "weights"}},),
    "equalize": ("equalize",),
    "scales by mse": ("scales",),
    "scales by output": (BY_OUTPUT,),
    "scales by prediction": (BY_PREDICTION,),
    "gptq": ("gptq",),
    "low_rank": ("low_rank",),
    "adaround": ("adaround",),
    "adaquant": ("adaquant",),
    "flexround": ("flexround",),
    "scales by output, gptq, bias_correction": (BY_OUTPUT, "gptq", "bias_correction"),
    "scales by output, gptq, statistics": (BY_OUTPUT, "gptq", "statistics"),
    "scales by prediction, gptq, bias_correction": (BY_PREDICTION, "gptq", "bias_correction"),
    "scales by mse, low_rank, bias_correction": ("scales", "low_rank", "bias_correction"),
    "scales by output, adaround, bias_correction": (BY_OUTPUT, "adaround", "bias_correction"),
    "equalize, adaround, bias_correction": ("equalize", "adaround", "bias_correction"),
    "scales by output, adaquant, bias_correction": (BY_OUTPUT, "adaquant", "bias_correction"),
    "adaquant, statistics": ("adaquant", "statistics"),
}
CLIPPED: dict[str, tuple[Any, ...]] = {
    NONE: (),
    "bias_correction": ("bias_correction",),
    "statistics": ("statistics",),
    "scales by output": (BY_OUTPUT,),
    "gptq": ("gptq",),
    "adaround": ("adaround",),
    "adaquant": ("adaquant",),
    "flexround": ("flexround",),
    "scales by output, gptq": (BY_OUTPUT, "gptq"),
    "scales by output, gptq, bias_correction": (BY_OUTPUT, "gptq", "bias_correction"),
    "scales by output, adaround": (BY_OUTPUT, "adaround"),
    "scales by output, adaround, bias_correction": (BY_OUTPUT, "adaround", "bias_correction"),
    "scales by output, adaquant": (BY_OUTPUT, "adaquant"),
    "scales by output, flexround": (BY_OUTPUT, "flexround"),
}
METHODS: dict[str, Method] = {name: Method(stages) for name, stages in LISTS.items()} | {
    f"calibrator mse: {name}": Method(stages, "mse") for name, stages in CLIPPED.items()
}
WIDTHS: dict[str, tuple[tuple[int, int], ...]] = {
    "EfficientNet-Lite0": ((4, 8),),
    "Fashion-MNIST ResNet": ((4, 4), (2, 8), (2, 4)),
}
Cells = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Cell:
    """One thing to measure."""

    network: str
    weights: int
    activations: int
    method: str

    @property
    def key(self) -> str:
        """As `--only` matches it and the JSON names it."""
        return f"{self.network}/W{self.weights}A{self.activations}/{self.method}"


def cells(network: str) -> list[Cell]:
    """All of a network: method by method, so that a broken off table has whole rows."""
    return [Cell(network, w, a, m) for m in METHODS for w, a in WIDTHS[network]]


def measure(bench: Bench, cell: Cell) -> dict[str, float]:
    """Percent of right answers of the deployed library, and seconds of CPU."""
    method = METHODS[cell.method]
    recipe = Recipe(
        weights=cell.weights,
        activations=cell.activations,
        correct=method.stages,
        calibrator=method.calibrator,
    )
    settled, seconds = bench.settled(recipe, cell.key)
    return {"top1": bench.top1(bench.outputs(settled, recipe)), "seconds": seconds}


def run(tasks: Iterable[Task], only: str, done: Cells) -> None:
    """Measures what is missing; every cell is written at once."""
    for task in tasks:
        wanted = [c for c in cells(task.name) if fnmatch.fnmatchcase(c.key, only)]
        wanted = [c for c in wanted if c.key not in done]
        if not wanted:
            continue
        bench = Bench(task)
        if f"{task.name}/{FLOAT}" not in done:
            _keep(
                done,
                f"{task.name}/{FLOAT}",
                {"top1": bench.top1(bench.float_outputs()), "seconds": 0.0},
            )
        for index, cell in enumerate(wanted):
            _keep(done, cell.key, measure(bench, cell))
            found = done[cell.key]
            console.print(f"{index + 1}/{len(wanted)} {cell.key}: {found['top1']:.2f} %")


def _keep(done: Cells, key: str, found: dict[str, float]) -> None:
    """Notes a cell, beside those that other runs have finished meanwhile."""
    done |= {**_finished(), key: found}
    STATE.parent.mkdir(parents=True, exist_ok=True)
    STATE.write_text(json.dumps(done, indent=1) + "\n")


def _finished() -> Cells:
    found: Cells = json.loads(STATE.read_text()) if STATE.exists() else {}
    return found


def page(done: Cells) -> str:
    """docs/corrections.md."""
    parts = [HEAD]
    for network, widths in WIDTHS.items():
        if f"{network}/{FLOAT}" in done:
            parts.append(_section(network, widths, done))
    return "\n".join([*parts, _where(done)])


def _where(done: Cells) -> str:
    """The cell in which each method gains most; those that gain nowhere say so."""
    lines = ["## Where each helps most", "", "| stages | cells run | best gain | where |"]
    lines.append("|---|---:|---:|---|")
    for method in list(METHODS)[1:]:
        gains = {
            place: found["top1"] - done[f"{place}/{NONE}"]["top1"]
            for key, found in done.items()
            for place, _, name in [key.rpartition("/")]
            if name == method and f"{place}/{NONE}" in done
        }
        best = max(gains, key=lambda place: gains[place], default=None)
        if best is None:
            lines.append(f"| {method} | 0 | | not run |")
        else:
            where = best.replace("/", ", ") if gains[best] > 0 else "nowhere"
            lines.append(f"| {method} | {len(gains)} | {gains[best]:+.2f} | {where} |")
    return "\n".join([*lines, ""])


def _section(network: str, widths: tuple[tuple[int, int], ...], done: Cells) -> str:
    names = [f"W{w}A{a}" for w, a in widths]
    lines = [
        f"## {network}",
        "",
        f"Float: {done[f'{network}/{FLOAT}']['top1']:.2f} %.",
        "",
        "| stages | " + " | ".join(f"{n} | gain | CPU s" for n in names) + " |",
        "|---|" + "---:|---:|---:|" * len(names),
    ]
    for method in METHODS:
        keys = [f"{network}/{name}/{method}" for name in names]
        if any(key in done for key in keys):
            row = [_figures(done, key, f"{key.rsplit('/', 1)[0]}/{NONE}") for key in keys]
            lines.append(f"| {method} | " + " | ".join(row) + " |")
    return "\n".join([*lines, ""])


def _figures(done: Cells, key: str, base: str) -> str:
    if key not in done:
        return "not run | |"
    found = done[key]["top1"]
    gain = f"{found - done[base]['top1']:+.2f}" if base in done and key != base else ""
    seconds = f"{done[key]['seconds']:.0f}" if "seconds" in done[key] else "-"
    return f"{found:.2f} | {gain} | {seconds}"


HEAD = """# What the corrections do

Top-1 in percent of the deployed library (integers only), not of a simulation. *gain* is over
round to nearest at the same widths, with ranges of activations from the largest values (min-max);
rows of *calibrator mse* take those of least squared error, so their gain is that of both. *CPU s*
are the seconds that the stages took on one core, calibration and compiling apart (a dash: run
without a clock). First and last layers have 8 bits, and every stage has its default options.
Written by `python -m benchmarks.corrections`.

- EfficientNet-Lite0: 500 labelled ImageNet images; every tenth calibrates, without its label.
  One image is 0.2 points, so differences below 2 points say little.
- Fashion-MNIST ResNet: the 10,000 test images; 256 training images calibrate.

## What to take
- 4-bit activations need ranges of least squared error before anything else:
  `Recipe(4, 4, calibrator="mse", correct=({"scales": {"by": "output"}}, "adaround"))`.
- 2-bit weights: the same with `"flexround"` or `"adaquant"`; without learning, `gptq` between
  scales by output and `statistics` or `bias_correction`.
- Depthwise networks at 4 bits: `Recipe(4, correct=("adaquant",))`, or `"adaround"` in half the
  time. Scales by output, `gptq` and `statistics` come within two points in a quarter of it;
  `bias_correction` alone is the cheapest large step.
- `scales by prediction` runs the network once for every layer and candidate: for small networks,
  and not run on EfficientNet-Lite0.
- `equalize` gains little here, where every channel of weights has a scale of its own; by weights it
  costs much when activations have 4 bits.

These were chosen on the test images that the tables show.
"""


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="pattern of network/widths/stages")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    args = parser.parse_args(argv)
    done = _finished()
    if not args.table:
        run(tasks(), args.only, done)
    PAGE.write_text(page(done))
    console.print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
