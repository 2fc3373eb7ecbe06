"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a value: key.path=value, for example budget.evaluations=100.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, for example runs/quickstart.")]
Form = Annotated[
    str,
    typer.Option(
        help="Of a route: plain (scales folded into weights), compact (each block stored once, with model "
        "code), mergekit (its YAML, no weights), or auto: plain where scales fold, else compact."
    ),
]
StageName = Annotated[
    str | None, typer.Option("--stage", help="A stage of a staged run; default: the last one that has begun.")
]
