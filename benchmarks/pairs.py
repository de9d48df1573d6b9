"""Where layers' errors are correlated: quadratic against linear allocation, deployed.

    python -m benchmarks.pairs            # goes on where it was stopped
    python -m benchmarks.pairs --table    # only writes docs/pairs.md

Both solvers get the same measured losses of single layers and the same limit of weight bytes; only
``iqp`` looks at the pairs. Fashion-MNIST as in `benchmarks.accuracy`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy import FASHION, fashion_mnist
from benchmarks.deployed import Bench, Outputs, divergence
from benchmarks.output import RESULTS, ROOT, console
from nybble.allocation.result import Allocation
from nybble.costs import uniform
from nybble.mixed import Trade, free_layers, weigh
from nybble.passes.sensitivity.options import Measure
from nybble.passes.sensitivity.run import Subject, measured
from nybble.recipe import Recipe, with_widths
from nybble.report.progress import step
from nybble.schedules.target import resolve

PAGE = ROOT / "docs" / "pairs.md"
STATE = RESULTS / "pairs.json"
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SOLVERS = ("ilp", "iqp")
FIGURES = (("bytes", 0), ("top1", 2), ("loss", 4))  # with their decimals


@dataclass(frozen=True)
class Case:
    """What is chosen from, and what is done to the weights then."""

    choices: tuple[int, ...]
    activations: int = 8
    correct: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """As the JSON and the page have it."""
        stages = ", ".join(self.correct) or "round to nearest"
        return f"{', '.join(map(str, self.choices))} bits, A{self.activations}, {stages}"

    def recipe(self) -> Recipe:
        """Of mixed widths."""
        return Recipe(
            weights="mixed",
            choices=self.choices,
            activations=self.activations,
            correct=self.correct,
            budget={"size": 0.5},
        )


CASES = (
    Case((2, 4)),
    Case((2, 3, 4)),
    Case((3, 4, 8)),
    Case((2, 4, 8), correct=("scales",)),
)
Found = dict[str, dict[str, Any]]
Row = tuple[float, dict[str, Any], dict[str, Any]]  # size, ILP's and IQP's


def traded(bench: Bench, case: Case) -> Trade:
    """Losses with pairs, and costs."""
    recipe = case.recipe()
    base = uniform(recipe, recipe.choices[0])
    free, ranges = free_layers(bench.module, recipe), bench.ranges(base)
    trade = weigh(bench.module, ranges, recipe, resolve("native"))
    with bench.spooled() as samples, step(f"pairs of {case.name}") as report:
        subject = Subject(bench.module, samples, base, recipe.choices, ranges)
        found = measured(subject, Measure("pairwise", tuple(free), batch=64), report)
    return trade.with_losses(found)


def allocations(trade: Trade) -> Iterator[tuple[float, str, Allocation]]:
    """What both solvers choose at every size."""
    for share in SHARES:
        for solver in SOLVERS:
            asked = Recipe(**{**vars(trade.recipe), "budget": {"size": share}, "solver": solver})
            yield share, solver, Trade(trade.sensitivity, trade.costs, asked).allocated()


def run(done: Found) -> None:
    """Measures what is missing; every allocation is written at once."""
    bench, reference = Bench(fashion_mnist(FASHION)), None
    for case in CASES:
        if all(f"{case.name}/{share}/{s}" in done for share in SHARES for s in SOLVERS):
            continue
        reference = bench.float_outputs() if reference is None else reference
        known: dict[str, dict[str, Any]] = {}
        for share, solver, allocation in allocations(traded(bench, case)):
            key, widths = f"{case.name}/{share}/{solver}", json.dumps(allocation.widths)
            if key not in done:
                done[key] = known.get(widths) or _measured(bench, case, allocation, reference)
                STATE.parent.mkdir(parents=True, exist_ok=True)
                STATE.write_text(json.dumps(done, indent=1) + "\n")
            known[widths] = done[key]
            console.print(f"{key}: {done[key]['top1']:.2f} %, {done[key]['loss']:.4f} nats")


def _measured(
    bench: Bench, case: Case, allocation: Allocation, reference: Outputs
) -> dict[str, Any]:
    recipe = with_widths(uniform(case.recipe(), case.choices[0]), allocation.widths)
    outputs = bench.outputs(bench.settled(recipe, case.name)[0], recipe)
    return {
        "widths": allocation.widths,
        "bytes": allocation.costs["size"],
        "top1": bench.top1(outputs),
        "loss": divergence(reference, outputs),
    }


def page(done: Found) -> str:
    """docs/pairs.md."""
    parts = [HEAD]
    for case in CASES:
        lines = [f"## {case.name}", "", COLUMNS, "|---:|---:|---:|---:|---:|---:|---:|"]
        rows: list[Row] = [
            (share, done[f"{case.name}/{share}/ilp"], done[f"{case.name}/{share}/iqp"])
            for share in SHARES
            if all(f"{case.name}/{share}/{s}" in done for s in SOLVERS)
        ]
        lines += [_row(*row) for row in rows]
        if rows:
            parts.append("\n".join([*lines, "", _verdict(rows), ""]))
    return "\n".join(parts)


def _row(share: float, linear: dict[str, Any], quadratic: dict[str, Any]) -> str:
    both = (linear, quadratic)
    figures = [f"{one[what]:.{d}f}" for what, d in FIGURES for one in both]
    return "| " + " | ".join([str(share), *figures]) + " |"


def _verdict(rows: list[Row]) -> str:
    other = [(a, b) for _, a, b in rows if a["widths"] != b["widths"]]
    if not other:
        return "Both chose the same widths everywhere."
    better = sum(b["loss"] < a["loss"] for a, b in other)
    higher = sum(b["top1"] > a["top1"] for a, b in other)
    gain = sum(b["top1"] - a["top1"] for a, b in other) / len(other)
    return (
        f"The two differ at {len(other)} of {len(rows)} sizes. There the quadratic one has the "
        f"smaller loss {better} times and the higher top-1 {higher} times, by {gain:+.2f} points "
        "in the mean."
    )


COLUMNS = "| size | ILP bytes | IQP bytes | ILP top-1 | IQP top-1 | ILP loss | IQP loss |"
HEAD = """# Where pairs of layers matter

The Fashion-MNIST ResNet (10,000 test images, 256 training images calibrate), widths chosen by the
linear programme (ILP) and by the quadratic one (IQP) under the same limit of weight bytes. *Size*
is the share between all layers at the fewest bits and all at the most; first and last layers keep
8 bits. Both get the losses of single layers as `pairwise` measures them; IQP gets the pairs too.
*Top-1* in percent and *loss* (KL divergence from the float network's probabilities, nats) are of
the deployed library on the test images. Written by `python -m benchmarks.pairs`.
"""


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    args = parser.parse_args(argv)
    done: Found = json.loads(STATE.read_text()) if STATE.exists() else {}
    if not args.table:
        run(done)
    PAGE.write_text(page(done))
    console.print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
