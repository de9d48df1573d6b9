"""One self-contained HTML page: style, bars and data inside, nothing loaded from elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from nybble.report import choices, units
from nybble.report.data import LayerRow, Report, Variant
from nybble.report.style import STYLE


def render(report: Report) -> str:
    """The whole page; the same report gives the same text."""
    body = "\n".join(
        (
            f"<header><p>Nybble compile report</p><h1>{escape(report.title)}</h1>"
            f"{_verdict(report)}</header>",
            _variants(report.variants),
            _times(report.layers),
            _layers(report.layers),
            _choices(report.layers),
            _exceptions(report),
            _parity(report),
            _facts(report.facts),
        )
    )
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    title = f"<title>{escape(report.title)} - Nybble</title>"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}{title}\n<style>\n{STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _verdict(report: Report) -> str:
    badges = [("integer-only", not report.float_ops and not report.kept_float)]
    if report.parity is not None:
        badges.append(("equal to the law, bit for bit", report.parity.equal))
    chips = (
        f'<span class="chip {"good" if fine else "bad"}">{"✓" if fine else "✗ not"} {text}</span>'
        for text, fine in badges
    )
    return f"<div>{''.join(chips)}</div>"


def _section(title: str, content: str, note: str = "") -> str:
    below = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{below}{content}</section>"


# ---------------------------------------------------------------- bars


def _variants(rows: Sequence[Variant]) -> str:
    base = rows[0]

    def points(value: float) -> str:
        return f"{100 * (value - (base.accuracy or 0)):+.2f}"

    charts = (
        _chart("Top-1", "higher is better", [(v.name, v.accuracy) for v in rows],
               units.share, points),
        _chart("File size", "lower is better", [(v.name, v.size) for v in rows], units.size),
        _chart("Latency of one image", "lower is better", [(v.name, v.seconds) for v in rows],
               units.duration),
    )  # fmt: skip
    return f'<section class="charts">{"".join(charts)}</section>'


def _chart(
    title: str,
    note: str,
    values: Sequence[tuple[str, float | None]],
    text: Callable[[Any], str],
    compare: Callable[[float], str] | None = None,
) -> str:
    """A bar for each known value; beside all but the first how it compares with the first."""
    known = [(name, value) for name, value in values if value is not None]
    if not known:
        return ""
    top, first = max(value for _, value in known) or 1, known[0][1] or 1
    ratio = compare or (lambda value: f"{value / first:.2f}x")
    bars = "".join(
        _bar(name, value / top, text(value) + (f" ({ratio(value)})" if i else ""), name)
        for i, (name, value) in enumerate(known)
    )
    return f"<figure><figcaption>{title} <small>{note}</small></figcaption>{bars}</figure>"


def _bar(label: str, share: float, text: str, kind: str) -> str:
    filled = f'<span class="fill {escape(kind)}" style="width:{100 * share:.2f}%"></span>'
    return (
        f'<div class="bar"><span class="label" title="{escape(label)}">{escape(label)}</span>'
        f'<span class="track">{filled}</span><span class="value">{escape(text)}</span></div>'
    )


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
        _bar(
            r.name,
            (r.seconds or 0) / longest,
            units.duration(r.seconds),
            _color(families.index(r.kernel)),
        )
        for r in timed
    )
    content = f'<div class="strip">{strip}</div><ul class="legend">{legend}</ul>{bars}'
    note = f"{units.duration(total)} in {len(timed)} kernels, measured inside the deployed library."
    return _section("Where the time goes", content, note)


# ---------------------------------------------------------------- tables


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """A table whose last ``numbers`` columns are aligned right; cells are escaped already."""
    first = len(columns) - numbers

    def cells(values: Sequence[str], tag: str) -> str:
        marks = ("" if i < first else ' class="n"' for i in range(len(values)))
        return "".join(f"<{tag}{m}>{v}</{tag}>" for v, m in zip(values, marks, strict=True))

    head = f"<tr>{cells(columns, 'th')}</tr>"
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


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
    return _section("Layers", _table(columns, cells, 4), f"{units.count(work)} MACs for one image.")


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
    return _section("How the kernels were chosen", _table(choices.COLUMNS, found, 6), note)


def _exceptions(report: Report) -> str:
    """What stayed float, and, folded away, the kernels that declined layers."""
    items = [("float op", op) for op in report.float_ops]
    items += [("kept float", layer) for layer in report.kept_float]
    listed = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in items)
    stayed = f"<dl>{listed}</dl>" if items else "<p>None: nothing stayed float.</p>"
    return _section("Exceptions", stayed + _refusals(report.layers))


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
    table = _table(("kernel", "why it declined", "layers"), cells, 1)
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
    table = f"<details><summary>every layer</summary>{_table(columns, cells, 3)}</details>"
    return _section("Parity", table, note)


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    listed = "".join(f"<dt>{escape(what)}</dt><dd>{escape(value)}</dd>" for what, value in facts)
    return _section("The library", f"<dl>{listed}</dl>")
