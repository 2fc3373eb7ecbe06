"""``evomerge export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.console import stdout
from evomerge.cli.options import Form, Quiet, RunArgument, StageName
from evomerge.cli.tensors_progress import tensors_progress


def command(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(help="New directory for the checkpoint.")],
    candidate: Annotated[
        str, typer.Option("--candidate", "-c", help="best, knee, front, or a candidate's number.")
    ] = "best",
    form: Form = "auto",
    quiet: Quiet = False,
    stage: StageName = None,
) -> None:
    """Write the winner of a run, or any candidate, as a checkpoint that transformers loads."""
    from evomerge.experiment.inspecting import export
    from evomerge.store.stage_list import stage_path

    run = stage_path(run, stage)
    with tensors_progress(quiet) as progress:
        lines: list[str] = []
        written = export(run, out, candidate, progress, form, told=lines.append)
    for line in lines:
        stdout.print(line, markup=False, highlight=False)
    for path in written:
        stdout.print(f"wrote {path}", markup=False, highlight=False)
