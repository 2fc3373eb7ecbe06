"""The look of reports and figures in one place: colours, sizes and the style sheet of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FigureFormat = Literal["svg", "png", "pdf"]

# Told apart in print, in grey and by colour-blind readers (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/);
# models beyond the eighth begin again.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#666666")
BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY, PURPLE, GREY = COLOURS
NEGATIVE = "#b00020"
INK = "#1d2733"
QUIET = "#66717e"
LINE = "#d9dee4"
CLOUD = "#b9c2cc"

# From nothing to much in one hue; from negative over nothing to positive.
SEQUENTIAL = ("#f3f7fb", "#b5d8ee", "#56a5d6", "#0072b2", "#063f66")
DIVERGING = ("#8a3500", "#d55e00", "#f5c9a8", "#f7f8f9", "#a8d1ea", "#0072b2", "#063f66")


@dataclass(frozen=True)
class FigureSize:
    """How wide a figure is, in inches, and its text, in points."""

    width: float
    font: float


# ``page`` is the report's, the others are those of two-column papers.
SIZES = {
    "page": FigureSize(9.6, 8.5),
    "two-column": FigureSize(7.0, 8.0),
    "one-column": FigureSize(3.4, 7.0),
}
PAGE = SIZES["page"]
NARROW_INCHES = 5.0  # below this panels stand above each other

# On the page an inch of a figure is this wide.
PIXELS_PER_INCH = 107

PAGE_STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: {INK};
  background: #fff; max-width: 1060px; margin: 0 auto; padding: 2rem 1rem 4rem; }}
h1 {{ font-size: 1.75rem; line-height: 1.2; margin: 0 0 .2rem; }}
h2 {{ font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .7rem; border-top: 1px solid {LINE}; }}
h3 {{ font-size: 1rem; margin: 1.3rem 0 .4rem; }}
p {{ margin: .5rem 0; max-width: 52rem; }}
a {{ color: {BLUE}; }}
.quiet, figcaption {{ color: {QUIET}; }}
.lead {{ font-size: 1.1rem; margin: .9rem 0; padding: .7rem 1rem; background: #eef5fa; border-left: 4px solid {BLUE}; }}
.warning {{ padding: .5rem 1rem; background: #fdf3ea; border-left: 4px solid {VERMILLION}; }}
.status {{ display: inline-block; font-size: .85rem; font-weight: 600; padding: .1rem .6rem; border-radius: 1rem;
  color: #fff; background: {QUIET}; }}
.status.running {{ background: {BLUE}; }}
.status.finished {{ background: #00755a; }}
.status.interrupted {{ background: #b04a00; }}
.bar {{ height: 6px; max-width: 24rem; background: {LINE}; border-radius: 3px; margin: .5rem 0; }}
.bar > span {{ display: block; height: 100%; background: {BLUE}; border-radius: 3px; }}
nav ol {{ display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; list-style: none; margin: 1rem 0 0; padding: 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; font-size: .86rem; }}
caption {{ text-align: left; white-space: nowrap; color: {QUIET}; padding-bottom: .3rem; }}
th, td {{ padding: .22rem .7rem .22rem 0; border-bottom: 1px solid {LINE}; text-align: left; vertical-align: top; }}
th {{ font-weight: 600; border-bottom: 1.5px solid {QUIET}; }}
th:first-child, td:first-child {{ padding-left: .5rem; white-space: nowrap; }}
.right {{ text-align: right; white-space: nowrap; }}
tr.strong {{ font-weight: 600; background: #eef5fa; }}
tr.behind td {{ color: {QUIET}; }}
figure {{ margin: 1rem 0 1.6rem; }}
figcaption {{ font-size: .9rem; max-width: 52rem; margin-top: .3rem; }}
svg {{ display: block; width: 100%; height: auto; }}
pre {{ background: #f5f7f9; padding: .7rem .9rem; overflow-x: auto; font: 13px/1.5 ui-monospace, "DejaVu Sans Mono",
  monospace; border-radius: 4px; }}
code {{ font: .92em ui-monospace, "DejaVu Sans Mono", monospace; }}
summary {{ cursor: pointer; margin: .6rem 0; }}
@media print {{
  @page {{ margin: 14mm; }}
  body {{ font-size: 10.5pt; padding: 0; max-width: none; }}
  h2 {{ break-after: avoid; margin-top: 1.6rem; }}
  h3, caption {{ break-after: avoid; }}
  figure, tr, .lead, .warning {{ break-inside: avoid; }}
  figure svg {{ max-height: 220mm; }}
  .wide {{ overflow: visible; }}
  table {{ font-size: 8pt; }}
  th, td {{ padding-right: .5rem; }}
  .right, caption {{ white-space: normal; }}
  pre {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
  nav {{ display: none; }}
  .lead, .warning, .status, .bar, .bar > span, tr.strong {{
    -webkit-print-color-adjust: exact; print-color-adjust: exact; }}
}}
""".strip()
