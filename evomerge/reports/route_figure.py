"""A route as a figure: which block of which model runs at which step, and how its input is scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.recipes.recipe import Recipe, Route
from evomerge.reports.look import COLOURS, NEGATIVE
from evomerge.reports.plain_figure import settle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLOCK_INCHES = 0.085  # of the y axis
HOP_INCHES = 0.16


def route_figure(recipe: Recipe, title: str = "", depths: Sequence[tuple[str, int]] = ()) -> Figure | None:
    """The figure of a recipe's route.

    x is the step, y the block, one band of rows for each model with its first block at the bottom. The size of a mark
    and the width of the line that leads to it grow with the scale of the block's input; a negative scale is hollow and
    crossed. ``output_scale`` is written behind the last step.

    Args:
        recipe: any recipe.
        title: above the figure; the recipe's id when empty.
        depths: (model, number of blocks) where known; else a band ends at the last block that the route uses.

    Returns:
        The figure; None when the recipe is no route.
    """
    route = recipe.model
    if not isinstance(route, Route):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bands = _bands(route, dict(depths))
    rows = sum(rows for _, _, rows in bands)
    width = min(max(5.0, 1.6 + HOP_INCHES * len(route.hops)), 16.0)
    height = min(max(2.4, 1.3 + BLOCK_INCHES * rows + 0.25 * len(bands)), 16.0)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    colours = {name: COLOURS[index % len(COLOURS)] for index, (name, _, _) in enumerate(bands)}
    _draw_bands(axes, bands, colours, len(route.hops))
    _draw_path(axes, route, {name: start for name, start, _ in bands}, colours)
    _label(axes, route, bands, colours, title or f"recipe {recipe.recipe_id}")
    FigureCanvasAgg(figure)
    settle(figure)
    return figure


def _bands(route: Route, depths: dict[str, int]) -> list[tuple[str, int, int]]:
    """(model, first row, number of rows) for every model, the one that lends the ends at the bottom."""
    names = sorted((name for name, _ in route.models), key=lambda name: name != route.ends)
    bands, start = [], 0
    for name in names:
        used = [hop.block for hop in route.hops if hop.model == name]
        rows = max(depths.get(name, 0), max(used, default=0) + 1)
        bands.append((name, start, rows))
        start += rows + 1
    return bands


def _draw_bands(axes: Axes, bands: list[tuple[str, int, int]], colours: dict[str, str], num_hops: int) -> None:
    for name, start, rows in bands:
        axes.axhspan(start - 0.5, start + rows - 0.5, color=colours[name], alpha=0.08, linewidth=0)
        axes.text(num_hops - 0.2, start + rows - 1, f" {name}", color=colours[name], va="top", ha="left", clip_on=False)


def _draw_path(axes: Axes, route: Route, starts: dict[str, int], colours: dict[str, str]) -> None:
    from matplotlib.collections import LineCollection

    rows = [starts[hop.model] + hop.block for hop in route.hops]
    later = route.hops[1:]
    lines = LineCollection(
        [[(step, rows[step]), (step + 1, rows[step + 1])] for step in range(len(later))],
        colors=[colours[hop.model] for hop in later],
        linewidths=[0.3 + 0.9 * min(abs(hop.scale), 3.0) for hop in later],
        linestyles=["--" if hop.scale < 0 else "-" for hop in later],
        alpha=0.7,
    )
    axes.add_collection(lines)
    for step, hop in enumerate(route.hops):
        negative = hop.scale < 0
        size = 2.5 + 2.5 * min(abs(hop.scale), 3.0) + 2.0 * negative
        colour = NEGATIVE if negative else colours[hop.model]
        (mark,) = axes.plot(
            [step], [rows[step]], "X" if negative else "o", color=colour, markersize=size,
            markerfacecolor="white" if negative else colour, markeredgewidth=0.9, zorder=3,
        )  # fmt: skip
        mark.set_gid(f"hop-{step}-{hop.model}-{hop.block}")


def _label(axes: Axes, route: Route, bands: list[tuple[str, int, int]], colours: dict[str, str], title: str) -> None:
    from matplotlib.lines import Line2D

    counts = {name: sum(hop.model == name for hop in route.hops) for name, _, _ in bands}
    handles = [
        Line2D([], [], marker="o", linestyle="-", color=colours[name], label=f"{name}: {counts[name]} hops"
               + (", ends" if name == route.ends else ""))
        for name, _, _ in bands
    ]  # fmt: skip
    scales = [hop.scale for hop in route.hops]
    scaled = ""
    if route.is_scaled:
        output = f", output {route.output_scale:.3g}" if route.output_scale != 1 else ""
        scaled = f"; scale of the {route.scale_target} {min(scales):.3g} to {max(scales):.3g}{output}"
    if any(scale < 0 for scale in scales):
        handles.append(
            Line2D([], [], marker="X", linestyle="--", color=NEGATIVE, markerfacecolor="white", label="negative scale")
        )
    figure = axes.get_figure(root=True)
    assert figure is not None
    columns = min(len(handles), 3 if figure.get_figwidth() > 6 else 2)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
    ticks = [(start + block, block) for _, start, rows in bands for block in _tick_blocks(rows)]
    axes.set_yticks([place for place, _ in ticks], [str(block) for _, block in ticks], fontsize="small")
    axes.set_xlim(-0.8, len(route.hops) - 0.2)
    axes.set_ylim(-0.9, sum(rows + 1 for _, _, rows in bands) - 0.6)
    axes.set_xlabel("step" + scaled)
    axes.set_ylabel("block")
    axes.set_title(title, fontsize="medium", loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _tick_blocks(rows: int) -> list[int]:
    """The first and last block, and some between them."""
    stride = max(1, -(-rows // 5))
    ticks = list(range(0, rows, stride))
    if rows - 1 - ticks[-1] >= max(1, stride // 2):
        ticks.append(rows - 1)
    return ticks
