"""One self-contained HTML page: style, bars and data inside, nothing loaded from elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape

from nybble.report import choices, parts, tuned, units
from nybble.report.data import LayerRow, Report, Variant


def render(report: Report) -> str:
    """The whole page; the same report gives the same text."""
    sections = (
        _variants(report.variants),
        _times(report.layers),
        _layers(report.layers),
        _choices(report.layers),
        tuned.section(tuned.cells(report.layers)),
        _exceptions(report),
        _parity(report),
        parts.facts("The library", report.facts),
    )
    return parts.document(report.title, "Nybble compile report", _verdict(report), sections)


def _verdict(report: Report) -> str:
    badges = [("integer-only", not report.float_ops and not report.kept_float)]
    if report.parity is not None:
        badges.append(("equal to the law, bit for bit", report.parity.equal))
    return parts.chips(badges)


# ---------------------------------------------------------------- bars


def _variants(rows: Sequence[Variant]) -> str:
    base = rows[0]

    def points(value: float) -> str:
        return f"{100 * (value - (base.accuracy or 0)):+.2f}"

    def values(field: str) -> list[tuple[str, str, float | None]]:
        return [(v.name, v.name, getattr(v, field)) for v in rows]

    charts = (
        parts.chart("Top-1", "higher is better", values("accuracy"),
               units.share, points),
        parts.chart("File size", "lower is better", values("size"), units.size),
        parts.chart("Latency of one image", "lower is better", values("seconds"),
               units.duration),
    )  # fmt: skip
    return f'<section class="charts">{"".join(charts)}</section>'


def _color(rank: int) -> str:
    """The style of a kernel family, by its share of the time; the smallest ones look alike."""
    return f"k{min(rank, 5)}"


def _times(rows: Sequence[LayerRow]) -> str:
    """Where the time goes: one stacked strip by kernel family, then a bar per layer."""
    timed = [row for row in rows if row.seconds]
    total = sum(row.seconds or 0 for row in timed)
    if not timed:
        return ""
    spent_by: dict[str, float] = defaultdict(float)
    for row in timed:
        spent_by[row.kernel] += row.seconds or 0
    by_family = sorted(spent_by.items(), key=lambda pair: (-pair[1], pair[0]))
    families = [family for family, _ in by_family]
    strip = "".join(
        f'<span class="{_color(i)}" title="{escape(f)}" '
        f'style="width:{100 * spent / total:.2f}%"></span>'
        for i, (f, spent) in enumerate(by_family)
    )
    legend = "".join(
        f'<li><i class="{_color(i)}"></i>{escape(f)} <b>{100 * spent / total:.1f} %</b></li>'
        for i, (f, spent) in enumerate(by_family)
    )
    longest = max(row.seconds or 0 for row in timed)
    bars = "".join(
        parts.bar(
            r.name,
            (r.seconds or 0) / longest,
            units.duration(r.seconds),
            _color(families.index(r.kernel)),
        )
        for r in timed
    )
    content = f'<div class="strip">{strip}</div><ul class="legend">{legend}</ul>{bars}'
    note = f"{units.duration(total)} in {len(timed)} kernels, measured inside the deployed library."
    return parts.section("Where the time goes", content, note)


# ---------------------------------------------------------------- tables


def _layers(rows: Sequence[LayerRow]) -> str:
    total = sum(row.seconds or 0 for row in rows)
    work = sum(row.macs for row in rows)
    columns = ("layer", "op", "widths", "kernel", "MACs", "work", "time", "time share")
    cells = [
        (
            escape(row.name), escape(row.op), escape(row.widths),
            f"<code>{escape(row.kernel)}</code>",
            units.count(row.macs), f"{100 * row.macs / work:.1f} %" if row.macs else units.NONE,
            units.duration(row.seconds),
            f"{100 * row.seconds / total:.1f} %" if row.seconds else units.NONE,
        )
        for row in rows
    ]  # fmt: skip
    return parts.section(
        "Layers", parts.table(columns, cells, 4), f"{units.count(work)} MACs for one image."
    )


def _choices(rows: Sequence[LayerRow]) -> str:
    """How the kernels were chosen, where they were measured."""
    found = [tuple(map(escape, row)) for row in choices.cells(rows)]
    if not found:
        return ""
    note = (
        "One image on one thread, when the library was compiled. Limit: the share of the "
        "multiply-adds that the machine can do at most. 8-bit and float: the time of the "
        "same layer's best kernel of that kind, in multiples of the chosen one's."
    )
    return parts.section(
        "How the kernels were chosen", parts.table(choices.COLUMNS, found, 6), note
    )


def _exceptions(report: Report) -> str:
    """What stayed float, and, folded away, the kernels that declined layers."""
    items = [("float op", op) for op in report.float_ops]
    items += [("kept float", layer) for layer in report.kept_float]
    listed = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in items)
    stayed = f"<dl>{listed}</dl>" if items else "<p>None: nothing stayed float.</p>"
    return parts.section("Exceptions", stayed + _refusals(report.layers))


def _refusals(rows: Sequence[LayerRow]) -> str:
    """One row for each kernel and reason, with the layers that it concerns."""
    layers_by: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        for refusal in row.refusals:
            kernel, _, reason = refusal.partition(": ")
            layers_by[kernel, reason].append(row.name)
    if not layers_by:
        return ""
    cells = [
        (f"<code>{escape(kernel)}</code>", escape(reason),
         f'<span title="{escape(", ".join(names))}">{len(names)}</span>')
        for (kernel, reason), names in layers_by.items()
    ]  # fmt: skip
    table = parts.table(("kernel", "why it declined", "layers"), cells, 1)
    return f"<details><summary>kernels that declined a layer</summary>{table}</details>"


def _parity(report: Report) -> str:
    if report.parity is None:
        return ""
    columns = ("layer", "kernel", "dtype", "values", "differing", "largest difference")
    cells = [
        (
            escape(row.layer), f"<code>{escape(row.kernel)}</code>", row.dtype, f"{row.elements:,}",
            f'<b class="bad">{row.differing:,}</b>' if row.differing else "0", f"{row.largest:g}",
        )
        for row in report.parity.rows
    ]  # fmt: skip
    verdict = "Zero differences" if report.parity.equal else "There are differences"
    note = (
        f"{verdict} between the deployed library ({report.parity.threads} threads) and the NumPy "
        f"law in {report.parity.elements:,} values."
    )
    table = f"<details><summary>every layer</summary>{parts.table(columns, cells, 3)}</details>"
    return parts.section("Parity", table, note)
