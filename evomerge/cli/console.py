"""Printing for the command line: errors to stderr, results to stdout."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

stdout = Console(soft_wrap=True)
stderr = Console(stderr=True, soft_wrap=True)


def show_error(*messages: str) -> None:
    """Print what is wrong, one line or paragraph each."""
    for message in messages:
        stderr.print("[bold red]error[/] ", end="")
        stderr.print(message, markup=False, highlight=False)


def show_json(value: Any) -> None:
    """Print JSON for other programs."""
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def table(title: str, *columns: str) -> Table:
    """An empty table in the house style; columns starting with ``>`` are right-aligned."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return made
