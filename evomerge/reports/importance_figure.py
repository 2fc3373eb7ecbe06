"""Which parameters decided who is among the best: bars for each objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.reports.look import COLOURS, NARROW_INCHES, PAGE, FigureSize
from evomerge.reports.plain_figure import Drawing, draw, quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BARS = 15
MAX_COLUMNS = 3


def importance_figure(
    importance: Sequence[tuple[str, Sequence[tuple[str, float]]]], size: FigureSize = PAGE
) -> Drawing | None:
    """One panel for each objective, its most important parameters on top.

    Args:
        importance: (objective, ((parameter, share of this objective's sum), ...)).
        size: of the figure.

    Returns:
        None where nothing is known.
    """
    if not importance:
        return None
    longest = min(MAX_BARS, max(len(shares) for _, shares in importance))
    columns = 1 if size.width < NARROW_INCHES else min(len(importance), 2 if longest > 6 else MAX_COLUMNS)
    rows = -(-len(importance) // columns)

    def draw_on(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for index, (objective, shares) in enumerate(importance):
            axes = panels[index]
            top = sorted(shares, key=lambda entry: -entry[1])[:MAX_BARS]
            places = range(len(top))
            axes.barh(places, [share for _, share in top], color=COLOURS[index % len(COLOURS)], height=0.7)
            axes.set_yticks(places, [_short(name) for name, _ in top])
            axes.invert_yaxis()
            axes.set_xlim(0, None)
            axes.set_title(objective)
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            quiet(axes)
        for axes in panels[len(importance) :]:
            axes.set_visible(False)

    leaders = "; ".join(f"{objective}: {max(shares, key=lambda e: e[1])[0]}" for objective, shares in importance)
    alt = f"Importance of the parameters for each objective. The most important: {leaders}."
    return draw("importance", draw_on, alt, height=rows * (0.75 + 0.19 * longest), size=size)


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
