"""``evomerge merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.console import stdout
from evomerge.cli.options import Quiet
from evomerge.cli.tensors_progress import tensors_progress


def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, in evomerge's or in mergekit's form.")],
    out: Annotated[Path, typer.Argument(help="New directory for the checkpoint.")],
    quiet: Quiet = False,
) -> None:
    """Merge a recipe to a checkpoint that transformers loads."""
    from evomerge.experiment.merging import merge

    with tensors_progress(quiet) as progress:
        merge(recipe, out, progress)
    if not quiet:
        stdout.print(f"wrote {out}", markup=False, highlight=False)
