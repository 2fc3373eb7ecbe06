"""Looking at a run and taking candidates out of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.engine.merge_to_disk import Progress, Told, merge_to_disk
from evomerge.errors import InvalidInput, UserError
from evomerge.experiment.about_run import about_run
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.load import Experiment, load_experiment
from evomerge.recipes.recipe import Recipe
from evomerge.search.front import feasible_front
from evomerge.search.knee import knee
from evomerge.store.dashboard import serve_dashboard
from evomerge.store.event_log import EventLog
from evomerge.store.events import Evaluated
from evomerge.store.manifest import load_manifest
from evomerge.store.optuna_study import StudyProjection
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import CandidateRecord, RunState, read_state
from evomerge.terms import SplitName
from evomerge.yaml_files import pydantic_problems, read_yaml_mapping


@dataclass(frozen=True)
class OpenRun:
    """A run opened for reading."""

    run_dir: RunDir
    state: RunState

    @cached_property
    def config(self) -> ExperimentConfig:
        """The run's experiment as it is written; its models need not be on this machine."""
        path = self.run_dir.experiment_path
        try:
            return ExperimentConfig.model_validate(read_yaml_mapping(path))
        except ValidationError as error:
            raise InvalidInput(pydantic_problems(error, str(path), ExperimentConfig)) from None

    @cached_property
    def experiment(self) -> Experiment:
        """The run's experiment."""
        return load_experiment(self.run_dir.experiment_path)

    def recipe(self, record: CandidateRecord) -> Recipe:
        """The recipe of a candidate."""
        space = self.experiment.space
        if space is None:
            raise UserError(f"{self.run_dir.path}: the models of this run are not on this machine")
        recipe = space.decode(record.asked.array)
        if recipe.recipe_id != record.asked.recipe_id:
            raise UserError(
                f"{self.run_dir.path}: candidate {record.id} decodes to recipe {recipe.recipe_id}, the run recorded "
                f"{record.asked.recipe_id}; the search space or evomerge changed since"
            )
        return recipe


def open_run(path: str | Path) -> OpenRun:
    """Open a run for reading, also while it goes on.

    Raises:
        UserError: there is no run, or its log is damaged.
    """
    run_dir = RunDir.open(path)
    state = read_state(EventLog(run_dir.events_path, writable=False).read())
    if state.started is None:
        raise UserError(f"{run_dir.path}: the run has not begun yet")
    return OpenRun(run_dir, state)


def front(path: str | Path) -> list[CandidateRecord]:
    """The non-dominated candidates of a run on the search documents, best weighted sum first.

    With constraints those that keep all of them; while none does, the front of all candidates.

    Raises:
        UserError: there is no run.
    """
    return front_records(open_run(path).state)


def front_records(state: RunState) -> list[CandidateRecord]:
    """The non-dominated candidates of a state, best weighted sum first."""
    records, fitness = state.scored()
    if not records:
        return []
    kept = feasible_front(fitness, [record.violation for record in records])
    members = {record.id for record, member in zip(records, kept) if member}
    return [record for record in state.ranked() if record.id in members]


def knee_record(
    state: RunState, records: Sequence[CandidateRecord], front_size: int
) -> tuple[CandidateRecord | None, SplitName]:
    """The member of the front at its knee, and the documents it was found on.

    Those are the validation documents once the front was scored there, so that luck on the search documents does not
    choose; never the held-out ones, which choose nothing.

    Args:
        state: what the log says.
        records: the front.
        front_size: how many members a finished run scores on validation documents.
    """
    events = [state.outcomes.get(f"validation:c{record.id}") for record in records]
    split: SplitName = "search"
    fitness = [record.fitness for record in records]
    num_scored = min(len({record.asked.recipe_id for record in records}), front_size)
    if sum(event is not None for event in events) >= num_scored:
        on_validation = [event.fitness if isinstance(event, Evaluated) else None for event in events]
        if any(on_validation):
            fitness, split = on_validation, "validation"
    scored = [(record, values) for record, values in zip(records, fitness) if values is not None]
    place = knee([values for _, values in scored]) if scored else None
    return (None if place is None else scored[place][0]), split


def export(
    path: str | Path,
    out: str | Path,
    candidate: str | int = "best",
    progress: Progress | None = None,
    form: str = "auto",
    *,
    told: Told | None = None,
) -> list[Path]:
    """Write a candidate of a run as a checkpoint with a model card.

    Args:
        path: run directory.
        out: new or empty directory; for ``front`` it gets one folder for each member.
        candidate: ``best`` (the winner of a finished run, else the best so far), ``knee`` (see
            `evomerge.search.knee`), ``front``, or a candidate's id.
        progress: called with (bytes written, bytes in total).
        form: ``auto``, ``plain``, ``compact`` or ``mergekit``; but for routes only the first two.
        told: called with one line on the form that was written and why, where there are several.

    Raises:
        UserError: no such run or candidate, or the place cannot be used.
    """
    opened = open_run(path)
    if candidate == "front":
        chosen = [(record, Path(out) / f"candidate{record.id}") for record in front_records(opened.state)]
    else:
        chosen = [(find_candidate(opened, candidate), Path(out))]
    return [
        merge_to_disk(opened.recipe(record), place, progress, _card(opened, record), form=form, told=told)
        for record, place in chosen
    ]


