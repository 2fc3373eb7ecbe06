"""The figures of a report: which there are, and what is said below each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from evomerge.experiment.report_data import ReportData
from evomerge.recipes.recipe import Route
from evomerge.reports.candidates_figure import ScoredModel, candidates_figure
from evomerge.reports.convergence_figure import convergence_figure
from evomerge.reports.cost_figure import cost_figure
from evomerge.reports.front_figure import front_figures
from evomerge.reports.front_points import FrontData, FrontSplit
from evomerge.reports.heat_map_figure import heat_map_figure
from evomerge.reports.importance_figure import MAX_BARS, importance_figure
from evomerge.reports.look import PAGE, FigureSize
from evomerge.reports.plain_figure import Drawing
from evomerge.reports.route_figure import route_figure

MAX_ROUTES = 12


@dataclass(frozen=True)
class Shown:
    """A figure and what is said below it."""

    drawing: Drawing
    caption: str


def convergence(data: ReportData, size: FigureSize = PAGE) -> Iterator[Shown]:
    """How the search went."""
    drawing = convergence_figure(data.history, size)
    if drawing is not None:
        yield Shown(
            drawing,
            "Scores on search documents. Dots: candidates; band: the middle half of each generation. The best of many "
            "noisy scores is too good by chance; what held-out documents say is above. Seconds leave out pauses "
            "between sessions.",
        )


def front(data: ReportData, size: FigureSize = PAGE) -> Iterator[Shown]:
    """The front of several objectives; of one objective its candidates and the winner beside the baselines."""
    if not data.has_many_objectives:
        yield from _candidates(data, size)
        return
    interval = f"{data.view.confidence:.0%} intervals over documents"
    for drawing in front_figures(_searched_and_held_out(data.front), size):
        if len(data.started.objectives) == 2:
            text = f"Each point with its {interval}. A hollow member is dominated there by another member."
        else:
            text = (
                f"Above one line for each point, intervals only of the best and the knee; below every pair of "
                f"objectives, with {interval}. Dashed or hollow members are dominated by another member."
            )
        yield Shown(drawing, f"{text} Members were found on the search documents.")


def coefficients(data: ReportData, size: FigureSize = PAGE) -> Iterator[Shown]:
    """The numbers of the best candidate's merge."""
    if data.best is None:
        return
    about = f"candidate {data.best.id}, {data.best_name}"
    drawing = heat_map_figure(data.heat_maps, about, size)
    if drawing is not None:
        yield Shown(drawing, f"The numbers of {about}: groups of blocks, the first on top, by experts.")


def importance(data: ReportData, size: FigureSize = PAGE) -> Iterator[Shown]:
    """Which parameters mattered."""
    drawing = importance_figure(data.importance, size)
    if drawing is not None:
        most = max(len(shares) for _, shares in data.importance)
        first = f" The first {MAX_BARS} of {most}." if most > MAX_BARS else ""
        yield Shown(
            drawing,
            "PED-ANOVA (Watanabe et al. 2023): how differently a parameter is spread among the best (a tenth of the "
            f"candidates, at least five) and among all, as shares of one objective's sum.{first} It takes each "
            "parameter alone, so it does not see parameters that matter together; it knows only where this search "
            "looked, which an optimizer narrows as it goes; it does not say which values are good; and with few "
            "candidates it is noise.",
        )


def routes(data: ReportData, size: FigureSize = PAGE) -> Iterator[Shown]:
    """The path of the best candidate, and those of the front; as wide as they are long."""
    if data.recipe is None or not isinstance(data.recipe.model, Route):
        return
    for record, name, about in data.routed(MAX_ROUTES):
        recipe = data.recipe_of(record)
        figure = route_figure(recipe, f"{data.config.name}: {about}", tuple(data.route_depths(recipe)))
        if figure is not None:
            yield Shown(Drawing(name, figure, f"The path of {about}: which block runs at which step."), about)


def cost(data: ReportData, size: FigureSize = PAGE) -> Iterator[Shown]:
    """What candidates cost."""
    drawing = cost_figure(data.cost, size)
    if drawing is not None:
        yield Shown(drawing, "Seconds of each candidate, in the order in which they finished.")


class Figures:
    """The figures of a run by section, each drawn once.

    Args:
        data: the run.
        size: of all figures but those of paths.
    """

    SECTIONS = ("convergence", "front", "coefficients", "routes", "importance", "cost")

    def __init__(self, data: ReportData, size: FigureSize = PAGE) -> None:
        self._data = data
        self._size = size
        self._drawn: dict[str, tuple[Shown, ...]] = {}

    def of(self, section: str) -> tuple[Shown, ...]:
        """The figures of a section.

        Raises:
            UserError: what it shows cannot be read, or the models are not on this machine.
        """
        if section not in self._drawn:
            draw: dict[str, Callable[[ReportData, FigureSize], Iterator[Shown]]] = {
                "convergence": convergence, "front": front, "coefficients": coefficients, "routes": routes,
                "importance": importance, "cost": cost,
            }  # fmt: skip
            self._drawn[section] = tuple(draw[section](self._data, self._size))
        return self._drawn[section]


def _searched_and_held_out(front: FrontData) -> FrontData:
    """What figures show: where members were found, and what is true of them; the tables have all splits."""
    return FrontData(front.objectives, tuple(split for split in front.splits if split.label != "validation"))


def _candidates(data: ReportData, size: FigureSize) -> Iterator[Shown]:
    split = data.front.splits[-1] if data.front.splits else FrontSplit("search", ())
    models = [
        ScoredModel(
            f"c{mark.candidate}, {data.best_name}" if mark.is_best else mark.name,
            mark.values[0],
            mark.low[0] if mark.low else None,
            mark.high[0] if mark.high else None,
            is_winner=mark.is_best,
        )
        for mark in split.marks
        if mark.is_best or mark.candidate is None
    ]
    models.sort(key=lambda model: -model.value if data.history.higher_is_better else model.value)
    values = [step.value for step in data.history.steps]
    drawing = candidates_figure(values, models, data.history.label, split.label, size)
    if drawing is not None:
        yield Shown(
            drawing,
            f"The models on {split.label} documents with their {data.view.confidence:.0%} intervals, and all "
            "candidates on search documents.",
        )
