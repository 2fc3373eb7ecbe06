"""A front of three or more objectives: parallel coordinates, and every pair of objectives below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from evomerge.reports.front_points import FrontData, FrontMark, FrontSplit, thinned_cloud, tooltip
from evomerge.reports.look import BLUE, GREY, INK, NARROW_INCHES, PURPLE, VERMILLION, FigureSize
from evomerge.reports.plain_figure import Drawing, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PAIRS = 10
MAX_CLOUD = 900
PAIR_INCHES = 2.5


def parallel_figure(name: str, front: FrontData, split: FrontSplit, size: FigureSize, gids: bool = False) -> Drawing:
    """One figure of a front on one split.

    Every axis goes from the worst to the best value of any point that is shown, better ones on top.

    Args:
        name: of its files.
        front: names the objectives.
        split: the points.
        size: of the figure.
        gids: give the line of every member the gid ``front-c<candidate>``.
    """
    narrow = size.width < NARROW_INCHES
    pairs = list(combinations(range(len(front.objectives)), 2))[:MAX_PAIRS]
    columns = 2 if narrow else 5 if len(pairs) > 6 else 3
    rows = -(-len(pairs) // columns)
    pair_inches = 1.7 if narrow else 2.1 if columns == 5 else PAIR_INCHES
    top_inches = 2.9

    def draw_on(figure: Figure) -> None:
        from evomerge.reports.front_figure import draw_pair, legend_handles

        top, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[top_inches, rows * pair_inches]).ravel()
        _draw_lines(top.subplots(), front, split, gids=gids, font=size.font)
        below_split = replace(split, cloud=thinned_cloud(split.cloud, MAX_CLOUD // len(pairs)))
        panels = below.subplots(rows, columns, squeeze=False).ravel()
        for axes, (x, y) in zip(panels, pairs):
            draw_pair(axes, below_split, (x, y), error_bars=True, marker=4.0)
            axes.set_xlabel(front.objectives[x].name)
            axes.set_ylabel(front.objectives[y].name)
        for axes in panels[len(pairs) :]:
            axes.set_visible(False)
        handles = legend_handles([split])
        figure.legend(
            handles=handles, loc="outside lower center", ncols=2 if narrow else len(handles), columnspacing=1.4
        )

    members = [mark for mark in split.marks if mark.is_member]
    alt = (
        f"Front of {len(front.objectives)} objectives ({', '.join(front.labels)}) on {split.label} documents: "
        f"{len(members)} members and the baselines."
    )
    titles = {f"front-{mark.name}": tooltip(mark, front.objectives) for mark in members} if gids else {}
    return draw(name, draw_on, alt, height=top_inches + rows * pair_inches + 0.35, size=size, titles=titles)


def _draw_lines(axes: Axes, front: FrontData, split: FrontSplit, *, gids: bool, font: float) -> None:
    places = range(len(front.objectives))
    ranges = [_range(front, split.marks, index) for index in places]
    many = sum(mark.is_member for mark in split.marks) > 40
    for mark in sorted(split.marks, key=lambda mark: (mark.is_best, mark.is_knee, mark.is_member)):
        heights = [_height(mark.values[index], *ranges[index]) for index in places]
        colour = VERMILLION if mark.is_best else PURPLE if mark.is_knee else BLUE if mark.is_member else GREY
        (line,) = axes.plot(
            list(places), heights, linestyle="--" if mark.is_behind or not (mark.is_member or mark.is_best) else "-",
            color=colour, linewidth=2.2 if mark.is_best else 1.6 if mark.is_knee else 0.9,
            alpha=1.0 if mark.is_best or mark.is_knee else 0.35 if many else 0.7,
            zorder=5 if mark.is_best else 4 if mark.is_knee else 3 if mark.is_member else 2,
        )  # fmt: skip
        if gids and mark.is_member:
            line.set_gid(f"front-{mark.name}")
        if mark.is_best or mark.is_knee:
            _draw_bars(axes, mark, ranges, colour)
    _name_lines(axes, split.marks, [_height(mark.values[-1], *ranges[-1]) for mark in split.marks], font * 0.88)
    for index in places:
        worst, best = ranges[index]
        axes.axvline(index, color=INK, linewidth=0.6, zorder=1)
        for height, value, side in ((1.0, best, "bottom"), (0.0, worst, "top")):
            axes.text(index, height, f"{value:.3g}", ha="center", va=side, fontsize=font * 0.88)
    axes.set_xticks(list(places), front.labels)
    axes.tick_params(length=0, pad=12)
    axes.set_yticks([])
    axes.set_ylim(-0.02, 1.02)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{split.label} documents, the best value of each objective on top", pad=14)


def _name_lines(axes: Axes, marks: Sequence[FrontMark], heights: Sequence[float], font: float) -> None:
    """Names of baselines, winner and knee behind the last axis, apart from each other."""
    named = [
        (height, mark) for height, mark in zip(heights, marks) if mark.candidate is None or mark.is_best or mark.is_knee
    ]
    named.sort(key=lambda entry: entry[0])
    gap = min(0.075, 1.05 / max(1, len(named) - 1))
    places: list[float] = []
    for height, _ in named:
        places.append(height if not places else max(height, places[-1] + gap))
    over = 1.02
    for index in reversed(range(len(places))):
        places[index] = min(places[index], over)
        over = places[index] - gap
    end = len(marks[0].values) - 1
    figure = axes.get_figure(root=True)
    assert figure is not None
    room = 0.64 * font * max((len(mark.name) for _, mark in named), default=0) / (figure.get_figwidth() * 72)
    axes.set_xlim(-0.03 * end, end * 1.06 / (1 - room))
    for place, (height, mark) in zip(places, named):
        colour = VERMILLION if mark.is_best else PURPLE if mark.is_knee else GREY
        start, stop = end * 1.03, end * 1.055
        axes.plot([end, start, stop], [height, place, place], "-", color=colour, linewidth=0.5, clip_on=False, zorder=1)
        axes.text(stop + end * 0.005, place, mark.name, color=colour, fontsize=font, va="center", clip_on=False)


def _draw_bars(axes: Axes, mark: FrontMark, ranges: Sequence[tuple[float, float]], colour: str) -> None:
    for index, (worst, best) in enumerate(ranges):
        ends = mark.interval(index)
        if ends is not None:
            heights = [min(1.02, max(-0.02, _height(end, worst, best))) for end in ends]
            shift = 0.02 if mark.is_best else -0.02
            axes.plot([index + shift] * 2, heights, "-", color=colour, linewidth=3.0, alpha=0.35, zorder=2)


def _range(front: FrontData, marks: Sequence[FrontMark], index: int) -> tuple[float, float]:
    """(worst, best) value of an objective."""
    values = [mark.values[index] for mark in marks]
    low, high = min(values), max(values)
    return (low, high) if front.objectives[index].higher_is_better else (high, low)


def _height(value: float, worst: float, best: float) -> float:
    return 0.5 if worst == best else (value - worst) / (best - worst)
