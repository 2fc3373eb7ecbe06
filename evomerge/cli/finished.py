"""What ``run`` and ``resume`` say at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from evomerge.cli.console import stderr
from evomerge.reports.summary_table import print_summary

if TYPE_CHECKING:
    from evomerge.experiment.result import RunResult


def as_data(result: RunResult) -> dict[str, Any]:
    """What ``--json`` prints: the summary; of a staged run the summaries of all stages that ended, in order."""
    last = result.summary or {"run_dir": str(result.run_dir), "reason": result.reason}
    return {"stages": [*(stage.summary for stage in result.earlier), last]} if result.earlier else last


def finish(result: RunResult, console: Console, printed: bool) -> None:
    """Print the summary and leave with the run's exit code.

    Args:
        result: how the run ended.
        console: where the summary goes.
        printed: the summary was printed in another form, or is not wanted.
    """
    if not printed:
        for stage in result.earlier:
            if stage.summary is not None:
                print_summary(stage.summary, console)
                console.print()
    if result.summary is None:
        stderr.print(f"interrupted; go on with: evomerge resume {result.run_dir}", highlight=False)
    elif not printed:
        print_summary(result.summary, console)
        console.print(
            f"next: evomerge export {result.run_dir} OUT   evomerge dashboard {result.run_dir}", highlight=False
        )
    raise typer.Exit(result.exit_code)
