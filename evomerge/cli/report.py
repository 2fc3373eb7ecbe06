"""``evomerge report``."""

from __future__ import annotations

from evomerge.cli.console import stdout
from evomerge.cli.options import RunArgument, StageName


def command(run: RunArgument, stage: StageName = None) -> None:
    """Write the report of a run (report.html) and the figures of its routes anew, also while it goes on."""
    from evomerge.experiment.reporting import report
    from evomerge.store.stage_list import stage_path

    for path in report(stage_path(run, stage)):
        stdout.print(str(path), markup=False, highlight=False, soft_wrap=True)
