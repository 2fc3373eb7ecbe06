"""The numbers of a finished run, with intervals, as plain data."""

from __future__ import annotations

import statistics as plain
from collections.abc import Callable
from typing import Any

import numpy as np

from evomerge.errors import UserError
from evomerge.evaluation.cost_fitness import UNITS
from evomerge.evaluation.statistics import Interval, combined_interval, forget_draws, paired_difference, score_interval
from evomerge.experiment.backend_problems import scored_by
from evomerge.experiment.estimation_summary import estimation_summary
from evomerge.experiment.front_data import front_data
from evomerge.experiment.front_view import view_of
from evomerge.experiment.load import Experiment
from evomerge.experiment.objectives import Judge
from evomerge.experiment.racing_summary import racing_summary
from evomerge.experiment.recorder import RunRecorder
from evomerge.experiment.score_cache import recalled_summary
from evomerge.experiment.search_loop import candidate_key
from evomerge.experiment.split_scales import split_scales
from evomerge.files import atomic_write_json
from evomerge.search.catalogue import SPECS
from evomerge.store.estimation_events import Estimated
from evomerge.store.events import Evaluated, Stopped
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import RunState, read_state
from evomerge.terms import SPLITS, Array, DocumentScores, SplitName, derive_seed


class _Scores:
    """Reads evaluations by key, with their per-document scores."""

    def __init__(self, loaded: Experiment, recorder: RunRecorder, judge: Judge) -> None:
        self.recorder = recorder
        self.judge = judge
        self.reported = loaded.report
        self.settings = loaded.config.finish
        self.seed = derive_seed(loaded.config.seed, "bootstrap")
        self.scalarisation = loaded.config.scalarisation
        self.scales = {split: split_scales(loaded, recorder.outcomes, split, recorder.scales) for split in SPLITS}
        objectives = recorder.objectives
        # What has no share in the scalar value (costs) has none in its interval either.
        self.used = [
            place
            for place, objective in enumerate(objectives[:1] if self.scalarisation == "first" else objectives)
            if objective.weight
        ]
        self.names = {objectives[place].name for place in self.used}

    def shares(self, split: SplitName) -> list[float]:
        """Share of each used objective's natural score in the scalar value.

        Tables hold natural directions; a lowered metric counts negatively, as it does in the fitness.
        """
        used = [(self.recorder.objectives[place], self.scales[split].values[place]) for place in self.used]
        total = sum(objective.weight for objective, _ in used)
        return [objective.natural(objective.weight) / total / scale for objective, scale in used]

    def event(self, key: str) -> Evaluated | None:
        found = self.recorder.outcomes.get(key)
        return found if isinstance(found, Evaluated) else None

    def tables(self, event: Evaluated) -> tuple[DocumentScores, ...]:
        return self.recorder.scores.load(event.scores_ref) if event.scores_ref else ()

    def searched(self, event: Evaluated) -> list[DocumentScores] | None:
        """Tables of the objectives that make up the scalar value; None when one has none."""
        found = {table.objective: table for table in self.tables(event)}
        names = [self.recorder.objectives[place].name for place in self.used]
        return [found[name] for name in names] if self.names <= set(found) else None

    def interval(self, event: Evaluated) -> Interval | None:
        tables = self.searched(event)
        if tables is None:
            return None
        if self._is_linear:
            return score_interval(tables, weights=self.shares(_split(event)), **self._options())
        return combined_interval(tables, self._combined(_split(event)), **self._options())

    def paired(self, event: Evaluated, other: Evaluated) -> Interval | None:
        mine, theirs = self.searched(event), self.searched(other)
        if mine is None or theirs is None:
            return None
        if self._is_linear:
            return paired_difference(mine, theirs, weights=self.shares(_split(event)), **self._options())
        return combined_interval(mine, self._combined(_split(event)), theirs, **self._options())

    @property
    def _is_linear(self) -> bool:
        return self.scalarisation in ("weighted_mean", "first")

    def _combined(self, split: SplitName) -> Callable[[Array], Array]:
        """The function from natural scores ``(R, M)`` to their one number ``(R,)``."""
        objectives, scales = self.recorder.objectives, self.scales[split].values

        def combine(scores: Array) -> Array:
            fitness = np.zeros((len(scores), len(objectives)))  # what has no share (costs) may be anything
            for column, place in enumerate(self.used):
                fitness[:, place] = objectives[place].natural(1.0) * scores[:, column]
            return np.array([self.judge.scalarise(tuple(row), scales)[0] for row in fitness.tolist()])

        return combine

    def _options(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "num_resamples": self.settings.bootstrap_samples,
            "level": self.settings.confidence,
        }

    def cell(self, key: str) -> dict[str, Any] | None:
        """Scalar value, interval and every objective's own score of one evaluation."""
        event = self.event(key)
        if event is None:
            return None
        objectives = self.recorder.objectives
        scores = {objective.name: objective.natural(value) for objective, value in zip(objectives, event.fitness)}
        for table in self.tables(event):
            if table.objective not in scores and len(table.values):
                scores[table.objective] = float(table.values.mean())
        for config in self.reported:  # costs, which have no table
            if config.name not in scores and f"{config.name}/value" in event.metrics:
                scores[config.name] = event.metrics[f"{config.name}/value"]
        interval = self.interval(event)
        return {
            "value": self.judge.scalarise(event.fitness, self.scales[_split(event)].values)[0],
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "scores": scores,
            "feasible": self.recorder.violation(event.fitness) == 0 if event.split == "search" else None,
        }


