"""The page about bits: what each layer needs, what it got, and what came of it."""

from __future__ import annotations

from html import escape

from nybble.report import columns, front, parts, tuned, units
from nybble.report.study import Outcome, Study, in_words

TOP1, SIZE = "Top-1", "Size of weights"


def render(study: Study) -> str:
    """The whole page, self-contained; the same study gives the same text."""
    sections = (
        _outcomes(study),
        _fronts(study),
        parts.section("Chosen widths", columns.widths_along(study), _widths_note(study)),
        parts.section("Sensitivity", columns.heat_map(study), _heat_note(study)),
        _fidelity(study),
        _layers(study),
        tuned.section(study.decided),
        parts.facts("How this was made", study.facts) if study.facts else "",
    )
    verdict = parts.chips(_badges(study))
    return parts.document(study.title, "Nybble report: widths of weights", verdict, sections)


def _badges(study: Study) -> list[tuple[str, bool]]:
    """What holds of the choice: its limits, and that no other is better."""
    found = study.allocation
    badges = [
        (f"{cost} {front.WORDS[cost](found.costs[cost])} within {front.WORDS[cost](limit)}",
         found.costs[cost] <= limit * (1 + 1e-9))
        for cost, limit in found.limits.items()
    ]  # fmt: skip
    if found.limits and found.gap is not None:
        proven = "proven to be the least loss" if found.gap <= 1e-6 else (
            f"at most {100 * found.gap:.2g} % from the least loss")  # fmt: skip
        badges.append((proven, True))
    return badges


# ---------------------------------------------------------------- outcomes


def _outcomes(study: Study) -> str:
    """Bars, and the same figures as a table."""
    rows = study.outcomes
    if not rows:
        return ""
    base = rows[0]
    charts = (
        parts.chart(TOP1, f"{study.evaluated:,} samples, higher is better",
                    [(r.name, r.kind, r.accuracy) for r in rows], units.share,
                    lambda v: f"{100 * (v - (base.accuracy or 0)):+.2f}"),
        parts.chart("Signal to noise of the outputs", "dB, higher is better",
                    [] if base.accuracy is not None else
                    [(r.name, r.kind, r.snr) for r in rows if r.error],
                    lambda v: f"{v:.1f} dB", lambda v: f"{v - _first(rows):+.1f}"),
        parts.chart(SIZE, "lower is better",
                    [(r.name, r.kind, r.weights) for r in rows], units.size),
        parts.chart("Latency of one sample", "lower is better",
                    [(r.name, r.kind, r.seconds) for r in rows], units.duration),
    )  # fmt: skip
    note = _outcomes_note(study)
    return (
        f'<section class="charts">{"".join(charts)}</section>'
        f"{parts.section('Float, uniform widths, and the choice', _outcome_table(study), note)}"
    )


def _first(rows: tuple[Outcome, ...]) -> float:
    return next(r.snr for r in rows if r.error)


def _outcomes_note(study: Study) -> str:
    chosen = next((r for r in study.outcomes if r.kind == "chosen"), None)
    base = study.outcomes[0]
    if chosen is None:
        return ""
    said = []
    if chosen.weights and base.weights:
        said.append(f"{chosen.weights / base.weights:.3f} of float's weight bytes")
    if chosen.accuracy is not None and base.accuracy is not None:
        said.append(f"top-1 {100 * (chosen.accuracy - base.accuracy):+.2f} points")
    elif chosen.error:
        said.append(f"outputs {units.decibels(chosen.snr)} above their error")
    if chosen.seconds and base.seconds:
        said.append(f"{base.seconds / chosen.seconds:.2f} times as fast as float")
    kinds = "the deployed libraries" if base.size is not None else "every form of the network"
    return f"The choice: {', '.join(said)}. Measured on {kinds}." if said else ""


def _outcome_table(study: Study) -> str:
    base = study.outcomes[0]
    labelled = base.accuracy is not None
    quality = ("top-1", "against float") if labelled else ("output SNR",)
    names = ("", "weights", "of float", "library", "latency", "speed", *quality)
    cells = []
    for row in study.outcomes:
        name = f"<b>{escape(row.name)}</b>" if row.kind == "chosen" else escape(row.name)
        of = _quotient(row.weights, base.weights)
        speed = _quotient(base.seconds, row.seconds)
        cells.append((name, units.size(row.weights), of, units.size(row.size),
                      units.duration(row.seconds), speed, *_quality(row, base)))  # fmt: skip
    return parts.table(names, cells, len(names) - 1)


def _quotient(one: float | None, other: float | None) -> str:
    return f"{one / other:.2f}x" if one and other else units.NONE


