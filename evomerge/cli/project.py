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
        typer.Argument(help="Optuna storage URL, for example sqlite:///runs.db; default: the run's own journal."),
    ] = None,
    stage: StageName = None,
) -> None:
    """Write a run's Optuna study anew from its event log."""
    from evomerge.experiment.inspecting import project
    from evomerge.store.stage_list import stage_path

    run = stage_path(run, stage)
    count = project(run, storage)
    stdout.print(f"{count} trials in {storage or run / 'study.journal'}", markup=False, highlight=False)
