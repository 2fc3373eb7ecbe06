"""What a report shows, read from a run directory, each part when it is wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evomerge.errors import UserError
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.estimation_summary import estimation_summary
from evomerge.experiment.front_view import FrontPoint, FrontView, view_of
from evomerge.experiment.inspecting import front_records
from evomerge.experiment.load import Experiment
from evomerge.experiment.objectives import build_one_number
from evomerge.experiment.racing_summary import racing_summary
from evomerge.recipes.recipe import Recipe, Route, Source, Stack, children
from evomerge.reports.coefficients import HeatMap, heat_maps
from evomerge.reports.front_points import FrontData, FrontMark, FrontSplit, thinned_cloud
from evomerge.reports.run_cost import RunCost, read_cost
from evomerge.reports.run_history import History, read_history
from evomerge.reports.summary_table import ONE_NUMBER, estimation_line, racing_line
from evomerge.search.calibration import Calibration
from evomerge.search.catalogue import SPECS
from evomerge.store.events import RunStarted
from evomerge.store.manifest import Manifest, load_manifest
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import CandidateRecord, RunState
from evomerge.store.study_columns import MIN_TRIALS
from evomerge.terms import SplitName

# Draws of documents while a run goes on; a finished one takes as many as its summary.
LIVE_RESAMPLES = 1000

Importance = tuple[tuple[str, tuple[tuple[str, float], ...]], ...]


@dataclass(frozen=True)
class ReportData:
    """A run as its report needs it.

    Attributes:
        run_dir: the run.
        config: its experiment as it is written.
        loaded: the same with its models; None where these are not on this machine.
        state: what its log says.
        summary: what summary.json holds; empty while it goes on.
    """

    run_dir: RunDir
    config: ExperimentConfig
    loaded: Experiment | None
    state: RunState
    summary: dict[str, Any]

    @property
    def started(self) -> RunStarted:
        """The first event."""
        assert self.state.started is not None
        return self.state.started

    @cached_property
    def manifest(self) -> Manifest:
        """With what the run was made."""
        return load_manifest(self.run_dir.manifest_path)

    @property
    def has_many_objectives(self) -> bool:
        """Whether there is a front to show."""
        return len(self.started.objectives) > 1

    @cached_property
    def best(self) -> CandidateRecord | None:
        """The winner, else the best so far."""
        winner = self.summary.get("winner")
        if winner:
            return self.state.candidates[int(winner["candidate"])]
        number = self.history.steps[-1].best_candidate if self.history.steps else None
        return None if number is None else self.state.candidates[number]

    @property
    def best_name(self) -> str:
        """What the best candidate is, in words."""
        return "the winner" if self.summary.get("winner") else "the best so far"

    @cached_property
    def history(self) -> History:
        """Scores over the run."""
        kind = self.config.scalarisation
        return read_history(self.state, self.one_number, str(ONE_NUMBER.get(kind, kind)))

    @cached_property
    def one_number(self) -> Callable[[tuple[float, ...]], float]:
        """From raw fitness to the number by which candidates are compared."""
        objectives = self.started.objectives
        known = self.state.calibrated
        calibration = Calibration(known.scales if known is not None else (1.0,) * len(objectives))
        normalised = [text != "raw" for text in self.started.normalise] or [False] * len(objectives)
        one_number = build_one_number(self.config, objectives, normalised)
        return lambda fitness: one_number(calibration.told(fitness))[0]

    def spared(self) -> Iterator[str]:
        """What racing or estimation spared, a line each; also while the run goes on."""
        racing, estimation = self.config.racing, self.config.estimation
        if racing is not None:
            many = SPECS[self.config.optimizer.name].multi_objective and self.has_many_objectives
            yield racing_line(racing_summary(self.state, racing.rule, many, self.one_number))
        if estimation is not None:
            yield estimation_line(estimation_summary(self.state, estimation.estimator, self.one_number))

    @cached_property
    def cost(self) -> RunCost:
        """Seconds over the run."""
        return read_cost(self.state)

    @cached_property
    def view(self) -> FrontView:
        """Front and baselines on every split."""
        winner = self.summary.get("winner")
        draws = None if self.summary else LIVE_RESAMPLES
        return view_of(self.run_dir, self.config, self.state, winner["candidate"] if winner else None, draws)

    @cached_property
    def front(self) -> FrontData:
        """The same as figures and tables take it."""
        view = self.view
        shown = {point.candidate for point in view.points}
        records, _ = self.state.scored()
        objectives = view.objectives
        others = [
            tuple(objective.natural(value) for objective, value in zip(objectives, record.fitness or ()))
            for record in records
            if record.id not in shown
        ]
        splits = []
        for split in view.splits:
            marks = tuple(_mark(view, point, split) for point in view.points if split in point.splits)
            cloud = thinned_cloud(others) if split == "search" else ()
            splits.append(FrontSplit(split.replace("_", "-"), marks, cloud))
        return FrontData(objectives, tuple(splits))

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe of the best candidate, None while there is none.

        Raises:
            UserError: the models are not on this machine.
        """
        return None if self.best is None else self.recipe_of(self.best)

    def recipe_of(self, record: CandidateRecord) -> Recipe:
        """The recipe of a candidate; raises as ``recipe`` does."""
        if self.loaded is None or self.loaded.space is None:
            raise UserError("the models of this run are not on this machine")
        return self.loaded.space.decode(record.asked.array)

    @cached_property
    def heat_maps(self) -> list[HeatMap]:
        """The numbers of the best candidate's merges; raises as ``recipe`` does."""
        if self.recipe is None:
            return []
        depths = {str(source): depth for source, depth in self._depths.items()}
        words = {word for gene in self.started.genes for word in re.split(r"[/.]", gene.name)}
        return heat_maps(self.recipe, depths, {word.removesuffix("_share") for word in words})

    @cached_property
    def importance(self) -> Importance:
        """Which parameters mattered; empty with few candidates."""
        if len(self.history.steps) < MIN_TRIALS:
            return ()
        from evomerge.store.parameter_importance import parameter_importance  # imports Optuna, which takes a second

        return parameter_importance(self.state)

    def routed(self, most: int) -> Iterator[tuple[CandidateRecord, str, str]]:
        """(candidate, file name, what it is) of the candidates whose paths are drawn."""
        if self.best is None:
            return
        yield self.best, "route_best", f"candidate {self.best.id}, {self.best_name}"
        members = front_records(self.state)
        if len(members) > 1:
            for record in members[:most]:
                yield record, f"route_c{record.id}", f"candidate {record.id}, member of the front"

    @property
    def _depths(self) -> dict[Source, int]:
        """Blocks of each model, where known."""
        if self.loaded is None:
            return {}
        named = dict(self.loaded.experts) | ({} if self.loaded.base is None else {"base": self.loaded.base})
        return {source: self.loaded.depths[name] for name, source in named.items() if name in self.loaded.depths}

    def route_depths(self, recipe: Recipe) -> Iterator[tuple[str, int]]:
        """(model, number of blocks) of a route's models, where known."""
        for name, node in recipe.model.models if isinstance(recipe.model, Route) else ():
            while not isinstance(node, Source | Stack):  # a merge is as deep as what it merges
                node = children(node)[0]
            depth = node.num_blocks if isinstance(node, Stack) else self._depths.get(node)
            if depth is not None:
                yield name, depth


def _mark(view: FrontView, point: FrontPoint, split: SplitName) -> FrontMark:
    here = point.splits[split]
    return FrontMark(
        point.name,
        tuple(score.value for score in here.scores),
        tuple(score.low for score in here.scores),
        tuple(score.high for score in here.scores),
        candidate=point.candidate,
        is_member=point.is_member,
        is_behind=here.is_behind,
        is_best=point.candidate is not None and point.candidate == view.best,
        is_knee=point.candidate is not None and point.candidate == view.knee,
        probability=here.probability if point.candidate is not None else None,
        dominated_by=here.dominated_by,
    )