def _split(event: Evaluated) -> SplitName:
    return next(split for split in SPLITS if split == event.split)


def build_summary(
    loaded: Experiment,
    recorder: RunRecorder,
    judge: Judge,
    baselines: list[str],
    finalists: list[int],
    winner: int | None,
    reason: str,
) -> dict[str, Any]:
    """What summary.json holds: every scored model on every split, and the winner against each baseline."""
    scores = _Scores(loaded, recorder, judge)
    state = read_state(recorder.log.read())
    candidates = recorder.progress.candidates
    rows = []
    for number in finalists:
        keys = {"search": candidate_key(number)}
        keys |= {split: f"{split}:{candidate_key(number)}" for split in SPLITS if split != "search"}
        kind = "winner" if number == winner else "finalist"
        rows.append(_row(scores, kind, f"{kind} c{number}", keys))
    for name in baselines:
        rows.append(_row(scores, "baseline", name, {split: f"baseline:{name}:{split}" for split in SPLITS}))
    validated = winner is not None and scores.event(f"validation:{candidate_key(winner)}") is not None
    summary = {
        "name": loaded.config.name,
        "run_dir": str(recorder.run_dir.path),
        "reason": reason,
        "evaluations": state.num_evaluations,
        "failed": sum(1 for failure in state.failures if failure.candidate is not None),
        "objectives": [objective.name for objective in recorder.objectives],
        "units": _units(loaded, recorder),
        "reported_only": [config.name for config in loaded.report],
        "scalarisation": loaded.config.scalarisation,
        "normalise": [str(anchor) for anchor in loaded.rules.normalise],
        "normalised_on": {split: list(scores.scales[split].splits) for split in SPLITS},
        "scored_by": scored_by(loaded.config.runtime),
        "constraints": [constraint.text for constraint in loaded.rules.constraints],
        "confidence": loaded.config.finish.confidence,
        "documents": {split: _num_documents(scores, split) for split in SPLITS},
        "test_split_searched": [config.name for config in loaded.fitness if config.allow_test_split],
        "winner": None
        if winner is None
        else {
            "candidate": winner,
            "generation": candidates[winner].generation,
            "recipe_id": candidates[winner].recipe_id,
            "chosen_on": "validation" if validated else "search",
        },
        "score_cache": recalled_summary(loaded.config.runtime, state),
        "racing": _racing(loaded, recorder, state),
        "estimation": _estimation(loaded, recorder, state),
        "front": _front(loaded, recorder, state, winner),
        "rows": [row for row in rows if any(row[split] for split in SPLITS)],
        "comparison": _comparison(scores, winner, baselines),
        "cost": {"wall_seconds": state.elapsed_seconds, **_cost(state)},
    }
    forget_draws()
    return summary


