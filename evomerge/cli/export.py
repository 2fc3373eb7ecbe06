"""``evomerge export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.console import stdout
from evomerge.cli.options import Quiet, RunArgument, StageName
from evomerge.cli.tensors_progress import tensors_progress


def command(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(help="New directory for the checkpoint.")],
    candidate: Annotated[str, typer.Option("--candidate", "-c", help="best, front, or a candidate's number.")] = "best",
    quiet: Quiet = False,
    stage: StageName = None,
) -> None:
    """Write the winner of a run, or any candidate, as a checkpoint that transformers loads."""
    from evomerge.experiment.inspecting import export
    from evomerge.store.stage_list import stage_path

    run = stage_path(run, stage)
    with tensors_progress(quiet) as progress:
        written = export(run, out, candidate, progress)
    for path in written:
        stdout.print(f"wrote {path}", markup=False, highlight=False)