def _quality(row: Outcome, base: Outcome) -> tuple[str, ...]:
    if base.accuracy is None:
        return (units.decibels(None if row.error is None else row.snr),)
    if row.accuracy is None or row is base:
        return units.share(row.accuracy), units.NONE
    return units.share(row.accuracy), f"{100 * (row.accuracy - base.accuracy):+.2f}"


# ---------------------------------------------------------------- drawings


def _fronts(study: Study) -> str:
    if not study.fronts:
        return ""
    note = (
        "A step of the line is the least loss that any choice of widths reaches at that cost: what "
        "lies above it wastes bits."
    )
    if study.measure == "pairwise":
        note += " Pairwise terms are left out here."
    figures = "".join(
        f"<figure><figcaption>Loss against {cost}</figcaption>{front.front(study, cost)}"
        f'<p class="note">{_against(study, cost)}</p></figure>'
        for cost in study.fronts
    )
    return parts.section("Pareto front", f'<div class="pairs">{figures}</div>', note)


def _against(study: Study, cost: str) -> str:
    """The choice beside the uniform width that costs nearly the same."""
    chosen, words = study.chosen(cost), front.WORDS[cost]
    others = [(w, p) for w, p in study.uniform(cost).items() if p.loss > 0]
    said = f"The choice takes {words(chosen.cost)}"
    if not others:
        return f"{said}."
    width, near = min(others, key=lambda pair: abs(pair[1].cost - chosen.cost))
    return (
        f"{said}, {_quotient(chosen.cost, near.cost)} of {in_words(width)} everywhere, and has "
        f"{chosen.loss / near.loss:.2g} times its loss."
    )


def _widths_note(study: Study) -> str:
    chosen, sizes = study.allocation.widths, study.costs["size"]
    widest = {layer: max(row.values()) for layer, row in sizes.items()}
    narrowed = [n for n, w in chosen.items() if sizes[n][w] < widest[n]]
    total = sum(widest.values())
    held = sum(widest[n] for n in narrowed)
    largest = max(widest, key=lambda n: widest[n])
    return (
        f"{len(narrowed)} of {len(chosen)} layers are narrower than they could be; they hold "
        f"{100 * held / total:.0f} % of the weights. Outlines in the lower half: the size at the "
        f"widest. The largest layer is {escape(largest)}, with {in_words(chosen[largest])}."
    )


def _heat_note(study: Study) -> str:
    note = (
        "Each column is a layer, each row a width: the stronger a cell's colour, the more is lost "
        "when this layer alone gets that width."
    )
    layers, narrowest = study.open_layers, study.widths[-1]
    worst = {n: study.losses[n][narrowest] for n in layers if narrowest in study.losses[n]}
    if worst:
        most, least = max(worst, key=lambda n: worst[n]), min(worst, key=lambda n: worst[n])
        note += (
            f" With {in_words(narrowest)} the most sensitive is {escape(most)} "
            f"({worst[most]:.3g}), the least {escape(least)} ({worst[least]:.3g})."
        )
    return note


def _fidelity(study: Study) -> str:
    if not study.fidelity:
        return ""
    weakest = min(study.fidelity, key=lambda n: study.fidelity[n].snr)
    snr, cosine = study.fidelity[weakest]
    note = (
        f"Each layer's output as the next one reads it, against the float network's, on "
        f"{study.samples:,} calibration samples; errors of earlier layers are in it, so look for "
        f"where it falls. The weakest is {escape(weakest)}: {units.decibels(snr)}, cosine "
        f"{cosine:.4f}."
    )
    return parts.section("What is left of every layer's output", columns.signals(study), note)


def _layers(study: Study) -> str:
    """All figures behind the drawings, folded away."""
    widths = study.widths
    names = ("layer", "chosen", "size", "SNR", "cosine",
             *(f"loss, {in_words(w)}" for w in widths))  # fmt: skip
    cells = []
    for layer, losses in study.losses.items():
        width = study.allocation.widths[layer]
        seen = study.fidelity.get(layer)
        each = (f"{losses[w]:.3g}" if w in losses and len(losses) > 1 else units.NONE
                for w in widths)  # fmt: skip
        cells.append((
            escape(layer), in_words(width), units.size(study.costs["size"][layer][width]),
            units.decibels(seen.snr if seen else None),
            f"{seen.cosine:.5f}" if seen else units.NONE, *each,
        ))  # fmt: skip
    table = parts.table(names, cells, len(names) - 2)
    folded = f"<details><summary>{len(cells)} layers</summary>{table}</details>"
    return parts.section("Every layer in figures", folded)
