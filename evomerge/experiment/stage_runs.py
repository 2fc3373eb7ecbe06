"""Running the stages of an experiment one after the other. Each is an ordinary run in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.experiment.inspecting import OpenRun, find_candidate, open_run, read_summary
from evomerge.experiment.load import Experiment
from evomerge.experiment.result import RunResult
from evomerge.experiment.stages import StagedExperiment, load_any
from evomerge.experiment.writing import format_experiment
from evomerge.recipes.recipe import Recipe
from evomerge.reports.progress import ProgressView, StageView
from evomerge.store.stage_list import StageFolder
from evomerge.store.stages_dir import StagesDir
from evomerge.yaml_files import read_yaml_mapping

# Begins the run of one stage, or goes on with it, in its folder.
RunOne = Callable[[Experiment, Path, ProgressView], RunResult]

# What of a stage's experiment may be changed after it ended, so that it goes on.
GOES_ON_WITH = ("budget", "finish")


def begin_stages(
    staged: StagedExperiment, path: Path, view: ProgressView, run_one: Sequence[RunOne], overwrite: bool = False
) -> RunResult:
    """Run a staged experiment in a new folder.

    Args:
        staged: the experiment.
        path: the folder.
        view: what a person sees.
        run_one: two functions, to begin the run of a stage and to go on with it.
        overwrite: replace an existing staged run.

    Raises:
        UserError: the folder cannot be used, or a stage cannot run.
    """
    names = [stage.name for stage in staged.stages]
    folder = StagesDir.create(path, names, format_experiment(staged.resolved), overwrite)
    try:
        return _run_all(staged, folder, view, run_one)
    finally:
        folder.close()


def resume_stages(
    path: Path,
    overrides: Sequence[str],
    view: ProgressView,
    run_one: Sequence[RunOne],
    expected: str | Path | None = None,
) -> RunResult:
    """Go on with a staged run: finished stages stay as they are, the unfinished one goes on bit for bit.

    Args:
        path: the folder.
        overrides: changes of budget, runtime or finish.
        view: what a person sees.
        run_one: two functions, to begin the run of a stage and to go on with it.
        expected: an experiment file that must say what the run was started with.

    Raises:
        ResumeRefused: the experiment, a model or a task is not what it was.
        UserError: there is no run here, or it is in use.
    """
    folder = StagesDir.open(path)
    try:
        before = load_any(folder.experiment_path)
        staged = load_any(expected or folder.experiment_path, overrides)
        if not isinstance(staged, StagedExperiment) or not isinstance(before, StagedExperiment):
            raise InvalidInput([Problem(str(expected), f"has no stages, but the run in {path} has")])
        staged.check_unchanged(before)
        return _run_all(staged, folder, view, run_one)
    finally:
        folder.close()


def _run_all(staged: StagedExperiment, folder: StagesDir, view: ProgressView, run_one: Sequence[RunOne]) -> RunResult:
    begin, go_on = run_one
    results: list[RunResult] = []
    found: dict[str, Recipe] = {}
    last_begun = next((stage for stage in reversed(folder.stages) if stage.has_run), None)
    for number, stage in enumerate(folder.stages):
        loaded = staged.experiment(number, found)
        named = StageView(view, f"{stage.name} ({number + 1}/{len(folder.stages)})")
        finished = _finished(stage, loaded, stage is last_begun, view)
        if finished is not None:
            result = finished
        elif stage.has_run:
            result = go_on(loaded, stage.path, named)
        else:
            result = begin(loaded, stage.path, named)
        results.append(result)
        if result.summary is None:
            break
        winner = find_winner(open_run(stage.path))
        if winner is None:
            view.note(f"stage {stage.name} found nothing that could be scored; the stages behind it cannot run")
            break
        found[stage.name] = winner
    failed = sum(result.num_failed for result in results)
    return replace(results[-1], run_dir=folder.path, num_failed=failed, earlier=tuple(results[:-1]))


def find_winner(opened: OpenRun) -> Recipe | None:
    """What a finished stage found: the winner on its validation documents; None when nothing has a fitness."""
    if opened.state.best() is None:
        return None
    return opened.recipe(find_candidate(opened, "best"))


def _finished(stage: StageFolder, loaded: Experiment, is_last: bool, view: ProgressView) -> RunResult | None:
    """The result of a stage that ended and is not to go on."""
    if not stage.has_run:
        return None
    opened = open_run(stage.path)
    end = opened.state.finished
    if end is None or end.reason == "interrupted":
        if is_last:
            return None
        raise UserError(f"{stage.path}: stage {stage.name} has not ended, but a later one has begun")
    if _changed(loaded, opened):
        if is_last:
            return None
        view.note(f"stage {stage.name} has ended and a later one builds on it: its budget and finish stay as they were")
    return RunResult(stage.path, end.reason, read_summary(opened.run_dir), len(opened.state.failures))


def _changed(loaded: Experiment, opened: OpenRun) -> bool:
    """Whether a stage that ended is asked to go on."""
    before: dict[str, Any] = read_yaml_mapping(opened.run_dir.experiment_path)
    return any(loaded.resolved.get(key) != before.get(key) for key in GOES_ON_WITH)
