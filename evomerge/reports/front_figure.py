"""The front of a search as a figure: a scatter of two objectives, parallel coordinates and pairs of more.

Members of the front are blue, hollow where another member dominates them on these documents; the winner is vermillion;
baselines are grey and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.reports.front_points import FrontData, FrontMark, FrontSplit, tooltip
from evomerge.reports.look import BLUE, CLOUD, GREY, INK, NARROW_INCHES, PAGE, VERMILLION, FigureSize
from evomerge.reports.parallel_figure import parallel_figure
from evomerge.reports.plain_figure import Drawing, draw, quiet, settle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ERROR_BARS = 60


def front_figures(front: FrontData, size: FigureSize = PAGE) -> list[Drawing]:
    """The figures of a front: one of two objectives with a panel for each split, of more objectives one for each split.

    In the first panel or figure, the search documents', the mark of every member has the gid ``front-c<candidate>``.

    Args:
        front: at least two objectives.
        size: of each figure.

    Returns:
        Empty while there is no member.
    """
    splits = [split for split in front.splits if any(mark.is_member for mark in split.marks)]
    if len(front.objectives) < 2 or not splits:
        return []
    if len(front.objectives) == 2:
        return [_scatter(front, splits, size)]
    names = ["front", *(f"front_{split.label.replace('-', '_')}" for split in splits[1:])]
    return [
        parallel_figure(name, front, split, size, gids=not at) for at, (name, split) in enumerate(zip(names, splits))
    ]


def _scatter(front: FrontData, splits: Sequence[FrontSplit], size: FigureSize) -> Drawing:
    narrow = size.width < NARROW_INCHES
    labels = front.labels

    def draw_on(figure: Figure) -> None:
        shape = (len(splits), 1) if narrow else (1, len(splits))
        panels = figure.subplots(*shape, squeeze=False).ravel()
        for at, (axes, split) in enumerate(zip(panels, splits)):
            draw_pair(axes, split, (0, 1), error_bars=True, gids=at == 0)
            axes.set_xlabel(labels[0])
            axes.set_ylabel(labels[1])
            axes.set_title(f"{split.label} documents")
        handles = legend_handles(splits)
        figure.legend(
            handles=handles, loc="outside lower center", ncols=2 if narrow else len(handles), columnspacing=1.4
        )
        named = [(axes, named_marks(split.marks)) for axes, split in zip(panels, splits)]
        settle(figure)  # names are placed where points are
        for axes, marks in named:
            _name_marks(axes, marks, size.font * 0.88)

    members = [mark for mark in splits[0].marks if mark.is_member]
    alt = f"Front of {labels[0]} and {labels[1]}: {len(members)} candidates that no other one dominates, and baselines."
    titles = {f"front-{mark.name}": tooltip(mark, front.objectives) for mark in members}
    height = 3.0 * len(splits) + 0.3 if narrow else 4.3
    return draw("front", draw_on, alt, height=height, size=size, titles=titles)


def draw_pair(
    axes: Axes, split: FrontSplit, pair: tuple[int, int], *, error_bars: bool, gids: bool = False, marker: float = 5.5
) -> None:
    """Two objectives of a front against each other.

    Args:
        axes: to draw on.
        split: the points.
        pair: indices of the objectives on x and y.
        error_bars: draw the intervals, where there are not too many.
        gids: give members' marks their ids.
        marker: size of a mark, in points.
    """
    x, y = pair
    if split.cloud:
        axes.plot(
            [values[x] for values in split.cloud], [values[y] for values in split.cloud], ".", color=CLOUD,
            markersize=marker * 0.5, zorder=1,
        )  # fmt: skip
    if error_bars and sum(mark.is_member for mark in split.marks) <= MAX_ERROR_BARS:
        _draw_bars(axes, split.marks, pair)
    groups: dict[tuple[str, int, str, str, bool], list[FrontMark]] = {}
    for mark in split.marks:
        own = mark.name if gids and mark.is_member else ""
        groups.setdefault((own, _rank(mark), marker_of(mark), colour_of(mark), is_hollow(mark)), []).append(mark)
    for (own, rank, shape, colour, hollow), marks in groups.items():
        (drawn,) = axes.plot(
            [mark.values[x] for mark in marks], [mark.values[y] for mark in marks], shape, color=colour,
            linestyle="", markersize=marker * (1.6 if shape == "*" else 1.0), markeredgewidth=1.1,
            markerfacecolor="white" if hollow else colour, zorder=3 + rank,
        )  # fmt: skip
        if own:
            drawn.set_gid(f"front-{own}")
    axes.margins(0.06)
    quiet(axes)


def marker_of(mark: FrontMark) -> str:
    """A baseline is a diamond, the winner a star, the knee a square, any other member a disc."""
    if mark.candidate is None:
        return "D"
    return "*" if mark.is_best else "s" if mark.is_knee else "o"


def colour_of(mark: FrontMark) -> str:
    """Of a mark and its bars."""
    return VERMILLION if mark.is_best else BLUE if mark.is_member else GREY


def is_hollow(mark: FrontMark) -> bool:
    """Whether it is a member that another one dominates here."""
    return mark.is_member and mark.is_behind


def _rank(mark: FrontMark) -> int:
    """What lies on top of what."""
    return 2 if mark.is_best else 1 if mark.is_member else 0


def named_marks(marks: Sequence[FrontMark]) -> list[FrontMark]:
    """What is worth a name in a figure."""
    return [mark for mark in marks if mark.candidate is None or mark.is_best or mark.is_knee]


def legend_handles(splits: Sequence[FrontSplit]) -> list[object]:
    """One handle for each kind of mark that occurs."""
    from matplotlib.lines import Line2D

    marks = [mark for split in splits for mark in split.marks]
    kinds = [
        (any(mark.is_best for mark in marks), "*", VERMILLION, VERMILLION, "winner, or best so far"),
        (any(mark.is_member for mark in marks), "o", BLUE, BLUE, "member of the front"),
        (any(mark.is_member and mark.is_behind for mark in marks), "o", BLUE, "white", "member that is behind here"),
        (any(mark.is_knee and not mark.is_best for mark in marks), "s", BLUE, BLUE, "knee"),
        (any(mark.candidate is None for mark in marks), "D", GREY, GREY, "baseline"),
        (any(split.cloud for split in splits), ".", CLOUD, CLOUD, "other candidates"),
    ]
    return [
        Line2D([], [], marker=marker, color=colour, markerfacecolor=face, linestyle="", label=label)
        for shown, marker, colour, face, label in kinds
        if shown
    ]


def _draw_bars(axes: Axes, marks: Sequence[FrontMark], pair: tuple[int, int]) -> None:
    from matplotlib.collections import LineCollection

    lines: list[list[tuple[float, float]]] = []
    colours: list[str] = []
    for mark in marks:
        at = mark.values[pair[0]], mark.values[pair[1]]
        ends = [mark.interval(index) for index in pair]
        bars = [
            *([] if ends[0] is None else [[(ends[0][0], at[1]), (ends[0][1], at[1])]]),
            *([] if ends[1] is None else [[(at[0], ends[1][0]), (at[0], ends[1][1])]]),
        ]
        lines += bars
        colours += [colour_of(mark)] * len(bars)
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.8, alpha=0.5, zorder=2))


def _name_marks(axes: Axes, marks: Sequence[FrontMark], font: float) -> None:
    """Write names beside points, each moved up or down until it covers no other name."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    points_per_pixel = 72.0 / figure.dpi
    right_edge = axes.get_window_extent().x1 * points_per_pixel
    taken: list[tuple[float, float, float, float]] = []
    for mark in marks:
        x, y = (float(value) * points_per_pixel for value in axes.transData.transform(mark.values[:2]))
        taken.append((x - 4, y - 4, x + 4, y + 4))
    for mark in sorted(marks, key=lambda mark: mark.values[1]):
        x, y = (float(value) * points_per_pixel for value in axes.transData.transform(mark.values[:2]))
        width, height = 0.6 * font * len(mark.name), font * 1.15
        left = x + 7 + width > right_edge + 4
        start = x - 7 - width if left else x + 7
        shift = 0.0
        for step in range(24):
            shift = (step + 1) // 2 * height * 0.5 * (-1 if step % 2 else 1)
            box = (start, y + shift - height / 2, start + width, y + shift + height / 2)
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                break
        taken.append((start, y + shift - height / 2, start + width, y + shift + height / 2))
        leader = {"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            mark.name, (mark.values[0], mark.values[1]), xytext=(-7 if left else 7, shift), textcoords="offset points",
            ha="right" if left else "left", va="center", fontsize=font, zorder=6, annotation_clip=False,
            color=INK if mark.candidate is None else colour_of(mark),
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.65, "pad": 0.6},
            arrowprops=leader if abs(shift) > height else None,
        )  # fmt: skip