def project(path: str | Path, storage: str | None = None, study_name: str | None = None) -> int:
    """Write a run's Optuna study anew from its event log; what the storage holds of this run is replaced.

    Args:
        path: run directory.
        storage: an Optuna storage URL; None = where the run keeps its study, by default its own journal.
        study_name: of the study; None = the run's name.

    Returns:
        Number of trials.

    Raises:
        UserError: there is no run, it goes on and writes this storage itself, the storage cannot be used, or it holds a
            study of that name of another run.
    """
    opened = open_run(path)
    resolved = read_yaml_mapping(opened.run_dir.experiment_path)
    place = storage or resolved.get("storage")
    # The run itself may be writing to its own place.
    locked = None if storage and storage != resolved.get("storage") else RunDir.open(path, exclusive=True)
    try:
        about = about_run(resolved, Path(path), read_summary(opened.run_dir))
        if place:
            return _project_into(place, opened.state, study_name, about)
        # A new file, so that the study keeps its number and a kill leaves the old one.
        fresh = opened.run_dir.study_path.with_name("study.journal.new")
        fresh.unlink(missing_ok=True)
        count = _project_into(fresh, opened.state, study_name, about)
        fresh.replace(opened.run_dir.study_path)
        return count
    finally:
        if locked is not None:
            locked.close()


def _project_into(place: str | Path, state: RunState, study_name: str | None, about: str) -> int:
    assert state.started is not None
    study = StudyProjection(place, state.started, study_name, about=about)
    try:
        return study.rebuild(state)
    finally:
        study.close()


def dashboard(
    path: str | Path, port: int = 8080, storage: str | None = None, ready: Callable[[str], None] | None = None
) -> None:
    """Serve Optuna Dashboard for a run on the loopback address until interrupted.

    Args:
        path: run directory.
        port: TCP port, 0 = any free one.
        storage: an Optuna storage URL; None = where the run keeps its study, by default its own journal.
        ready: called with the address once it is listening.

    Raises:
        UserError: there is no run or no study, or the port is taken.
    """
    run_dir = RunDir.open(path)
    if storage is None and run_dir.experiment_path.is_file():
        storage = read_yaml_mapping(run_dir.experiment_path).get("storage")
    serve_dashboard(run_dir, port, storage, ready)


def find_candidate(opened: OpenRun, candidate: str | int) -> CandidateRecord:
    """A candidate of a run: ``best`` (the winner of a finished run, else the best so far), ``knee``, or by number.

    Raises:
        UserError: there is no such candidate.
    """
    state, where = opened.state, opened.run_dir.path
    if candidate == "best":
        winner = read_summary(opened.run_dir).get("winner")
        record = state.candidates[winner["candidate"]] if winner else state.best()
        if record is None:
            raise UserError(f"{where}: no candidate has a fitness yet")
        return record
    if candidate == "knee":
        found, _ = knee_record(state, front_records(state), opened.config.finish.front_size)
        if found is None:
            raise UserError(f"{where}: no candidate has a fitness yet")
        return found
    text = str(candidate).removeprefix("c")
    if not text.isdigit() or int(text) >= len(state.candidates):
        last = len(state.candidates) - 1
        raise UserError(
            f"{where}: no candidate {candidate!r}; expected best, knee, front, or a number from 0 to {last}"
        )
    return state.candidates[int(text)]


def read_summary(run_dir: RunDir) -> dict[str, Any]:
    """What summary.json holds; empty while there is none.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found: dict[str, Any] = json.loads(run_dir.summary_path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir.summary_path}: cannot be read ({error})") from error
    return found


def _card(opened: OpenRun, record: CandidateRecord) -> Mapping[str, Any]:
    """Scores, splits and provenance for the model card."""
    started, run_dir = opened.state.started, opened.run_dir
    assert started is not None
    manifest = load_manifest(run_dir.manifest_path)
    rows = []
    for objective_index, objective in enumerate(started.objectives):
        row: list[Any] = [f"{objective.name} ({objective.unit})" if objective.unit else objective.name]
        for key in (f"c{record.id}", f"validation:c{record.id}", f"held_out:c{record.id}"):
            event = opened.state.outcomes.get(key)
            natural = event.fitness[objective_index] if isinstance(event, Evaluated) else None
            row.append(None if natural is None else objective.natural(natural))
        rows.append(row)
    searched_test = [config.name for config in opened.experiment.fitness if config.allow_test_split]
    card: dict[str, Any] = {
        "summary": f"Candidate {record.id} of the evolutionary merge search `{started.name}` "
        f"({len(opened.state.candidates)} candidates, optimizer {opened.experiment.config.optimizer.name}).",
        "scores": {"columns": ["objective", "search", "validation", "held-out"], "rows": rows},
        "splits": _splits(manifest.documents),
        "provenance": {"evomerge": started.evomerge, "seed": started.seeds["run"], **manifest.versions},
        "fingerprints": manifest.models,
    }
    if searched_test:
        card["warning"] = "Searched on the test split of: " + ", ".join(searched_test) + ". Do not report it there."
    return card


def _splits(documents: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for plan in documents["fitness"]:
        counts: dict[str, int] = {}
        for member in plan["members"]:
            for role, split in member["splits"].items():
                counts[role] = counts.get(role, 0) + len(split["ids"])
        found[plan["name"]] = ", ".join(f"{count} {role.replace('_', '-')}" for role, count in counts.items())
    return found
