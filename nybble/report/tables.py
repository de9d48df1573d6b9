"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nybble.report import choices, tuned, units
from nybble.report.data import LayerRow, Variant
from nybble.report.parity import ParityReport
from nybble.report.study import Study, in_words
from nybble.runtime.manifest import Manifest

BAR = 8
WIDE = 112  # columns of a terminal
LONGEST_NAME = 32
_NAMES = ("kernel", "architecture")
_NUMBERS = ("ratio", "noise", "threads")


def variants(rows: Sequence[Variant]) -> Table:
    """Top-1, size and latency of every form, with ratios to the first that was measured."""
    table = _table("Float, simulated, deployed")
    for column in ("", "top-1", "against float", "size", "latency", "speed"):
        table.add_column(column, justify="right" if column else "left")
    base = rows[0]
    for row in rows:
        gained = row.accuracy is not None and base.accuracy is not None and row is not base
        delta = f"{100 * (row.accuracy - base.accuracy):+.2f}" if gained else units.NONE  # type: ignore[operator]
        faster = row.seconds and base.seconds and row is not base
        speed = f"{base.seconds / row.seconds:.2f}x" if faster else units.NONE  # type: ignore[operator]
        cells = (units.share(row.accuracy), delta, units.size(row.size))
        table.add_row(row.name, *cells, units.duration(row.seconds), speed)
    return table


def outcomes(study: Study) -> Table:
    """Size, latency and top-1 or output error of float, each uniform width, and the choice."""
    rows = study.outcomes
    labelled = any(row.accuracy is not None for row in rows)
    table = _table(study.title)
    for column in ("", "weights", "library", "latency", "top-1" if labelled else "output SNR"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        noise = units.decibels(None if row.error is None else row.snr)
        quality = units.share(row.accuracy) if labelled else noise
        cells = (units.size(row.weights), units.size(row.size), units.duration(row.seconds))
        style = "bold" if row.kind == "chosen" else ""
        table.add_row(row.name, *cells, quality, style=style)
    widths = list(study.allocation.widths.values())
    counts = (f"{widths.count(w)} of {in_words(w)}" for w in study.widths if w in widths)
    table.caption = f"chosen: {', '.join(counts)}"
    return table


def layers(rows: Sequence[LayerRow], width: int = WIDE) -> Table:
    """Widths, kernel and work of every layer, and its time if it was measured.

    A narrow terminal gets fewer columns.
    """
    table = _table("Layers of the deployed library")
    wide, total = width >= WIDE, sum(row.seconds or 0 for row in rows)
    for column in ("layer", "op", "widths"):
        table.add_column(column, no_wrap=True)
    table.add_column("kernel", style="cyan", no_wrap=True, min_width=13)
    for column in [*(["MACs"] if wide else []), *(["time", "share"] if total else [])]:
        table.add_column(column, justify="right", no_wrap=True, min_width=7)
    table.add_column("", width=BAR if wide else 0)
    for row in rows:
        work = [units.count(row.macs)] if wide else []
        name = _tail(row.name, LONGEST_NAME if wide else LONGEST_NAME // 2)
        times = _times(row, total, BAR if wide else 0) if total else []
        table.add_row(Text(name), row.op, row.widths, row.kernel, *work, *times)
    spent = f", {units.duration(total)} in kernels" if total else ""
    table.caption = f"{len(rows)} layers{spent}"
    return table


def _times(row: LayerRow, total: float, bar: int) -> list[str | Text]:
    """A layer's time, its share of ``total``, and that as a bar of at most ``bar`` letters."""
    part = (row.seconds or 0) / total
    share = f"{100 * part:.1f} %" if row.seconds else units.NONE
    return [units.duration(row.seconds), share, Text("█" * round(bar * part), style="green")]


def chosen(rows: Sequence[LayerRow]) -> RenderableType:
    """How the kernels were chosen; nothing where none was measured."""
    found = choices.cells(rows)
    if not found:
        return Text()
    table = _table("Kernels as measured when the library was compiled")
    for i, column in enumerate(choices.COLUMNS):
        table.add_column(column, justify="left" if i < 3 else "right", no_wrap=True)
    for name, *cells in found:
        table.add_row(Text(_tail(name, LONGEST_NAME)), *cells)
    table.caption = "one image, one thread; 8-bit and float: the same layer's, against the chosen"
    return table


def decided(rows: Sequence[LayerRow]) -> RenderableType:
    """Where every layer's decisions are from; nothing where none were recorded."""
    found = tuned.cells(rows)
    if not found:
        return Text()
    table = _table("Decisions of the kernels")
    for column in tuned.COLUMNS[:-1]:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", no_wrap=True)
    for name, kernel, source, *numbers, _ in found:
        table.add_row(Text(_tail(name, LONGEST_NAME)), kernel, source.partition(":")[0], *numbers)
    table.caption = "ratio: the recorded time by that of the defaults; nearest: of a layer like it"
    return table


def kernels_on_gpu(manifest: Manifest) -> RenderableType:
    """Registers, spills and shared memory of every kernel; nothing for CPUs."""
    if manifest.device is None:
        return Text()
    table = _table(f"Kernels of {manifest.target}, as ptxas has them")
    for column in ("kernel", "architecture", "registers", "spills", "shared memory"):
        justify: Literal["left", "right"] = "left" if column in _NAMES else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for use in manifest.device["usage"]:
        spills = Text(units.size(use["spills"]) if use["spills"] else units.NONE)
        spills.stylize("red" if use["spills"] else "green")
        shared = units.size(use["shared"]) if use["shared"] else units.NONE
        table.add_row(use["symbol"], use["arch"], str(use["registers"]), spills, shared)
    table.caption = "registers and spilled bytes of a thread, shared memory of a block"
    return table


def _tail(name: str, longest: int) -> str:
    """The end of a long name: what tells layers apart."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def parity(report: ParityReport) -> RenderableType:
    """One line when everything is equal, else a table of what differs."""
    wrong = [row for row in report.rows if row.differing]
    verdict = Text(
        f"Parity with the law: {len(report.rows)} layers, {report.elements:,} values, "
        f"{report.threads} thread(s): ",
        style="bold",
    )
    verdict.append(*(("zero differences", "green") if not wrong else ("DIFFERENT", "red")))
    if not wrong:
        return verdict
    table = _table("Layers that differ")
    for column in ("layer", "kernel", "dtype", "elements", "differing", "largest", "promised"):
        table.add_column(column, justify="right" if column in ("elements", "differing") else "left")
    for row in wrong:
        numbers = (f"{row.elements:,}", f"{row.differing:,}", f"{row.largest:g}")
        table.add_row(
            Text(row.layer), row.kernel, row.dtype, *numbers, "exact" if row.exact else "close"
        )
    return Group(verdict, table)


def about(facts: Sequence[tuple[str, str]]) -> Table:
    """Facts as two columns."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in facts:
        table.add_row(what, Text(value))  # as it is: brackets would be taken for markup
    return table


def exceptions(manifest: Manifest) -> Text:
    """Whether the network is integer-only; if not, which ops and layers are float."""
    if manifest.rounding is None:
        return Text("A float model: nothing was quantized.", style="yellow")
    if not manifest.float_ops and not manifest.kept_float:
        return Text("Integer-only: no float op between the borders.", style="green")
    lines = [f"  float op      {op}" for op in manifest.float_ops]
    lines += [f"  kept float    {layer}" for layer in manifest.kept_float]
    return Text("\n".join(["Not integer-only:", *lines]), style="yellow")


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
