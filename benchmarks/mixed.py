"""Half of the bytes between 4 and 8 bits: chosen widths against uniform and random ones, deployed.

    python -m benchmarks.mixed               # goes on where it was stopped
    python -m benchmarks.mixed --table       # only writes docs/mixed.md

EfficientNet-Lite0 on the photographs of `benchmarks.accuracy`. All allocations get the same stages:
parallel AdaQuant. It learns every layer from the float network's values, so what a layer learns at
a width is the same in every allocation, and is learned once here.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy import efficientnet_lite0
from benchmarks.deployed import Bench, Outputs, divergence
from benchmarks.output import RESULTS, ROOT, console
from nybble.costs import uniform
from nybble.mixed import Trade, free_layers, weigh
from nybble.passes.biases import set_biases
from nybble.passes.sensitivity.options import Measure
from nybble.passes.sensitivity.run import Subject, measured
from nybble.passes.settle import Settled, bias_of, settle
from nybble.passes.view import View
from nybble.recipe import Recipe, with_widths
from nybble.report.progress import step
from nybble.schedules.target import resolve

PAGE = ROOT / "docs" / "mixed.md"
STATE = RESULTS / "mixed.json"
LEARNED = RESULTS / "files"
STAGES = ({"adaquant": {"sequential": False, "iterations": 150}},)
LOW, HIGH, SHARE = 4, 8, 0.5
UNIFORM = (4, 6, 8)
RANDOM = 20
MEASURES = ("perturbation", "hessian", "hessian_proxy", "influence")
WIDE = (4, 6, 8)
Widths = dict[str, int]
Found = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Wanted:
    """An allocation to measure."""

    name: str
    widths: Widths


class Layers:
    """What every layer learned at every width, put together as an allocation asks."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.base = Recipe(weights=LOW, correct=STAGES)
        self._learned: dict[int, dict[str, Any]] = {}

    def learned(self, width: int) -> Mapping[str, Any]:
        """All layers at one width: weights, biases and grids of inputs."""
        path = LEARNED / f"lite0-w{width}.pickle"
        if width not in self._learned and path.exists():
            self._learned[width] = pickle.loads(path.read_bytes())
        if width not in self._learned:
            recipe = replace(self.base, weights=width)
            settled, seconds = self.bench.settled(recipe, f"learn at {width} bits")
            console.print(f"{width} bits: {seconds:.0f} s of CPU")
            self._learned[width] = _plain(settled)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(self._learned[width]))
        return self._learned[width]

    def settled(self, widths: Widths) -> tuple[Settled, Recipe]:
        """The network with these widths."""
        recipe = with_widths(self.base, widths)
        plain = settle(self.bench.module, self.bench.ranges(recipe), recipe)
        weights, biases, grids = dict(plain.weights), {}, dict(plain.grids)
        view = View(plain.module)
        for layer in plain.plan.weights:
            known = self.learned(widths.get(layer, LOW))  # the others have one width in all
            weights[layer], biases[layer] = known["weights"][layer], known["biases"][layer]
            owner = plain.plan.owner[view.sources(layer)[0]]
            grids[owner] = known["grids"][owner]
        module = set_biases(plain.module, biases)
        return replace(plain, module=module, weights=weights, grids=grids), recipe


def _plain(settled: Settled) -> dict[str, Any]:
    view = View(settled.module)
    biases = {
        layer: bias_of(view, settled.plan, layer, len(rounded.scale)).copy()
        for layer, rounded in settled.weights.items()
    }
    return {"weights": dict(settled.weights), "biases": biases, "grids": dict(settled.grids)}


def traded(bench: Bench, choices: tuple[int, ...], measure: str) -> Trade:
    """Losses by one measure, and costs."""
    recipe = Recipe(weights="mixed", choices=choices, budget={"size": SHARE})
    if measure == "pairwise":
        recipe = replace(recipe, solver="iqp")
    base = uniform(recipe, choices[0])
    ranges, free = bench.ranges(base), tuple(free_layers(bench.module, recipe))
    trade = weigh(bench.module, ranges, recipe, resolve("native"))
    with bench.spooled() as samples, step(f"{measure} of {choices}") as report:
        subject = Subject(bench.module, samples, base, choices, ranges)
        return trade.with_losses(measured(subject, Measure(measure, free), report))


def wanted(bench: Bench, measures: tuple[str, ...]) -> Iterator[Wanted]:
    """Chosen, random and uniform widths."""
    first = traded(bench, (LOW, HIGH), measures[0])
    yield _chosen(first)
    costs = {layer: of for layer, of in first.costs["size"].items() if len(of) > 1}
    low, high = (sum(of[w] for of in costs.values()) for w in (LOW, HIGH))
    for seed in range(RANDOM):
        yield Wanted(f"random {seed}", at_random(costs, low + SHARE * (high - low), seed))
    for width in UNIFORM:
        yield Wanted(f"uniform {width}", dict.fromkeys(costs, width))
    for measure in measures[1:]:
        yield _chosen(traded(bench, (LOW, HIGH), measure))
    wide = traded(bench, WIDE, measures[0])
    limit = {"size": f"{first.limits()['size']:.0f}B"}
    yield _chosen(replace(wide, recipe=replace(wide.recipe, budget=limit)))


