"""The Optuna study of a run: a picture of the event log for dashboards and notebooks.

Nothing is ever read back from it, so it may be deleted at any time: ``sync`` adds what is missing, ``rebuild`` starts
over. Values are the metrics in their natural direction; failures are FAIL trials, never numbers. Candidates that racing
stopped are PRUNED trials without a value; what a candidate had after each rung are its intermediate values. So are
estimated candidates, with the estimate at the number of documents scored; one that is completed later is a further
trial.

Baselines have no parameters. One such trial would empty the parallel coordinates of all others, and a strong expert
would hide the search's own progress, so they lie in a study of their own, ``<name> baselines``, which the dashboard's
compare page puts beside the search; the study's note lists them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.errors import UserError
from evomerge.store.estimation_events import Estimated
from evomerge.store.events import Asked, Ended, Evaluated, Failed, RunStarted, Stopped
from evomerge.store.run_state import RunState
from evomerge.store.study_columns import Column, plan_columns
from evomerge.store.study_names import BASELINES_SUFFIX, PROJECTED_ATTRIBUTE, RUN_ATTRIBUTE, shown
from evomerge.store.study_note import study_note
from evomerge.store.study_storage import open_to_write, storage_error
from evomerge.terms import GeneKind, Rung

DEFAULT_CAP = 64

_METRIC_NAMES = "study:metric_names"
_NOTE_VERSION, _NOTE_TEXT, _NOTE_PIECE = "dashboard:note_ver", "dashboard:note_str:", 2000


class StudyProjection:
    """Writes finished evaluations of one run into an Optuna study. Adding one twice does nothing.

    Args:
        storage: path of a journal file, or an Optuna storage URL (``sqlite:///...``, ``postgresql://...``).
        started: the run's first event: name, objectives, genes.
        study_name: None takes the run's name.
        cap: most parameters per trial; longer genotypes are shown by their gene groups.
        about: markdown on the experiment for the study's note; "" leaves what an earlier session wrote.

    Raises:
        UserError: the storage cannot be opened, or holds a study of this name that belongs to another run.
    """

    def __init__(
        self,
        storage: str | Path,
        started: RunStarted,
        study_name: str | None = None,
        cap: int = DEFAULT_CAP,
        about: str = "",
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study_name = study_name or started.name
        self._storage_name = str(storage)
        self._started = started
        self._columns = plan_columns(started.genes, started.gene_groups, cap)
        self._distributions = {column.name: distribution_of(column) for column in self._columns}
        self._about = about
        self._storage = open_to_write(self._storage_name)
        self._study: optuna.Study
        self._baselines: optuna.Study | None
        self._keys: set[str]
        self._open()

    @property
    def num_trials(self) -> int:
        """Evaluations in the study and its baselines."""
        return len(self._keys)

    def add(self, outcome: Ended, asked: Asked | None = None) -> bool:
        """Add one finished evaluation as one trial.

        Scores on other documents than the search split's are no comparison and are left out.

        Args:
            outcome: how the evaluation ended.
            asked: its candidate; None for baselines, which have no parameters.

        Returns:
            Whether a trial was added.
        """
        if outcome.key in self._keys or outcome.split != "search":
            return False
        trial = self._trial(outcome, asked)
        if asked is not None:
            self._study.add_trial(trial)
        else:
            if self._baselines is None:
                self._baselines = self._open_study(self.study_name + BASELINES_SUFFIX)
            self._baselines.add_trial(trial)
            self._write_description()
        self._keys.add(outcome.key)
        return True

    def sync(self, state: RunState) -> int:
        """Add every finished evaluation of the log that the study lacks, in order of completion; how many."""
        asked = {record.id: record.asked for record in state.candidates}
        ended = [*state.estimated.values(), *state.outcomes.values()]
        return sum(
            self.add(outcome, None if outcome.candidate is None else asked[outcome.candidate]) for outcome in ended
        )

    def rebuild(self, state: RunState) -> int:
        """Delete the study and its baselines and write them anew from the log; how many trials."""
        if self._keys:
            for study in self._studies():
                optuna.delete_study(study_name=study.study_name, storage=self._storage)
            self._open()
        return self.sync(state)

    def set_about(self, about: str) -> None:
        """Say this of the experiment in the study's note from now on."""
        self._about = about
        self._write_description()

    def close(self) -> None:
        """Free the storage's connections."""
        self._storage.remove_session()

    def _open(self) -> None:
        names = optuna.get_all_study_names(self._storage)
        baselines_name = self.study_name + BASELINES_SUFFIX
        fresh = self.study_name not in names
        self._study = self._open_study(self.study_name)
        self._baselines = self._open_study(baselines_name) if baselines_name in names else None
        trials = [trial for study in self._studies() for trial in study.get_trials(deepcopy=False)]
        self._keys = {trial.user_attrs["key"] for trial in trials if "key" in trial.user_attrs}
        if fresh or self._about:
            self._write_description()

    def _studies(self) -> list[optuna.Study]:
        return [study for study in (self._study, self._baselines) if study is not None]

    def _write_description(self) -> None:
        trials = [] if self._baselines is None else self._baselines.get_trials(deepcopy=False)
        values = {trial.user_attrs["baseline"]: trial.values for trial in trials if trial.values is not None}
        self._write_note(study_note(self._started, self._columns, values, self._about))

    def _write_note(self, markdown: str) -> None:
        """Write a note in the dashboard's own form; importing its package costs seconds of a starting run."""
        study_id, storage = self._study._study_id, self._storage
        old = storage.get_study_system_attrs(study_id)
        if markdown == "".join(old.get(f"{_NOTE_TEXT}{index}", "") for index in range(len(old))):
            return
        storage.set_study_system_attr(study_id, _NOTE_VERSION, int(old.get(_NOTE_VERSION, 0)) + 1)
        pieces = [markdown[start : start + _NOTE_PIECE] for start in range(0, len(markdown), _NOTE_PIECE)]
        num_old = sum(key.startswith(_NOTE_TEXT) for key in old)
        for index, piece in enumerate(pieces + [""] * (num_old - len(pieces))):
            storage.set_study_system_attr(study_id, f"{_NOTE_TEXT}{index}", piece)

    def _open_study(self, name: str) -> optuna.Study:
        objectives = self._started.objectives
        directions = [
            StudyDirection.MAXIMIZE if objective.higher_is_better else StudyDirection.MINIMIZE
            for objective in objectives
        ]
        run_id = self._started.run_id
        try:
            study = optuna.create_study(
                storage=self._storage, study_name=name, directions=directions, load_if_exists=True
            )
            trials = study.get_trials(deepcopy=False)
            owner = study.user_attrs.get(RUN_ATTRIBUTE)
        except Exception as error:
            raise storage_error(self._storage_name, error) from error
        if owner is None and not trials:
            # Private call: the public one prints an experimental warning on every run.
            self._storage.set_study_system_attr(
                study._study_id, _METRIC_NAMES, [objective.name for objective in objectives]
            )
            study.set_user_attr(RUN_ATTRIBUTE, run_id)
            study.set_user_attr(PROJECTED_ATTRIBUTE, datetime.now().isoformat(timespec="milliseconds"))
            study.set_user_attr("evomerge", self._started.evomerge)
            for purpose, seed in self._started.seeds.items():
                study.set_user_attr(f"seed {purpose}", seed)
        elif owner != run_id:
            raise UserError(
                f"{shown(self._storage_name)}: holds a study {name!r} of another run. Give this projection another "
                "study name (evomerge project RUN STORAGE --name NAME), or delete that study first."
            )
        return study

    def _trial(self, outcome: Ended, asked: Asked | None) -> FrozenTrial:
        params: dict[str, Any] = {}
        if asked is not None:
            genotype = asked.array
            params = {column.name: column.value(genotype) for column in self._columns}
        distributions = self._distributions if params else {}
        attributes = _attributes(outcome, asked, self._started.constraints)
        if isinstance(outcome, Failed):
            trial = create_trial(
                state=TrialState.FAIL, params=params, distributions=distributions, user_attrs=attributes
            )
        elif isinstance(outcome, Stopped | Estimated):
            trial = create_trial(
                state=TrialState.PRUNED, params=params, distributions=distributions, user_attrs=attributes,
                intermediate_values=self._on_the_way(outcome),
            )  # fmt: skip
        else:
            pairs = zip(self._started.objectives, outcome.fitness, strict=True)
            values = [objective.natural(float(value)) for objective, value in pairs]
            # One list under the old key: Optuna reads it and the newer form alike, the dashboard only this one.
            system = {"constraints": [float(value) for value in outcome.constraints]} if outcome.constraints else {}
            trial = create_trial(
                values=values, params=params, distributions=distributions, user_attrs=attributes, system_attrs=system,
                intermediate_values=self._on_the_way(outcome),
            )  # fmt: skip
        if outcome.finished > 0:
            trial.datetime_start = datetime.fromtimestamp(outcome.started)
            trial.datetime_complete = datetime.fromtimestamp(outcome.finished)
        return trial

    def _on_the_way(self, outcome: Evaluated | Stopped | Estimated) -> dict[int, float]:
        """Documents -> score over them: the objective in its natural direction, or the weighted mean of several."""
        objectives = self._started.objectives
        if isinstance(outcome, Estimated):
            rungs: tuple[Rung, ...] = (Rung(outcome.estimate.documents, outcome.estimate.fitness),)
        else:
            rungs = outcome.rungs
        if len(objectives) == 1:
            return {rung.documents: objectives[0].natural(rung.fitness[0]) for rung in rungs}
        total = sum(objective.weight for objective in objectives) or 1.0
        return {
            rung.documents: sum(one.weight * value for one, value in zip(objectives, rung.fitness)) / total
            for rung in rungs
        }


def _attributes(outcome: Ended, asked: Asked | None, constraints: Sequence[str]) -> dict[str, Any]:
    """What a person wants to see of a trial, most wanted first: the trial page shows only the first lines."""
    attributes: dict[str, Any] = {}
    if isinstance(outcome, Failed):
        attributes["failure"] = f"{outcome.kind}: {outcome.message}"[:1000]
    if isinstance(outcome, Stopped):
        stop = outcome.stop
        attributes["stopped"] = (
            f"after {stop.documents} of {stop.total} documents, {-stop.difference:.4g} behind candidate {stop.against}"
        )
    if isinstance(outcome, Estimated):
        found = outcome.estimate
        attributes["estimated"] = f"from {found.documents} of {found.total} documents"
        attributes["standard errors"] = " ".join(f"{error:.4g}" for error in found.standard_errors)
    if asked is None:
        attributes["baseline"] = baseline_name(outcome.key)
    else:
        attributes |= {"candidate": asked.candidate, "generation": asked.generation}
    if isinstance(outcome, Evaluated):
        if outcome.constraints:
            attributes["feasible"] = outcome.violation == 0
            attributes |= {f"missed {name}": _rounded(value) for name, value in zip(constraints, outcome.constraints)}
        attributes |= {name: _rounded(value) for name, value in outcome.metrics.items()}
    if isinstance(outcome, Evaluated | Stopped | Estimated):
        for name in ("merge", "forward", "metric", "wait"):
            attributes[f"seconds {name}"] = round(getattr(outcome.seconds, name), 3)
        if outcome.is_recalled:
            attributes["recalled"] = "from the evaluation cache"
    if asked is not None and asked.parents:
        attributes["parents"] = " ".join(map(str, asked.parents))
    if asked is not None:
        attributes |= {name: _rounded(value) for name, value in asked.note.items()}
    recipe_id = outcome.recipe_id if asked is None else asked.recipe_id
    if recipe_id:
        attributes["recipe_id"] = recipe_id
    return attributes | {"worker": outcome.worker, "attempts": outcome.attempts, "key": outcome.key}


def baseline_name(key: str) -> str:
    """``uniform_soup`` of the key ``baseline:uniform_soup:search``; any other key stands for itself."""
    parts = key.split(":")
    return ":".join(parts[1:-1]) if len(parts) >= 3 and parts[0] == "baseline" else key


def _rounded(value: float) -> float:
    """Six digits for the eye; the log keeps every bit."""
    return float(f"{value:.6g}")


def distribution_of(column: Column) -> BaseDistribution:
    """The distribution of a study's parameter."""
    if column.kind is GeneKind.CATEGORY:
        return CategoricalDistribution(column.choices)
    if column.kind is GeneKind.INTEGER:
        return IntDistribution(round(column.low), round(column.high))
    return FloatDistribution(column.low, column.high)
