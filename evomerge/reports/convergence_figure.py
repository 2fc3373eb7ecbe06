"""Convergence: the best so far, the generations and the hypervolume, against evaluations and against seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from evomerge.reports.look import BLUE, CLOUD, GREEN, GREY, NARROW_INCHES, ORANGE, PAGE, FigureSize
from evomerge.reports.plain_figure import Drawing, draw, quiet
from evomerge.reports.run_history import GenerationStep, History, Step, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_DOTS = 400

_Place = Callable[[Step | GenerationStep], float]


def convergence_figure(history: History, size: FigureSize = PAGE) -> Drawing | None:
    """Two panels, against evaluations and against seconds; below them two more with the hypervolume, where it is known.

    Dots are candidates (thinned where there are many), the band holds the middle half of each generation.

    Args:
        history: of the search.
        size: of the figure.

    Returns:
        None while nothing has a fitness.
    """
    if not history.steps:
        return None
    narrow = size.width < NARROW_INCHES
    has_volume = sum(step.hypervolume is not None for step in history.generations) > 1
    rows = [_draw_values, *([_draw_volume] if has_volume else [])]
    unit, label = _time_unit(history.steps[-1].seconds)
    axes_of: list[tuple[_Place, str]] = [
        (lambda step: step.evaluations, "evaluations"),
        (lambda step: step.seconds / unit, label),
    ]

    def draw_on(figure: Figure) -> None:
        shape = (len(rows) * 2, 1) if narrow else (len(rows), 2)
        ratios = [1.0, 0.62][: len(rows)] if not narrow else None
        panels = figure.subplots(*shape, squeeze=False, height_ratios=ratios, sharex=False if narrow else "col")
        for row, draw_row in enumerate(rows):
            for column, (place, axis_label) in enumerate(axes_of):
                axes = panels[row * 2 + column][0] if narrow else panels[row][column]
                draw_row(axes, history, place)
                if narrow or row == len(rows) - 1:
                    axes.set_xlabel(axis_label)
                axes.margins(x=0.02)
                quiet(axes)
                if column == 0 or narrow:
                    axes.set_ylabel("hypervolume" if draw_row is _draw_volume else history.label)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2 if narrow else len(handles))

    first, last = history.steps[0], history.steps[-1]
    alt = (
        f"Best {history.label} so far over {last.evaluations} evaluations and {last.seconds:.0f} seconds: "
        f"from {first.best:.4g} to {last.best:.4g}."
    )
    height = (2.3 * 2 * len(rows) if narrow else [2.9, 4.6][len(rows) - 1]) * (0.85 if narrow else 1.0)
    return draw("convergence", draw_on, alt, height=height, size=size)


def _draw_values(axes: Axes, history: History, place: _Place) -> None:
    steps, generations = history.steps, [step for step in history.generations if step.median is not None]
    dots = thinned(steps, MAX_DOTS)
    axes.plot(
        [place(step) for step in dots], [step.value for step in dots], ".", color=CLOUD, markersize=3,
        label="candidates", zorder=1,
    )  # fmt: skip
    if generations:
        at = [place(step) for step in generations]
        axes.fill_between(
            at, [step.low or 0.0 for step in generations], [step.high or 0.0 for step in generations],
            color=ORANGE, alpha=0.22, linewidth=0, zorder=2,
        )  # fmt: skip
        medians = [step.median or 0.0 for step in generations]
        mark = "o" if len(generations) < 40 else ""
        axes.plot(at, medians, "-", marker=mark, markersize=2.5, color=ORANGE, label="median of a generation", zorder=3)
    corners = [step for step in steps if step.candidate == step.best_candidate] + [steps[-1]]
    axes.step(
        [place(step) for step in corners], [step.best for step in corners], where="post", color=BLUE, linewidth=1.8,
        label="best so far", zorder=4,
    )  # fmt: skip
    if history.baselines:
        name, value = history.baselines[0]
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1.0, zorder=2, label=f"best baseline: {name}")


def _draw_volume(axes: Axes, history: History, place: _Place) -> None:
    known = [step for step in history.generations if step.hypervolume is not None]
    axes.step(
        [place(step) for step in known], [step.hypervolume or 0.0 for step in known], where="post", color=GREEN,
        linewidth=1.8,
    )  # fmt: skip


def _time_unit(seconds: float) -> tuple[float, str]:
    """Seconds of the unit of a time axis, and its label."""
    for least, unit, name in ((2 * 86400, 86400.0, "days"), (3 * 3600, 3600.0, "hours"), (180, 60.0, "minutes")):
        if seconds >= least:
            return unit, name
    return 1.0, "seconds"
