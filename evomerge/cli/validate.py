"""``evomerge validate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli.console import show_json, stdout
from evomerge.cli.options import AsJson, Overrides
from evomerge.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from evomerge.experiment.validate import Validation


def command(
    files: Annotated[list[str], typer.Argument(help="Experiments, recipes, search spaces or fitness files.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check files without touching weights: every problem at once, and what a run would download."""
    from evomerge.experiment.validate import validate

    problems: list[Problem] = []
    for name in files:
        try:
            show(validate(name, overrides or ()), as_json)
        except InvalidInput as error:
            problems += error.problems
    if problems:
        raise InvalidInput(problems)


def show(result: Validation, as_json: bool) -> None:
    """Print what a valid file says."""
    if as_json:
        show_json({**vars(result), "path": str(result.path)})
        return
    stdout.print(f"[green]valid[/] {result.kind} {result.path}", highlight=False)
    for line in result.lines:
        stdout.print(f"  {line}", markup=False, highlight=False)
    if result.downloads:
        stdout.print("  a run would download:")
        for line in result.downloads:
            stdout.print(f"    {line}", markup=False, highlight=False)
