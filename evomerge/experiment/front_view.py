"""The front of a run as plain data, for tables, figures and summaries: members and baselines on every split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.evaluation.front_statistics import MeasuredPoint, Resampling, front_uncertainty
from evomerge.experiment.baselines import baseline_key
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.inspecting import OpenRun, front_records, knee_record, open_run, read_summary
from evomerge.experiment.search_loop import candidate_key
from evomerge.store.events import Evaluated
from evomerge.store.manifest import load_manifest
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import CandidateRecord, RunState
from evomerge.terms import SPLITS, Objective, SplitName, derive_seed


@dataclass(frozen=True)
class ObjectiveScore:
    """A point in one objective, natural direction; no ``low`` and ``high`` where no documents say how sure it is."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PointScores:
    """A point on the documents of one split.

    Attributes:
        scores: M, in the order of the view's objectives.
        probability: share of draws of other documents in which no (other) member dominates it; None where no
            documents say so.
        dominated_by: names of the (other) members that dominate it here.
    """

    scores: tuple[ObjectiveScore, ...]
    probability: float | None = None
    dominated_by: tuple[str, ...] = ()

    @property
    def is_behind(self) -> bool:
        """Whether another member dominates it here."""
        return bool(self.dominated_by)


@dataclass(frozen=True)
class FrontPoint:
    """A member of the front, the winner where it is none, or a baseline.

    Attributes:
        name: ``c12``, or the baseline's name.
        candidate: its id, None for baselines.
        is_member: whether it is on the front of the search documents.
        splits: where it was scored.
        generation: that asked it, None for baselines.
        recipe_id: of its recipe.
        missed: by how much it misses the constraints on search documents in sum; 0 = all kept.
    """

    name: str
    candidate: int | None
    is_member: bool
    splits: Mapping[SplitName, PointScores]
    generation: int | None = None
    recipe_id: str = ""
    missed: float = 0.0


@dataclass(frozen=True)
class FrontView:
    """The front of a run, at any time.

    Attributes:
        name: the experiment's.
        objectives: M.
        points: members, best by the objectives' weights first; then the winner where it is no member; then baselines.
        best: the winner of a finished run, else the best so far; None while nothing is scored.
        knee: the member at the knee, see `evomerge.search.knee`; None while nothing is scored.
        knee_split: the documents it was found on: ``validation`` where members were scored there, else ``search``.
        confidence: what the intervals cover.
        num_documents: of the objectives together, by split; absent where nothing was scored.
        constraints: as the experiment writes them.
    """

    name: str
    objectives: tuple[Objective, ...]
    points: tuple[FrontPoint, ...]
    best: int | None
    knee: int | None
    knee_split: SplitName
    confidence: float
    num_documents: Mapping[SplitName, int]
    constraints: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[FrontPoint, ...]:
        """The points on the front of the search documents."""
        return tuple(point for point in self.points if point.is_member)

    @property
    def baselines(self) -> tuple[FrontPoint, ...]:
        """The points that nobody searched."""
        return tuple(point for point in self.points if point.candidate is None)

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """Where any member was scored, in the order search, validation, held-out."""
        return tuple(split for split in SPLITS if any(split in point.splits for point in self.members))

    def dominated_baselines(self, point: FrontPoint, split: SplitName) -> tuple[str, ...]:
        """Names of the baselines that a member dominates on a split."""
        scored = [baseline for baseline in self.baselines if split in baseline.splits]
        return tuple(baseline.name for baseline in scored if point.name in baseline.splits[split].dominated_by)


def front_view(run: str | Path | OpenRun, num_resamples: int | None = None) -> FrontView:
    """The front of a run, also while it goes on.

    Args:
        run: run directory, or a run that is open.
        num_resamples: draws of documents, None = ``finish.bootstrap_samples``; 0 = no intervals and probabilities.

    Raises:
        UserError: there is no run, or its scores cannot be read.
    """
    opened = run if isinstance(run, OpenRun) else open_run(run)
    winner = read_summary(opened.run_dir).get("winner")
    return view_of(opened.run_dir, opened.config, opened.state, winner["candidate"] if winner else None, num_resamples)


def view_of(
    run_dir: RunDir,
    config: ExperimentConfig,
    state: RunState,
    winner: int | None = None,
    num_resamples: int | None = None,
) -> FrontView:
    """The front of a state. See ``front_view``.

    Args:
        run_dir: holds the per-document scores.
        config: the run's experiment; its models need not be on this machine.
        state: what its log says.
        winner: of a finished run, None = the best so far.
        num_resamples: draws of documents.
    """
    started, finish = state.started, config.finish
    assert started is not None
    records = front_records(state)
    best = state.best() if winner is None else state.candidates[winner]
    others = [best] if best is not None and best.id not in {record.id for record in records} else []
    plain = [_candidate_point(record, True) for record in records] + [_candidate_point(item, False) for item in others]
    plain += [_baseline_point(state, name) for name in _baseline_names(config, state)]
    draws = finish.bootstrap_samples if num_resamples is None else num_resamples
    reader = _Reader(run_dir, state, Resampling(derive_seed(config.seed, "front"), draws, finish.confidence))
    for split in SPLITS:
        plain = reader.with_scores(plain, split)
    found, split = knee_record(state, records, finish.front_size)
    return FrontView(
        started.name,
        started.objectives,
        tuple(point for point in plain if point.splits),
        None if best is None else best.id,
        None if found is None else found.id,
        split,
        finish.confidence,
        reader.num_documents,
        started.constraints,
    )


