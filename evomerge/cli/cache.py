"""``evomerge cache``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.console import show_json, stdout
from evomerge.cli.options import AsJson
from evomerge.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False)

Folder = Annotated[Path | None, typer.Option(help="The cache's folder, as in runtime.score_cache.")]


@app.command()
def info(folder: Folder = None, as_json: AsJson = False) -> None:
    """Say where the evaluation cache is and how much it holds."""
    from evomerge.experiment.score_cache import cache_info

    use = cache_info(folder)
    if as_json:
        show_json({"folder": str(use.folder), "entries": use.entries, "bytes": use.num_bytes, "oldest": use.oldest})
        return
    oldest = "" if use.oldest is None else f", none unused for more than {_days(time.time() - use.oldest)}"
    stdout.print(f"{use.folder}: {_amount(use.entries, use.num_bytes)}{oldest}", markup=False, highlight=False)


@app.command()
def clear(
    folder: Folder = None,
    older_than: Annotated[str | None, typer.Option(help="Only entries not used for so long, for example 30d.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove entries of the evaluation cache; other files are left alone."""
    from evomerge.experiment.config import parse_duration
    from evomerge.experiment.score_cache import clear_cache

    try:
        seconds = 0.0 if older_than is None else float(parse_duration(older_than))
    except ValueError as error:
        raise UserError(f"--older-than: {error}") from None
    removed = clear_cache(folder, seconds)
    if as_json:
        show_json({"folder": str(removed.folder), "removed": removed.entries, "bytes": removed.num_bytes})
        return
    amount = _amount(removed.entries, removed.num_bytes)
    stdout.print(f"{removed.folder}: {amount} removed", markup=False, highlight=False)


def _amount(entries: int, num_bytes: int) -> str:
    return f"{entries} {'entry' if entries == 1 else 'entries'}, {num_bytes / 1e6:.1f} MB"


def _days(seconds: float) -> str:
    days = int(seconds // 86400) + 1
    return f"{days} {'day' if days == 1 else 'days'}"
