"""A search with one number: how its candidates are spread, and the winner beside the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.reports.look import BLUE, CLOUD, GREY, NARROW_INCHES, PAGE, VERMILLION, FigureSize
from evomerge.reports.plain_figure import Drawing, draw, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ScoredModel:
    """A model with its one number and its interval; ``is_winner`` marks the one that was chosen."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    is_winner: bool = False


def candidates_figure(
    values: Sequence[float], models: Sequence[ScoredModel], label: str, split: str, size: FigureSize = PAGE
) -> Drawing | None:
    """Left the models with intervals, best on top; right how the candidates are spread on the search documents.

    Args:
        values: of all candidates on the search documents.
        models: the winner and the baselines.
        label: what the number is.
        split: documents that ``models`` were scored on.
        size: of the figure.

    Returns:
        None while nothing has a fitness.
    """
    if not values and not models:
        return None
    narrow = size.width < NARROW_INCHES
    height = max(2.2, 0.9 + 0.24 * len(models))

    def draw_on(figure: Figure) -> None:
        if not models:
            _draw_spread(figure.subplots(), values, label)
            return
        left, right = figure.subplots(2, 1) if narrow else figure.subplots(1, 2, width_ratios=[1.3, 1])
        _draw_models(left, models, f"{label}, {split} documents")
        _draw_spread(right, values, f"{label}, search documents")

    best = f"; of the models on {split} documents the best is {models[0].name} with {models[0].value:.4g}"
    spread = f"from {min(values):.4g} to {max(values):.4g}" if values else "none"
    alt = f"{len(values)} candidates on search documents, {spread}{best if models else ''}."
    return draw("candidates", draw_on, alt, height=height + 2.0 if narrow else height, size=size)


def _draw_models(axes: Axes, models: Sequence[ScoredModel], label: str) -> None:
    for row, model in enumerate(models):
        colour = VERMILLION if model.is_winner else GREY
        if model.low is not None and model.high is not None:
            axes.plot([model.low, model.high], [row, row], "-", color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot([model.value], [row], "o", color=colour, markersize=5)
    axes.set_yticks(range(len(models)), [model.name for model in models])
    for tick, model in zip(axes.get_yticklabels(), models):
        tick.set_fontweight("bold" if model.is_winner else "normal")
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=CLOUD, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.set_xlabel(label)
    quiet(axes)


def _draw_spread(axes: Axes, values: Sequence[float], label: str) -> None:
    count = min(40, max(6, round(len(values) ** 0.5 * 2)))
    axes.hist(list(values), bins=count, color=BLUE, alpha=0.85, edgecolor="white", linewidth=0.4)
    axes.set_xlabel(label)
    axes.set_ylabel("candidates")
    axes.locator_params(axis="y", integer=True)
    quiet(axes)
