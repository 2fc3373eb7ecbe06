"""``evomerge run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.console import show_json, stdout
from evomerge.cli.options import AsJson, Overrides, Quiet


def command(
    experiment: Annotated[str, typer.Argument(help="Experiment file, or the name of a shipped experiment.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/<name>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on if the run directory holds this run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, run nothing.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Search merges as the experiment says, and report the winner on held-out documents."""
    if dry_run:
        from evomerge.cli.validate import show
        from evomerge.experiment.validate import validate

        show(validate(experiment, overrides or ()), as_json)
        return
    from evomerge.cli.finished import as_data, finish
    from evomerge.experiment.run import resume as resume_run
    from evomerge.experiment.run import run
    from evomerge.experiment.stages import load_any
    from evomerge.reports.progress import open_view
    from evomerge.store.stage_list import has_run

    view = open_view(quiet or as_json)
    try:
        folder = out or Path("runs") / load_any(experiment, overrides or ()).name
        if resume and has_run(folder):
            result = resume_run(folder, overrides or (), view, expected=experiment)
        else:
            result = run(experiment, overrides or (), folder, overwrite, view)
    finally:
        view.close()
    if as_json:
        show_json(as_data(result))
    finish(result, stdout, printed=as_json or quiet)
