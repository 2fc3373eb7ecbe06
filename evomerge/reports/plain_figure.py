"""What all figures share: the style of their text and lines, and writing them as files that are always the same.

Figures are made without pyplot, whose state is global, and leave matplotlib's settings as they were.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evomerge.reports.look import INK, PAGE, PIXELS_PER_INCH, QUIET, FigureFormat, FigureSize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PNG_DOTS_PER_INCH = 200
# Reproducible files: ids of SVG elements are hashes, and no date is written.
SVG_SALT = "evomerge"


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: of its files, and of its ids.
        figure: matplotlib's.
        alt: what it shows, for those who do not see it.
        titles: gid of a mark to its tooltip.
    """

    name: str
    figure: Figure
    alt: str
    titles: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _svg(self) -> bytes:
        return _with_titles(figure_bytes(self.figure, "svg", self.name).decode(), self.titles).encode()

    def file(self, form: FigureFormat) -> bytes:
        """The figure as a file of its own; the same data gives the same bytes."""
        return self._svg if form == "svg" else figure_bytes(self.figure, form, self.name)

    def element(self) -> str:
        """The figure as an ``<svg>`` element of a page."""
        return svg_element(self.file("svg"), self.alt, self.figure.get_figwidth())


def draw(
    name: str,
    draw_on: Callable[[Figure], None],
    alt: str,
    *,
    height: float,
    size: FigureSize = PAGE,
    titles: Mapping[str, str] | None = None,
) -> Drawing:
    """Make a figure in the common style.

    Args:
        name: of its files.
        draw_on: draws on the empty figure.
        alt: what it shows.
        height: in inches.
        size: width and text.
        titles: gid of a mark to its tooltip.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_style(size)):
        figure = Figure(figsize=(size.width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw_on(figure)
        settle(figure)
    return Drawing(name, figure, alt, titles or {})


def settle(figure: Figure) -> None:
    """Lay a figure out for good: else every drawing would do it again and move things a little."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def figure_bytes(figure: Figure, form: FigureFormat = "svg", name: str = "") -> bytes:
    """A figure as a file; the same figure gives the same bytes.

    Args:
        figure: whose layout is final.
        form: ``svg``, ``png`` or ``pdf`` (with its fonts in it).
        name: makes ids differ from those of other figures of one page.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    salt = f"{SVG_SALT}-{name}" if name else SVG_SALT
    with rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "pdf.fonttype": 42}):
        if form == "svg":  # directly: ``savefig`` would draw it once more, for nothing
            canvas, dots = figure.canvas, figure.dpi
            try:
                FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
            finally:
                figure.dpi = dots
                figure.set_canvas(canvas)
        else:
            metadata = {"CreationDate": None} if form == "pdf" else None
            figure.savefig(buffer, format=form, dpi=PNG_DOTS_PER_INCH, metadata=metadata)
    return buffer.getvalue()


def svg_element(svg: bytes, alt: str, width: float) -> str:
    """An SVG file as an element of a page: without what belongs to a file of its own.

    Args:
        svg: as matplotlib writes it.
        alt: what it shows.
        width: in inches.
    """
    text = re.sub(r"^.*?(?=<svg)", "", svg.decode(), count=1, flags=re.DOTALL)
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    # Numbered ids repeat from figure to figure, and nothing refers to them.
    text = re.sub(r' id="[A-Za-z0-9.\-]*_\d+"', "", text)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    attributes = (
        f'{view[0]} role="img" aria-label="{html.escape(alt)}" style="max-width:{width * PIXELS_PER_INCH:.0f}px"'
    )
    return re.sub(r"^<svg[^>]*>", f"<svg {attributes}>", text, count=1).strip()


def quiet(axes: Axes) -> None:
    """Take the frame's upper and right side away."""
    axes.spines[["top", "right"]].set_visible(False)


def _with_titles(svg: str, titles: Mapping[str, str]) -> str:
    for gid, title in titles.items():
        mark = f'<g id="{gid}">'
        svg = svg.replace(mark, f"{mark}<title>{html.escape(title)}</title>", 1)
    return svg


def _style(size: FigureSize) -> Any:
    return {
        "text.parse_math": False,  # names of users may hold dollar signs
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
        "font.size": size.font,
        "axes.titlesize": size.font,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": size.font,
        "axes.labelcolor": INK,
        "axes.edgecolor": QUIET,
        "axes.linewidth": 0.6,
        "axes.titlecolor": INK,
        "text.color": INK,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": size.font * 0.92,
        "ytick.labelsize": size.font * 0.92,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "legend.fontsize": size.font * 0.92,
        "legend.frameon": False,
        "lines.linewidth": 1.4,
    }