def _cost(state: RunState) -> dict[str, float]:
    """Mean seconds of a candidate."""
    ended = [event for event in state.outcomes.values() if isinstance(event, Evaluated | Stopped | Estimated)]
    # What came out of the cache says nothing about what a candidate costs.
    done = [event for event in ended if event.candidate is not None and not event.known_documents]
    return {part: _mean([getattr(e.seconds, part) for e in done]) for part in ("merge", "forward", "metric", "wait")}


def _racing(loaded: Experiment, recorder: RunRecorder, state: RunState) -> dict[str, Any] | None:
    """What racing saved; None where nothing is raced."""
    if loaded.config.racing is None:
        return None
    many = SPECS[loaded.config.optimizer.name].multi_objective and len(recorder.objectives) > 1
    return racing_summary(state, loaded.config.racing.rule, many, lambda fitness: recorder.scalarise(fitness)[0])


def _estimation(loaded: Experiment, recorder: RunRecorder, state: RunState) -> dict[str, Any] | None:
    """What estimating saved; None where nothing is estimated."""
    if loaded.config.estimation is None:
        return None
    return estimation_summary(state, loaded.config.estimation.estimator, lambda one: recorder.scalarise(one)[0])


def _front(loaded: Experiment, recorder: RunRecorder, state: RunState, winner: int | None) -> dict[str, Any] | None:
    """The front with intervals, None with one objective."""
    if len(recorder.objectives) < 2:
        return None
    view = view_of(recorder.run_dir, loaded.config, state, winner)
    return front_data(view, loaded.problem().num_objectives > 1)


def _units(loaded: Experiment, recorder: RunRecorder) -> dict[str, str]:
    """What the values of objectives are counted in, for those that are no plain scores."""
    found = {objective.name: objective.unit for objective in recorder.objectives if objective.unit}
    return found | {config.name: UNITS[config.cost] for config in loaded.report if config.cost is not None}


def _row(scores: _Scores, kind: str, name: str, keys: dict[str, str]) -> dict[str, Any]:
    return {"kind": kind, "name": name, **{split: scores.cell(keys[split]) for split in SPLITS}}


def _comparison(scores: _Scores, winner: int | None, baselines: list[str]) -> list[dict[str, Any]]:
    """The winner against each baseline on held-out documents, the strongest baseline first."""
    mine = None if winner is None else scores.event(f"held_out:{candidate_key(winner)}")
    if mine is None:
        return []
    entries = []
    for name in baselines:
        other = scores.event(f"baseline:{name}:held_out")
        interval = scores.paired(mine, other) if other is not None else None
        if interval is not None:
            entries.append({"against": name, "difference": interval.value, "low": interval.low, "high": interval.high})
    return sorted(entries, key=lambda entry: float(entry["difference"]))


def _num_documents(scores: _Scores, split: SplitName) -> int:
    for key in scores.recorder.outcomes:
        event = scores.event(key)
        if event is not None and event.split == split:
            return sum(len(table.document_ids) for table in scores.tables(event) if table.objective in scores.names)
    return 0


def _mean(values: list[float]) -> float:
    return plain.fmean(values) if values else 0.0


def write_summary(run_dir: RunDir, summary: dict[str, Any]) -> None:
    """Replace summary.json.

    Raises:
        UserError: the disk is full or the file cannot be written.
    """
    try:
        atomic_write_json(run_dir.summary_path, summary)
    except OSError as error:
        raise UserError(f"{run_dir.summary_path}: cannot write the summary: {error.strerror or error}.") from error
