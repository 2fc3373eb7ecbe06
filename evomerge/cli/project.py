"""``evomerge project``."""

from __future__ import annotations

from typing import Annotated

import typer

from evomerge.cli.console import stdout
from evomerge.cli.options import RunArgument, StageName


def command(
    run: RunArgument,
    storage: Annotated[
        str | None,
        typer.Argument(help="Optuna storage URL, for example sqlite:///runs.db; default: the run's own place."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study; default: the run's name.")] = None,
    stage: StageName = None,
) -> None:
    """Write a run's Optuna study anew from its event log, in place of what the storage holds of this run."""
    from evomerge.experiment.inspecting import project
    from evomerge.store.stage_list import stage_path
    from evomerge.store.study_names import shown

    run = stage_path(run, stage)
    count = project(run, storage, name)
    place = shown(storage) if storage else f"the study of {run}"
    stdout.print(f"{count} trials in {place}", markup=False, highlight=False)
