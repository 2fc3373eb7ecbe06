"""``evomerge spaces``."""

from __future__ import annotations

from typing import Annotated

import typer

from evomerge.cli.console import show_json, stdout, table
from evomerge.cli.options import AsJson
from evomerge.errors import UserError, did_you_mean


def command(
    name: Annotated[str | None, typer.Argument(help="Print one preset's YAML.")] = None, as_json: AsJson = False
) -> None:
    """List the shipped search spaces."""
    from evomerge.spaces.space_yaml import space_presets

    presets = space_presets()
    if name is not None:
        if name not in presets:
            raise UserError(f"no search space is called {name!r}. {did_you_mean(name, presets)}")
        stdout.print(presets[name].read_text().rstrip(), markup=False, highlight=False)
        return
    if as_json:
        show_json({key: str(path) for key, path in presets.items()})
        return
    shown = table("Search spaces", "name", "what it searches")
    for key, path in presets.items():
        shown.add_row(key, _first_comment(path.read_text()))
    stdout.print(shown)


def _first_comment(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines)
