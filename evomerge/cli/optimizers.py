"""``evomerge optimizers``."""

from __future__ import annotations

from typing import Annotated

import typer

from evomerge.cli.console import show_json, stdout, table


def command(
    name: Annotated[str | None, typer.Argument(help="Show one optimizer in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the optimizers with their settings and papers."""
    from evomerge.search.catalogue import SPECS, get_spec

    specs = [get_spec(name)] if name else list(SPECS.values())
    if as_json:
        show_json(
            [
                {
                    "name": spec.name,
                    "title": spec.title,
                    "genes": sorted(spec.gene_kinds),
                    "multi_objective": spec.multi_objective,
                    "steady_state": spec.steady_state,
                    "paper": spec.paper,
                    "settings": [vars(setting) for setting in spec.settings],
                }
                for spec in specs
            ]
        )
        return
    overview = table("Optimizers", "name", "objectives", "genes", "settings", "paper")
    for spec in specs:
        names = ", ".join(setting.name for setting in spec.settings)
        objectives = "one or many" if spec.multi_objective else "one"
        overview.add_row(spec.name, objectives, ", ".join(sorted(spec.gene_kinds)), names, spec.paper)
    stdout.print(overview)
    if name:
        detail = table(specs[0].title, "setting", "type", "default", "meaning")
        for setting in specs[0].settings:
            detail.add_row(setting.name, setting.kind, str(setting.default), setting.description)
        stdout.print(detail)
