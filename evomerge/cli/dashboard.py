"""``evomerge dashboard``."""

from __future__ import annotations

from typing import Annotated

import typer

from evomerge.cli.console import stdout
from evomerge.cli.options import RunArgument, StageName


def command(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port, 0 = any free one.")] = 8080,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage URL; default: where the run keeps its study.")
    ] = None,
    stage: StageName = None,
) -> None:
    """Open Optuna Dashboard on a run, on this machine's loopback address, read-only."""
    from evomerge.experiment.inspecting import dashboard
    from evomerge.store.stage_list import stage_path

    dashboard(
        stage_path(run, stage),
        port,
        storage,
        ready=lambda url: stdout.print(f"{url}  (Ctrl-C ends it)", highlight=False),
    )
