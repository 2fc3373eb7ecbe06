"""``evomerge resume``."""

from __future__ import annotations

from evomerge.cli.console import show_json, stdout
from evomerge.cli.options import AsJson, Overrides, Quiet, RunArgument


def command(run: RunArgument, overrides: Overrides = None, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Go on with an interrupted run, or with a finished one whose budget is raised (--set budget.evaluations=...)."""
    from evomerge.cli.finished import as_data, finish
    from evomerge.experiment.run import resume
    from evomerge.reports.progress import open_view

    view = open_view(quiet or as_json)
    try:
        result = resume(run, overrides or (), view)
    finally:
        view.close()
    if as_json:
        show_json(as_data(result))
    finish(result, stdout, printed=as_json or quiet)
