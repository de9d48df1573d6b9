"""The pages in a real browser: nothing overlaps, nothing leaves the page, dark mode is dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nybble.report import html as compile_page
from tests.report.studies import study_of
from tests.report.test_pages import REPORT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (360, 768, 1280)
PAGES = {
    "14 layers": lambda: study_of(14).to_html(),
    "60 layers, no labels": lambda: study_of(60, labels=False).to_html(),
    "200 layers": lambda: study_of(200).to_html(),
    "five widths": lambda: study_of(24, choices=("ternary", 2, 3, 4, 8)).to_html(),
    "compile report": lambda: compile_page.render(REPORT),
}

# The page stands in a frame of each width, as it is; the outer page measures it.
MEASURE = """
const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
function look(frame) {
  const inner = frame.contentDocument, root = inner.documentElement, found = {};
  found.width = frame.clientWidth;
  found.overflow = root.scrollWidth - root.clientWidth;
  found.outside = []; found.overlapping = []; found.clipped = [];
  for (const svg of inner.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")];
    const boxes = texts.map(t => t.getBoundingClientRect()), all = svg.getBoundingClientRect();
    texts.forEach((t, i) => {
      const b = boxes[i];
      if (b.left < all.left - 1 || b.right > all.right + 1 || b.top < all.top - 1
          || b.bottom > all.bottom + 1) found.outside.push(t.textContent);
      for (let j = 0; j < i; j++)
        if (overlap(b, boxes[j])) found.overlapping.push([texts[j].textContent, t.textContent]);
    });
  }
  for (const e of inner.querySelectorAll("h1, h2, p.note, .chip, figcaption, dd, .value"))
    if (e.getBoundingClientRect().right > root.clientWidth + 1) found.clipped.push(e.textContent);
  const style = e => inner.defaultView.getComputedStyle(e);
  found.drawings = inner.querySelectorAll("svg").length;
  found.ground = style(inner.body).backgroundColor;
  found.ink = style(inner.querySelector("h1")).color;
  const note = inner.querySelector("svg text");
  found.text = note ? style(note).fill : found.ink;
  found.cells = [...inner.querySelectorAll(".cell")].map(c => style(c).fill);
  found.loaded = inner.defaultView.performance.getEntriesByType("resource").length;
  return found;
}
onload = () => document.body.replaceChildren(
  document.createTextNode("MEASURED" + JSON.stringify([...frames_].map(look)) + "MEASURED"));
"""


def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return found


def looked_at(page: str, folder: Path, dark: bool = False) -> list[dict[str, Any]]:
    """What the browser lays out, for each of `WIDTHS`."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}">'
        "</iframe>"
        for width in WIDTHS
    )
    script = f"const frames_ = document.getElementsByTagName('iframe');{MEASURE}"
    outer = folder / "outer.html"
    outer.write_text(
        f"<!doctype html><meta charset=utf-8><body>{frames}<script>{script}</script></body>"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,3000",
             f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    flags += ["--force-dark-mode"] if dark else []
    done = subprocess.run(
        [browser(), *flags, "--dump-dom", outer.as_uri()],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    found = re.search("MEASURED(.*)MEASURED", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    measured: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    assert [m["width"] for m in measured] == list(WIDTHS)
    return measured


@pytest.mark.parametrize("name", PAGES)
def test_page_is_laid_out_well(name: str, tmp_path: Path) -> None:
    for seen in looked_at(PAGES[name](), tmp_path):
        assert seen["overflow"] <= 0, seen["width"]
        assert seen["outside"] == [], seen["width"]
        assert seen["overlapping"] == [], seen["width"]
        assert seen["clipped"] == [], seen["width"]
        assert seen["loaded"] == 0
        assert (seen["drawings"] == 0) == (name == "compile report")


def test_dark_mode_is_dark_and_can_be_read(tmp_path: Path) -> None:
    page = study_of(14).to_html()
    (light, dark) = (looked_at(page, tmp_path, dark=dark)[-1] for dark in (False, True))
    assert luminance(dark["ground"]) < 0.05
    assert luminance(light["ground"]) > 0.85
    for seen in (light, dark):
        assert contrast(seen["ink"], seen["ground"]) > 7
        assert contrast(seen["text"], seen["ground"]) > 4.5
    assert light["cells"] != dark["cells"]


def luminance(color: str) -> float:
    """WCAG's relative luminance of ``rgb(r, g, b)``."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio, from 1 to 21."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