def split_key(point: FrontPoint, split: SplitName) -> str:
    """Key of a point's evaluation on a split."""
    if point.candidate is None:
        return baseline_key(point.name, split)
    return candidate_key(point.candidate) if split == "search" else f"{split}:{candidate_key(point.candidate)}"


class _Reader:
    """Scores of points, split by split."""

    def __init__(self, run_dir: RunDir, state: RunState, resampling: Resampling) -> None:
        assert state.started is not None
        self._state = state
        self._objectives = state.started.objectives
        self._store = run_dir.score_store()
        self._resampling = resampling
        self._plan = load_manifest(run_dir.manifest_path).documents if run_dir.manifest_path.exists() else {}
        self.num_documents: dict[SplitName, int] = {}

    def with_scores(self, points: Sequence[FrontPoint], split: SplitName) -> list[FrontPoint]:
        """The points with their scores on one split, where they have some."""
        events = [self._state.outcomes.get(split_key(point, split)) for point in points]
        places = [place for place, event in enumerate(events) if isinstance(event, Evaluated)]
        measured = [self._measured(event) for event in events if isinstance(event, Evaluated)]
        if not measured:
            return list(points)
        rivals = [points[place].is_member for place in places]
        sure = front_uncertainty(measured, self._objectives, rivals, self._resampling, self._document_sets(split))
        behind = _dominated_by(measured, self._objectives, [points[place].name for place in places], rivals)
        self.num_documents[split] = sum(len(table.values) for table in measured[0].tables if table is not None)
        found = list(points)
        for number, place in enumerate(places):
            scores = tuple(
                ObjectiveScore(value) if interval is None else ObjectiveScore(value, interval.low, interval.high)
                for value, interval in zip(measured[number].values, sure[number].intervals, strict=True)
            )
            here = PointScores(scores, sure[number].probability, behind[number])
            found[place] = replace(points[place], splits={**points[place].splits, split: here})
        return found

    def _measured(self, event: Evaluated) -> MeasuredPoint:
        values = tuple(objective.natural(value) for objective, value in zip(self._objectives, event.fitness))
        wanted = event.scores_ref if self._resampling.num_resamples else None
        tables = {table.objective: table for table in self._store.load(wanted)} if wanted else {}
        return MeasuredPoint(values, tuple(tables.get(objective.name) for objective in self._objectives))

    def _document_sets(self, split: SplitName) -> list[str]:
        """A name for the documents of each objective: objectives over the same documents are drawn together."""
        plans: list[Mapping[str, Any]] = self._plan.get("fitness", [])
        found = []
        for objective in self._objectives:
            mine = [
                plan
                for plan in plans
                if objective.name == plan["name"] or objective.name.startswith(f"{plan['name']}/")
            ]
            parts = [member["splits"].get(split, {}).get("hashes") for member in mine[0]["members"]] if mine else []
            found.append(json.dumps(parts) if parts and all(parts) else objective.name)
        return found


def _dominated_by(
    points: Sequence[MeasuredPoint], objectives: Sequence[Objective], names: Sequence[str], rivals: Sequence[bool]
) -> list[tuple[str, ...]]:
    """For each point the names of the rivals that are at least as good everywhere and better somewhere."""
    signs = np.array([objective.natural(1.0) for objective in objectives])
    rows = np.array([point.values for point in points]) * signs
    found = []
    for row in rows:
        dominating = np.all(rows >= row, axis=1) & np.any(rows > row, axis=1)
        found.append(tuple(name for name, is_it, rival in zip(names, dominating, rivals) if is_it and rival))
    return found


def _candidate_point(record: CandidateRecord, is_member: bool) -> FrontPoint:
    asked = record.asked
    return FrontPoint(f"c{record.id}", record.id, is_member, {}, asked.generation, asked.recipe_id, record.violation)


def _baseline_point(state: RunState, name: str) -> FrontPoint:
    events = [state.outcomes.get(baseline_key(name, split)) for split in SPLITS]
    recipe_id = next((event.recipe_id for event in events if event is not None), "")
    return FrontPoint(name, None, False, {}, recipe_id=recipe_id)


def _baseline_names(config: ExperimentConfig, state: RunState) -> list[str]:
    """Baselines with an outcome: the experiment's models first, then what is made of them."""
    scored = {key.split(":")[1] for key in state.outcomes if key.startswith("baseline:")}
    models = ["base", *(f"expert {name}" for name in config.models.experts)]
    models += [f"stage {name}" for name in config.models.stages]
    return [name for name in models if name in scored] + sorted(scored - set(models))
