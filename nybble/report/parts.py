"""What every page is built from: the document around it, sections, bars, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from nybble.report.style import STYLE


def document(title: str, kicker: str, verdict: str, sections: Sequence[str]) -> str:
    """One self-contained page.

    Args:
        title: the heading.
        kicker: the line above it.
        verdict: HTML below it.
        sections: HTML of the rest.
    """
    body = "\n".join(
        (
            f"<header><p>{escape(kicker)}</p><h1>{escape(title)}</h1>{verdict}</header>",
            *sections,
        )
    )
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    name = f"<title>{escape(title)} - Nybble</title>"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}{name}\n<style>\n{STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def chips(badges: Sequence[tuple[str, bool]]) -> str:
    """Short statements, each with whether it holds."""
    shown = (
        f'<span class="chip {"good" if fine else "bad"}">{"✓" if fine else "✗ not"} '
        f"{escape(text)}</span>"
        for text, fine in badges
    )
    return f"<div>{''.join(shown)}</div>"


def section(title: str, content: str, note: str = "") -> str:
    """A titled part of the page; ``note`` stands below the title."""
    below = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{below}{content}</section>"


def chart(
    title: str,
    note: str,
    values: Sequence[tuple[str, str, float | None]],
    text: Callable[[Any], str],
    compare: Callable[[float], str] | None = None,
) -> str:
    """A bar for each known value of (name, style, value); beside all but the first how it compares.

    Args:
        title: of the figure.
        note: which end is better.
        values: None for what was not measured.
        text: shows a value.
        compare: shows it against the first; a ratio where omitted.
    """
    known = [(name, kind, value) for name, kind, value in values if value is not None]
    if not known:
        return ""
    top, first = max(value for _, _, value in known) or 1, known[0][2] or 1
    ratio = compare or (lambda value: f"{value / first:.2f}x")
    bars = "".join(
        bar(name, value / top, text(value) + (f" ({ratio(value)})" if i else ""), kind)
        for i, (name, kind, value) in enumerate(known)
    )
    return f"<figure><figcaption>{title} <small>{note}</small></figcaption>{bars}</figure>"


def bar(label: str, share: float, text: str, kind: str) -> str:
    """A label, a bar of a share of the row, and the value in words."""
    filled = f'<span class="fill {escape(kind)}" style="width:{100 * share:.2f}%"></span>'
    return (
        f'<div class="bar"><span class="label" title="{escape(label)}">{escape(label)}</span>'
        f'<span class="track">{filled}</span><span class="value">{escape(text)}</span></div>'
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """A table whose last ``numbers`` columns are aligned right; cells are escaped already."""
    first = len(columns) - numbers

    def cells(values: Sequence[str], tag: str) -> str:
        marks = ("" if i < first else ' class="n"' for i in range(len(values)))
        return "".join(f"<{tag}{m}>{v}</{tag}>" for v, m in zip(values, marks, strict=True))

    head = f"<tr>{cells(columns, 'th')}</tr>"
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def facts(title: str, pairs: Sequence[tuple[str, str]]) -> str:
    """A section of (what, value) pairs."""
    listed = "".join(f"<dt>{escape(what)}</dt><dd>{escape(value)}</dd>" for what, value in pairs)
    return section(title, f"<dl>{listed}</dl>")
