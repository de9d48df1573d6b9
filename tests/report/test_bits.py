"""The page about bits says what the study says, and draws it so that it can be read."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from nybble.allocation.result import Allocation
from nybble.report import columns, front, svg, tables, units
from nybble.report.study import Fidelity, Outcome, Point, Study
from nybble.report.svg import Box, Scale
from tests.report.studies import study_of
from tests.report.test_pages import Balance, text_of

STUDY = study_of(14)


@pytest.mark.parametrize("study", [STUDY, study_of(2 + 1), study_of(200), study_of(14, False),
                                   study_of(9, choices=("ternary", 3, 5, 8))])  # fmt: skip
def test_page_is_wellformed_self_contained_and_escaped(study: Study) -> None:
    page = study.to_html()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "layers &lt;&amp;&gt;" in page
    assert "conv&lt;0&gt;" in page
    assert "conv<0>" not in page
    assert "<script" not in page
    assert "url(" not in page
    assert study.to_html() == page


def test_every_drawing_has_a_title_axes_and_a_sentence() -> None:
    page = STUDY.to_html()
    drawn = [part for part in re.split(r"(?=<section|<figure)", page) if "<svg" in part]
    assert len(drawn) == 6
    for part in drawn:
        assert re.search(r"<h2>|<figcaption>", part)
        assert re.search(r'class="note">[^<]{40,}\.', part)
        assert len(re.findall(r'class="mid title"', part)) >= 2
    for unit in ("bits of weights", "SNR (dB)", "size of weights", "bit operations of one sample",
                 "loss (perturbation)", " kB<", " µs<"):  # fmt: skip
        assert unit in page, unit


def test_heat_map_has_a_cell_for_every_loss_and_rings_the_choice() -> None:
    drawn = columns.heat_map(STUDY)
    assert len(re.findall(r'class="cell(?: fixed)?"', drawn)) == sum(
        map(len, STUDY.losses.values())
    )
    assert len(re.findall(r'class="ring"', drawn)) == 14
    for layer, width in STUDY.allocation.widths.items():
        name = layer.replace("<", "&lt;").replace(">", "&gt;")
        assert re.search(
            rf"<title>{re.escape(name)}, {width} bits: [^<]*chosen</title>", drawn
        ) or (f"{name}, 8 bits: the only one it may have, chosen" in drawn)


def test_stronger_colour_is_more_loss() -> None:
    drawn = columns.heat_map(STUDY)
    shown = re.findall(r'class="cell" fill-opacity="([\d.]+)"><title>[^<]*: ([\d.e-]+)', drawn)
    pairs = sorted((float(loss), float(opacity)) for opacity, loss in shown)
    assert [o for _, o in pairs] == sorted(o for _, o in pairs)
    assert pairs[0][1] < 0.1
    assert pairs[-1][1] == 1


def test_narrow_columns_have_marks_that_fit() -> None:
    drawn = columns.heat_map(study_of(200))
    assert len(re.findall(r'class="pick"', drawn)) == 200
    assert 'class="ring"' not in drawn


def test_the_choice_and_every_uniform_width_stand_on_the_front() -> None:
    drawn = front.front(STUDY, "size")
    assert len(re.findall('class="mark-uniform"', drawn)) == 3
    assert len(re.findall('class="mark-chosen"', drawn)) == 1
    assert len(re.findall('class="spot"', drawn)) == len(STUDY.fronts["size"])
    assert "budget" in drawn
    assert "budget" not in front.front(STUDY, "bops")  # which is not limited


def test_the_choice_lies_on_the_front_of_its_budget() -> None:
    chosen = STUDY.chosen("size")
    assert math.isclose(chosen.loss, STUDY.allocation.objective, rel_tol=1e-9)
    below = [p.loss for p in STUDY.fronts["size"] if p.cost <= chosen.cost]
    assert chosen.loss <= min(below) * (1 + 1e-9)
    for point in STUDY.uniform("size").values():
        at = [p.loss for p in pareto_below(STUDY, point)]
        assert not at or min(at) <= point.loss * (1 + 1e-9)


def pareto_below(study: Study, point: Point) -> list[Point]:
    return [p for p in study.fronts["size"] if p.cost <= point.cost]


def test_uniform_widths_keep_what_is_fixed() -> None:
    sizes = STUDY.costs["size"]
    layers = list(sizes)
    expected = sum(sizes[n][4] for n in layers[1:-1]) + sizes[layers[0]][8] + sizes[layers[-1]][8]
    assert math.isclose(STUDY.uniform("size")[4].cost, expected)


def test_page_tells_the_numbers() -> None:
    page = STUDY.to_html()
    limit = STUDY.allocation.limits["size"]
    assert f"within {limit / 1e3:.3g} kB" in page
    assert "proven to be the least loss" in page
    assert re.search(r"<td>float</td>.*?<td class=\"n\">93\.00 %</td>", page)
    assert "top-1 -0.94 points" in page
    assert "2,000 samples" in page


def test_page_tells_bad_news() -> None:
    found = replace(STUDY.allocation, gap=0.031, limits={"size": 1.0})
    page = replace(STUDY, allocation=found).to_html()
    assert "✗ not size" in page
    assert "at most 3.1 % from the least loss" in page


def test_without_labels_outputs_are_compared() -> None:
    page = study_of(14, labels=False).to_html()
    assert "Top-1" not in page
    assert "output SNR" in page
    assert "25.0 dB" in page


def test_pairwise_terms_are_owned_up_to() -> None:
    assert "Pairwise terms are left out" in replace(STUDY, measure="pairwise").to_html()


def test_layers_without_difference_and_without_signal() -> None:
    exact = dict.fromkeys(STUDY.losses, Fidelity(math.inf, 1.0))
    drawn = columns.signals(replace(STUDY, fidelity=exact))
    assert "∞ dB" in drawn
    names = list(STUDY.losses)
    worse = {**exact, names[3]: Fidelity(-7.5, -0.25), names[4]: Fidelity(-math.inf, 0.0)}
    for found in (exact, worse):
        page = replace(STUDY, fidelity=found).to_html()
        assert "nan" not in page
        assert not re.search(r'(?:y|height|cy)="-?(?:inf|nan)', page)


def test_losses_at_and_below_zero_are_drawn() -> None:
    names = list(STUDY.losses)
    flat = {n: dict.fromkeys(row, 0.0) for n, row in STUDY.losses.items()}
    odd = {**STUDY.losses, names[2]: {2: 0.3, 4: -1e-3, 8: 0.0}}
    for losses in (flat, odd):
        fronts = {"size": (Point(1e3, 0.0), Point(2e3, -1e-3))}
        page = replace(STUDY, losses=losses, fronts=fronts).to_html()
        assert "nan" not in page
        assert not re.search(r'="[^"]*inf[^o]', page)


def test_page_of_losses_alone() -> None:
    one = {"conv": {4: 0.5, 8: 0.25}}
    size = {"conv": {4: 100.0, 8: 200.0}}
    alone = Study("one", Allocation({"conv": 4}, 0.5, None, {}, {}), one, {"size": size}, {})
    page = alone.to_html()
    assert "Pareto" not in page
    assert "Float, uniform widths" not in page
    assert "What is left" not in page
    assert "1 of 1 layers are narrower" in page


def test_table_for_the_terminal() -> None:
    shown = text_of(tables.outcomes(STUDY))
    assert re.search(r"chosen +[\d.]+ kB +[\d.]+ kB +1\.5 ms +92\.06 %", shown)
    assert "of 8 bits" in shown
    assert "dB" in text_of(tables.outcomes(study_of(5, labels=False)))


def test_outcome_snr() -> None:
    assert Outcome("x", "chosen", error=1e-3).snr == pytest.approx(30)
    assert Outcome("x", "chosen", error=0.0).snr == math.inf


def test_decibels() -> None:
    shown = [units.decibels(v) for v in (None, 23.44, -3.0, math.inf, -math.inf)]
    assert shown == ["-", "23.4 dB", "-3.0 dB", "∞ dB", "-∞ dB"]


# ---------------------------------------------------------------- the marks


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (Scale(0, 8, 100, 0), [0, 2, 4, 6, 8]),
        (Scale(0.13, 0.97, 0, 1), [0.2, 0.4, 0.6, 0.8]),
        (Scale(3e-4, 2e-1, 0, 1, True), [1e-3, 1e-2, 1e-1]),
        (Scale(0.9, 12, 0, 1, True), [1, 2, 5, 10]),
        (Scale(2e-9, 3e3, 0, 1, True), [1e-8, 1e-5, 1e-2, 1e1]),
    ],
)
def test_ticks_are_round_and_few(scale: Scale, expected: list[float]) -> None:
    assert scale.ticks(5) == pytest.approx(expected)


def test_scale_puts_the_ends_at_the_ends() -> None:
    up = Scale(1e-3, 1e3, 200, 20, True)
    assert [up(v) for v in (1e-3, 1, 1e3)] == pytest.approx([200, 110, 20])
    assert up(1e-9) == 200  # held
    assert up(0.0) == 200


def test_scale_of_equal_values_has_an_extent() -> None:
    for values in ([0.0, 0.0], [3.0], [-2.0, -2.0]):
        made = svg.scale(values, 0, 100)
        assert made.lo < values[0] < made.hi
    made = svg.scale([5.0], 0, 100, log=True)
    assert made.lo < 5 < made.hi


def test_labels_keep_clear_of_one_another() -> None:
    room, taken = Box(0, 0, 400, 300), [Box(95, 95, 10, 10)]
    for _ in range(5):
        svg.label((100, 100), "chosen", "", room, (taken, []))
    boxes = taken[1:]
    assert all(b.within(room) for b in boxes)
    assert not any(a.meets(b) for i, a in enumerate(boxes) for b in [*boxes[:i], taken[0]])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["conv1", "fc"], ["conv1", "fc"]),
        (["/a/Conv", "/a/Conv_1"], ["a/Conv", "a/Conv_1"]),  # the ends tell them apart
        (["/blocks/blocks.0/conv/Conv", "/fc/Gemm"], ["blocks.0/conv", "fc"]),
        (["x" * 40, "y"], ["…" + "x" * 23, "y"]),
        ([], []),
    ],
)
def test_short_names(names: list[str], expected: list[str]) -> None:
    assert columns.short(names) == expected
