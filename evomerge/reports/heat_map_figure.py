"""The numbers of a merge as heat maps: block groups by experts, one row of panels for each hyperparameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.reports.coefficients import HeatMap
from evomerge.reports.look import DIVERGING, INK, NARROW_INCHES, PAGE, SEQUENTIAL, FigureSize
from evomerge.reports.plain_figure import Drawing, draw
from evomerge.terms import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure, SubFigure

ROW_INCHES = 0.2
MAX_HEIGHT = 11.0
MAX_NUMBERED_ROWS = 48


def heat_map_figure(maps: Sequence[HeatMap], about: str, size: FigureSize = PAGE) -> Drawing | None:
    """One row of panels for each hyperparameter; the first blocks are on top.

    Args:
        maps: of one recipe.
        about: whose numbers these are, for the description.
        size: of the figure.

    Returns:
        None where there is nothing to show.
    """
    if not maps:
        return None
    heights = [0.75 + ROW_INCHES * max(len(panel.rows) for panel in entry.panels) for entry in maps]
    shrink = min(1.0, MAX_HEIGHT / sum(heights))

    def draw_on(figure: Figure) -> None:
        parts = figure.subfigures(len(maps), 1, squeeze=False, height_ratios=heights)
        for part, entry in zip(parts[:, 0], maps):
            _draw_map(part, entry, narrow=size.width < NARROW_INCHES, font=size.font, shrink=shrink)

    shown = ", ".join(entry.parameter for entry in maps)
    alt = f"Heat maps of {shown} by block group and expert, of {about}. The numbers are in the recipe."
    return draw("coefficients", draw_on, alt, height=max(1.4, shrink * sum(heights)), size=size)


def _draw_map(part: SubFigure, entry: HeatMap, *, narrow: bool, font: float, shrink: float) -> None:
    from matplotlib.colors import Normalize

    numbers = np.concatenate([panel.values.ravel() for panel in entry.panels])
    low, high = float(numbers.min()), float(numbers.max())
    colours = _colours(low)
    reach = max(abs(low), abs(high), 1e-9)
    norm = Normalize(-reach, reach) if low < 0 else Normalize(0.0, reach)
    panels = part.subplots(1, len(entry.panels), squeeze=False)[0]
    numbered = shrink > 0.7 and len(entry.columns) * len(entry.panels) <= (9 if narrow else 24)
    for index, (axes, panel) in enumerate(zip(panels, entry.panels)):
        mesh = axes.pcolormesh(panel.values, cmap=colours, norm=norm, edgecolors="white", linewidth=0.8)
        axes.invert_yaxis()
        axes.set_xticks(np.arange(len(entry.columns)) + 0.5, entry.columns)
        if len(entry.columns) > 4 or narrow:
            axes.tick_params(axis="x", labelrotation=40)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        has_labels = index == 0 or panel.rows != entry.panels[0].rows
        stride = max(1, round(0.62 / shrink)) if shrink < 0.7 else 1
        places = range(0, len(panel.rows), stride)
        axes.set_yticks([row + 0.5 for row in places], [panel.rows[row] if has_labels else "" for row in places])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        title = panel.title or entry.parameter
        axes.set_title(title, fontweight="normal" if panel.title else "bold")
        if numbered and len(panel.rows) <= MAX_NUMBERED_ROWS:
            _write_numbers(axes, panel.values, norm, font)
    bar = part.colorbar(mesh, ax=list(panels), pad=0.015, aspect=14, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)
    bar.set_label(entry.parameter + (f" of {entry.merge}" if entry.merge else ""))


def _write_numbers(axes: Axes, values: Array, norm: Normalize, font: float) -> None:
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            share = float(norm(value))
            dark = share > 0.62 or (values.min() < 0 and share < 0.2)
            axes.text(
                column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=font * 0.85,
                color="white" if dark else INK,
            )  # fmt: skip


def _colours(low: float) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    names = DIVERGING if low < 0 else SEQUENTIAL
    # Colour bars of fifty and more colours would be pictures of dots.
    return LinearSegmentedColormap.from_list("evomerge", list(names), N=41)
