"""What candidates cost over a run: merge, forward and metric stacked, and their wait for a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evomerge.reports.look import BLUE, CLOUD, NARROW_INCHES, ORANGE, PAGE, PINK, FigureSize
from evomerge.reports.plain_figure import Drawing, draw, quiet
from evomerge.reports.run_cost import EvaluationCost, RunCost, total

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BARS = 160
PARTS = (("merge", ORANGE), ("forward", BLUE), ("metric", PINK))


def cost_figure(cost: RunCost, size: FigureSize = PAGE) -> Drawing | None:
    """Bars by candidate in order of completion; where there are many, a bar is the mean of neighbours.

    Args:
        cost: of the run.
        size: of the figure.

    Returns:
        None while no candidate has been scored.
    """
    if not cost.candidates:
        return None
    bars = list(_binned(cost.candidates))
    edges = [start for start, _ in bars] + [cost.candidates[-1].evaluations + 0.5]
    narrow = size.width < NARROW_INCHES

    def draw_on(figure: Figure) -> None:
        work, wait = figure.subplots(2, 1) if narrow else figure.subplots(1, 2, width_ratios=[1.6, 1])
        bottom = np.zeros(len(bars))
        for part, colour in PARTS:
            top = bottom + np.array([seconds[part] for _, seconds in bars])
            work.stairs(top, edges, baseline=bottom, fill=True, color=colour, label=part, linewidth=0)
            bottom = top
        work.set_ylabel("seconds of a candidate")
        work.set_title("work")
        wait.stairs([seconds["wait"] for _, seconds in bars], edges, fill=True, color=CLOUD, linewidth=0)
        wait.set_title("wait for a worker")
        for axes in (work, wait):
            axes.set_xlabel("evaluations")
            axes.set_xlim(edges[0], edges[-1])
            axes.set_ylim(0, None)
            quiet(axes)
        figure.legend(*work.get_legend_handles_labels(), loc="outside lower center", ncols=3)

    mean = total([item.seconds for item in cost.candidates])
    count = len(cost.candidates)
    alt = (
        f"Seconds of each of {count} candidates; on average merge {mean.merge / count:.2f}, forward "
        f"{mean.forward / count:.2f}, metric {mean.metric / count:.2f}, wait {mean.wait / count:.2f}."
    )
    return draw("cost", draw_on, alt, height=4.2 if narrow else 2.6, size=size)


def _binned(costs: tuple[EvaluationCost, ...]) -> list[tuple[float, dict[str, float]]]:
    """(left edge, mean seconds by part) of each bar."""
    stride = max(1, -(-len(costs) // MAX_BARS))
    bars = []
    for start in range(0, len(costs), stride):
        group = costs[start : start + stride]
        means = {
            part: sum(getattr(item.seconds, part) for item in group) / len(group)
            for part in ("merge", "forward", "metric", "wait")
        }
        bars.append((group[0].evaluations - 0.5, means))
    return bars
