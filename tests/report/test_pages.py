"""Tables and the page show what the data says, and escape it."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console, RenderableType

from nybble.report import html, tables, units
from nybble.report.data import LayerRow, Report, Variant, facts, layer_rows
from nybble.report.parity import ParityReport, ParityRow
from nybble.runtime.session import LayerTime
from tests.runtime.tiny import tiny_manifest

LAYERS = (
    LayerRow("stem<1>", "conv2d", "int8 x uint8", "cpu.int8.avx2", 2_000_000, 3e-5, ("no & why",)),
    LayerRow("fc", "linear", "int8 x uint8", "cpu.generic", 640, 1e-5),
)
VARIANTS = (
    Variant("float", 0.93, 800_000, 1e-3),
    Variant("simulated", 0.925),
    Variant("deployed", 0.925, 200_000, 2.5e-4),
)
SAME = ParityRow("stem<1>", "cpu.int8.avx2", "uint8", 100, 0, 0.0, True)
REPORT = Report(
    "A & B", (("target", "x86-64"),), VARIANTS, LAYERS, (), (), ParityReport((SAME,), 2)
)


def text_of(what: RenderableType) -> str:
    stream = io.StringIO()
    Console(file=stream, width=140).print(what)
    return stream.getvalue()


class Balance(HTMLParser):
    """Collects open tags and fails on a wrong end tag."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}, "loads something"
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_wellformed_self_contained_and_escaped() -> None:
    page = html.render(REPORT)
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "<h1>A &amp; B</h1>" in page
    assert "stem&lt;1&gt;" in page
    assert "no &amp; why" in page
    assert "url(" not in page
    assert html.render(REPORT) == page


def test_page_tells_the_numbers() -> None:
    page = html.render(REPORT)
    assert "92.50 % (-0.50)" in page
    assert "200 kB (0.25x)" in page
    assert "75.0 %" in page  # of the time in the first layer
    assert "✓ integer-only" in page
    assert "✓ equal to the law" in page


def test_page_tells_bad_news() -> None:
    wrong = ParityReport((replace(SAME, differing=7, largest=2.0),), 1)
    page = html.render(replace(REPORT, parity=wrong, float_ops=("softmax: relax.nn.softmax",)))
    assert "✗ not integer-only" in page
    assert "✗ not equal to the law" in page
    assert "There are differences" in page
    assert "softmax: relax.nn.softmax" in page


def test_page_without_measurements() -> None:
    rows = tuple(replace(row, seconds=None, macs=0) for row in LAYERS)
    page = html.render(Report("untimed", (), (Variant("float"),), rows))
    assert "Where the time goes" not in page
    assert "Parity" not in page


def test_variant_table_compares_with_the_first() -> None:
    shown = text_of(tables.variants(VARIANTS))
    assert re.search(r"deployed +92\.50 % +-0\.50 +200 kB +250 µs +4\.00x", shown)


@pytest.mark.parametrize("width", [80, 140])
def test_layer_table_has_one_line_a_layer(width: int) -> None:
    rows = [replace(LAYERS[0], name="/blocks/" * 9 + str(i)) for i in range(3)]
    stream = io.StringIO()
    Console(file=stream, width=width).print(tables.layers(rows, width))
    lines = stream.getvalue().splitlines()
    assert [sum(f"/{i} " in line for line in lines) for i in range(3)] == [1, 1, 1]
    assert sum("30 µs" in line for line in lines) == 3
    assert max(map(len, lines)) <= width


def test_layers_without_times_have_no_columns_for_them() -> None:
    shown = text_of(tables.layers([replace(row, seconds=None) for row in LAYERS]))
    assert "MACs" in shown
    assert not re.search(r"time|share|in kernels", shown)


def test_parity_table_shows_only_what_differs() -> None:
    assert "zero differences" in text_of(tables.parity(ParityReport((SAME,), 1)))
    wrong = replace(SAME, layer="other", differing=7)
    shown = text_of(tables.parity(ParityReport((SAME, wrong), 1)))
    assert "DIFFERENT" in shown
    assert "other" in shown
    assert "stem" not in shown


def test_exceptions() -> None:
    assert "float model" in text_of(tables.exceptions(tiny_manifest()))
    manifest = tiny_manifest(recipe={"weights": 8}, rounding="half_up")
    assert "Integer-only" in text_of(tables.exceptions(manifest))
    shown = text_of(tables.exceptions(replace(manifest, kept_float=("fc: too small",))))
    assert "Not integer-only" in shown
    assert "fc: too small" in shown


def test_rows_join_times_with_called_layers_only() -> None:
    manifest = tiny_manifest()
    times = [LayerTime(manifest.layers[0], 1.0), LayerTime(manifest.layers[2], 3.0)]
    assert [row.seconds for row in layer_rows(manifest, times)] == [1.0, None, 3.0]
    assert [row.seconds for row in layer_rows(manifest)] == [None, None, None]


def test_facts_leave_out_what_is_unknown() -> None:
    told = dict(facts(tiny_manifest(), threads=2))
    assert told["threads"] == "2"
    assert told["inputs"] == "x: float32[n, 4]"
    assert "rounding" not in told


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.duration(None), "-"),
        (units.duration(1.234), "1.23 s"),
        (units.duration(0.00123), "1.23 ms"),
        (units.duration(2e-7), "0.2 µs"),
        (units.size(12_345_678), "12.3 MB"),
        (units.size(999), "0.999 kB"),
        (units.share(0.92434), "92.43 %"),
        (units.count(1_820_000), "1.82 M"),
        (units.count(640), "640"),
        (units.count(0), "-"),
    ],
)
def test_units(shown: str, expected: str) -> None:
    assert shown == expected
