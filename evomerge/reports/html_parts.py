"""The bricks of a page. Text that comes from a user, a model or an error goes through ``escaped`` and nowhere else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from evomerge.reports.look import PAGE_STYLE


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading; ``body`` is HTML."""

    id: str
    title: str
    body: str


def escaped(value: object) -> str:
    """Any value as text of a page; None is empty."""
    return html.escape("" if value is None else str(value))


def paragraph(text: str, mark: str = "") -> str:
    """A paragraph of plain text, with a class."""
    return f"<p{_class(mark)}>{escaped(text)}</p>"


def data_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Iterable[int] = (),
    caption: str = "",
    marks: Sequence[str] = (),
) -> str:
    """A table of plain values.

    Args:
        headings: of the columns.
        rows: of as many values.
        right: columns of numbers.
        caption: above it.
        marks: class of each row.
    """
    numbers = set(right)

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{_class('right' if index in numbers else '')}>{escaped(value)}</{tag}>"
            for index, value in enumerate(values)
        )

    lines = []
    for index, row in enumerate(rows):
        mark = marks[index] if index < len(marks) else ""
        lines.append(f"<tr{_class(mark)}>{cells('td', row)}</tr>")
    above = f"<caption>{escaped(caption)}</caption>" if caption else ""
    head = f"<thead><tr>{cells('th', headings)}</tr></thead>"
    return f'<div class="wide"><table>{above}{head}\n<tbody>\n' + "\n".join(lines) + "\n</tbody></table></div>"


def rich_table(table: Table) -> str:
    """A table made for the terminal."""
    right = [index for index, column in enumerate(table.columns) if column.justify == "right"]
    rows = list(zip(*(list(column.cells) for column in table.columns)))
    marks = ["strong" if row.style == "bold" else "" for row in table.rows]
    shown = data_table(
        [str(column.header) for column in table.columns], rows, right=right, caption=str(table.title or ""), marks=marks
    )
    return shown + (paragraph(str(table.caption), "quiet") if table.caption else "")


def figure(element: str, caption: str) -> str:
    """A figure: an ``<svg>`` element and what is said below it."""
    return f"<figure>\n{element}\n<figcaption>{escaped(caption)}</figcaption>\n</figure>"


def commands(lines: Sequence[tuple[str, str]]) -> str:
    """Shell commands, each below what it does."""
    text = "\n".join(f"# {what}\n{command}" for what, command in lines)
    return f"<pre><code>{escaped(text)}</code></pre>"


def folded(title: str, body: str) -> str:
    """A part that is closed until it is wanted; ``body`` is HTML."""
    return f"<details><summary>{escaped(title)}</summary>\n{body}\n</details>"


def preformatted(text: str) -> str:
    """Text whose lines stay as they are."""
    return f"<pre><code>{escaped(text)}</code></pre>"


def link(target: str, text: str) -> str:
    """A link to a file beside the page."""
    return f'<a href="{escaped(target)}">{escaped(text)}</a>'


def page(title: str, header: str, sections: Sequence[Section]) -> str:
    """A whole page that loads nothing from elsewhere.

    Args:
        title: heading.
        header: HTML below the heading.
        sections: in order; they are listed above.
    """
    entries = "".join(f'<li><a href="#{section.id}">{escaped(section.title)}</a></li>' for section in sections)
    bodies = "\n".join(
        f'<section id="{section.id}">\n<h2>{escaped(section.title)}</h2>\n{section.body}\n</section>'
        for section in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escaped(title)}</title>\n'
        f"<style>\n{PAGE_STYLE}\n</style>\n</head>\n<body>\n<header>\n<h1>{escaped(title)}</h1>\n{header}\n"
        f"<nav><ol>{entries}</ol></nav>\n</header>\n<main>\n{bodies}\n</main>\n</body>\n</html>\n"
    )


def _class(mark: str) -> str:
    return f' class="{mark}"' if mark else ""
