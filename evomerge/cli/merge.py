"""``evomerge merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.console import stdout
from evomerge.cli.options import Form, Quiet
from evomerge.cli.tensors_progress import tensors_progress


def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, in evomerge's or in mergekit's form.")],
    out: Annotated[Path, typer.Argument(help="New directory for the checkpoint.")],
    hash_kind: Annotated[
        str, typer.Option("--hash", help="Fingerprints of the sources in evomerge_recipe.yaml: headers or full.")
    ] = "headers",
    output: Annotated[
        str | None, typer.Option(help="model, or adapter: a LoRA adapter where all experts are adapters on one base.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.")] = None,
    form: Form = "auto",
    quiet: Quiet = False,
) -> None:
    """Merge a recipe to a checkpoint that transformers loads. Started again after a kill, it goes on where it was."""
    from evomerge.experiment.merging import merge

    with tensors_progress(quiet) as progress:
        lines: list[str] = []
        written = merge(recipe, out, progress, hash_kind, output, rank, form, told=lines.append)
    if not quiet:
        for line in lines:
            stdout.print(line, markup=False, highlight=False)
        stdout.print(f"wrote {out}", markup=False, highlight=False)
        if not isinstance(written, Path):
            largest, share = written.residuals[0]
            stdout.print(
                f"rank {written.rank} cuts off {written.residual:.2%} of the change; most in {largest} ({share:.2%})",
                markup=False, highlight=False,
            )  # fmt: skip
