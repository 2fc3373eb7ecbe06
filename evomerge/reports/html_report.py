"""A run's report: one HTML file that opens from disk, with no scripts and nothing loaded from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from evomerge.reports.summary_table import closing_lines, comparison_table, score_table

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
.right { text-align: right; }
.winner { font-weight: 600; background: #eef4fb; }
svg { max-width: 100%; height: auto; }
figure { margin: 1rem 0 2rem; }
"""


def html_report(
    title: str, summary: Mapping[str, Any] | None, lines: Sequence[str], figures: Sequence[tuple[str, bytes]]
) -> str:
    """The text of a report.

    Args:
        title: heading.
        summary: what summary.json holds; None while the run goes on.
        lines: said below the heading, one paragraph each.
        figures: (caption, SVG file).
    """
    parts = [f"<p>{html.escape(line)}</p>" for line in lines]
    if summary is not None:
        parts.append(_table(score_table(summary)))
        if summary["comparison"]:
            parts.append(_table(comparison_table(summary)))
        parts += [f"<p>{html.escape(line)}</p>" for line in closing_lines(summary)]
    for caption, svg in figures:
        parts.append(f"<figure>{_inline(svg)}<figcaption>{html.escape(caption)}</figcaption></figure>")
    body = "\n".join(parts)
    name = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n{body}\n</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    """A table made for the terminal, as HTML."""
    classes = [' class="right"' if column.justify == "right" else "" for column in table.columns]
    head = "".join(f"<th{mark}>{_cell(column.header)}</th>" for mark, column in zip(classes, table.columns))
    rows = []
    for row, *cells in zip(table.rows, *(column.cells for column in table.columns)):
        mark = ' class="winner"' if row.style == "bold" else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td{c}>{_cell(cell)}</td>" for c, cell in zip(classes, cells)) + "</tr>")
    caption = f"<p>{_cell(table.caption)}</p>" if table.caption else ""
    return f"<h2>{_cell(table.title)}</h2>\n<table>\n<tr>{head}</tr>\n" + "\n".join(rows) + f"\n</table>{caption}"


def _cell(value: object) -> str:
    return html.escape("" if value is None else str(value))


def _inline(svg: bytes) -> str:
    """An SVG file as an element of a page: without the lines that belong to a file of its own."""
    text = svg.decode()
    return re.sub(r"^.*?(?=<svg)", "", text, count=1, flags=re.DOTALL)