def _chosen(trade: Trade) -> Wanted:
    assert trade.sensitivity is not None
    recipe, widths = trade.recipe, _free(trade)
    choices = "" if recipe.choices == (LOW, HIGH) else f", choices {recipe.choices}"
    return Wanted(f"{trade.sensitivity.measure}, {recipe.solver}{choices}", widths)


def _free(trade: Trade) -> Widths:
    free = {layer for layer, of in trade.costs["size"].items() if len(of) > 1}
    return {layer: width for layer, width in trade.allocated().widths.items() if layer in free}


def at_random(costs: Mapping[str, Mapping[Any, float]], limit: float, seed: int) -> Widths:
    """Layers in random order get the high width as long as it fits: no room is left unused."""
    widths, spent = dict.fromkeys(costs, LOW), sum(of[LOW] for of in costs.values())
    for layer in random.Random(seed).sample(sorted(costs), len(costs)):
        more = costs[layer][HIGH] - costs[layer][LOW]
        if spent + more <= limit:
            widths[layer], spent = HIGH, spent + more
    return widths


def run(done: Found, measures: tuple[str, ...]) -> None:
    """Measures what is missing; every allocation is written at once."""
    bench = Bench(efficientnet_lite0(Path(os.environ["NYBBLE_DATA"]) / "imagenet_500"))
    layers, reference = Layers(bench), bench.float_outputs()
    done["float"] = {"top1": bench.top1(reference), "loss": 0.0, "bytes": 0.0, "widths": {}}
    for one in wanted(bench, measures):
        if one.name not in done or done[one.name]["widths"] != one.widths:
            done[one.name] = _measured(layers, one, reference)
            STATE.parent.mkdir(parents=True, exist_ok=True)
            STATE.write_text(json.dumps(done, indent=1) + "\n")
        found = done[one.name]
        console.print(f"{one.name}: {found['top1']:.1f} %, {found['loss']:.4f} nats")


def _measured(layers: Layers, one: Wanted, reference: Outputs) -> dict[str, Any]:
    settled, recipe = layers.settled(one.widths)
    outputs = layers.bench.outputs(settled, recipe)
    bits = settled.plan.weights
    size = sum(settled.weights[layer].integers.size * int(bits[layer]) / 8 for layer in bits)
    return {
        "widths": one.widths,
        "bytes": size,
        "top1": layers.bench.top1(outputs),
        "loss": divergence(reference, outputs),
    }


def page(done: Found) -> str:
    """docs/mixed.md."""
    lines = [HEAD, "| widths | bytes of weights | top-1 | loss |", "|---|---:|---:|---:|"]
    rows = {name: found for name, found in done.items() if not name.startswith("random")}
    for name, found in rows.items():
        lines.append(
            f"| {name} | {found['bytes']:.0f} | {found['top1']:.1f} | {found['loss']:.4f} |"
        )
    randoms = [found for name, found in done.items() if name.startswith("random")]
    if randoms:
        lines += ["", _spread(randoms), "", _rank(rows, randoms)]
    return "\n".join([*lines, ""])


def _spread(randoms: list[dict[str, Any]]) -> str:
    top1 = sorted(found["top1"] for found in randoms)
    losses = sorted(found["loss"] for found in randoms)
    size = max(found["bytes"] for found in randoms)
    ranges = [
        f"{name} from {found[0]:.{digits}f} to {found[-1]:.{digits}f}, "
        f"{statistics.median(found):.{digits}f} in the middle"
        for name, digits, found in (("top-1", 1, top1), ("loss", 4, losses))
    ]
    return f"{len(randoms)} random allocations of at most {size:.0f} bytes: {'; '.join(ranges)}."


def _rank(rows: Found, randoms: list[dict[str, Any]]) -> str:
    """How many random ones beat what was chosen first."""
    name = next(name for name in rows if name.startswith(MEASURES))
    higher = sum(found["top1"] > rows[name]["top1"] for found in randoms)
    closer = sum(found["loss"] < rows[name]["loss"] for found in randoms)
    return f"Of these, {higher} have a higher top-1 and {closer} a smaller loss than *{name}*."


HEAD = """# Mixed widths against uniform and random ones

EfficientNet-Lite0, activations of 8 bits, first and last layer of 8 bits, the others of 4 or 8
within half of the bytes between all 4 and all 8 (uniform 6 takes the same bytes). Top-1 in percent
of the deployed library on 500 labelled ImageNet images; every tenth calibrates, without its
label: one image is 0.2 points. *Loss* is the KL divergence from the float network's probabilities
on the same images, in nats, and tells finer differences. All allocations get the same stages:
AdaQuant, every layer from the float network's values (`sequential` off), 150 iterations. A random
allocation gives layers in random order 8 bits as long as they fit. Chosen ones are named by their
measure of sensitivity and their solver. Written by `python -m benchmarks.mixed`.
"""


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, measures, writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--measures", default=",".join(MEASURES), help="of sensitivity")
    args = parser.parse_args(argv)
    done: Found = json.loads(STATE.read_text()) if STATE.exists() else {}
    if not args.table:
        run(done, tuple(args.measures.split(",")))
    PAGE.write_text(page(done))
    console.print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
