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
    hash_kind: Annotated[
        str, typer.Option("--hash", help="Fingerprints of the sources in evomerge_recipe.yaml: headers or full.")
    ] = "headers",
    quiet: Quiet = False,
) -> None:
    """Merge a recipe to a checkpoint that transformers loads. Started again after a kill, it goes on where it was."""
    from evomerge.experiment.merging import merge

    with tensors_progress(quiet) as progress:
        merge(recipe, out, progress, hash_kind=hash_kind)
    if not quiet:
        stdout.print(f"wrote {out}", markup=False, highlight=False)
