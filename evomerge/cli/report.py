"""``evomerge report``."""

from __future__ import annotations

from typing import Annotated

import typer

from evomerge.cli.console import stdout
from evomerge.cli.options import RunArgument, StageName


def command(
    run: RunArgument,
    stage: StageName = None,
    figures: Annotated[
        str, typer.Option(help="Forms of the figures' files: some of svg, png, pdf, or none.")
    ] = "svg,png",
    figure_size: Annotated[
        str, typer.Option(help="Width of these files: page, or of a paper's one-column or two-column.")
    ] = "page",
) -> None:
    """Write the report of a run (report.html) and its figures anew, also while it goes on."""
    from evomerge.experiment.reporting import report
    from evomerge.store.stage_list import stage_path

    forms = [form.strip() for form in figures.split(",") if form.strip() not in ("", "none")]
    for path in report(stage_path(run, stage), forms, figure_size):
        stdout.print(str(path), markup=False, highlight=False, soft_wrap=True)
