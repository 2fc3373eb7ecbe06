"""``evomerge methods``."""

from __future__ import annotations

from typing import Annotated

import typer

from evomerge.cli.console import show_json, stdout, table
from evomerge.methods.base import Hyperparameter


def command(
    name: Annotated[str | None, typer.Argument(help="Show one method in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the merge methods with their hyperparameters and papers."""
    from evomerge.methods.catalogue import ALL_SPECS, get_spec

    specs = [get_spec(name)] if name else list(ALL_SPECS.values())
    if as_json:
        show_json(
            [
                {
                    "name": spec.name,
                    "title": spec.title,
                    "needs_base": spec.needs_base,
                    "stochastic": spec.stochastic,
                    "paper": spec.paper,
                    "arxiv": spec.arxiv,
                    "cost": spec.cost,
                    "use": spec.use,
                    "hyperparameters": [vars(parameter) for parameter in spec.hyperparameters],
                }
                for spec in specs
            ]
        )
        return
    overview = table("Merge methods", "name", "base", "experts", "cost", "hyperparameters", "paper")
    for spec in specs:
        most = "" if spec.max_experts is None else f"-{spec.max_experts}"
        experts = f"{spec.min_experts}{most or '+'}" if spec.max_experts != spec.min_experts else str(spec.min_experts)
        names = ", ".join(parameter.name for parameter in spec.hyperparameters)
        paper = f"arXiv {spec.arxiv}" if spec.arxiv else spec.paper
        overview.add_row(spec.name, "yes" if spec.needs_base else "no", experts, spec.cost, names, paper)
    stdout.print(overview)
    if name:
        stdout.print(f"Use it for {specs[0].use}." if specs[0].use else "")
        detail = table(specs[0].title, "hyperparameter", "per", "default", "range", "in mergekit", "meaning")
        for parameter in specs[0].hyperparameters:
            default = "required" if parameter.default is None else str(parameter.default)
            detail.add_row(
                parameter.name,
                parameter.per,
                default,
                _range(parameter),
                parameter.mergekit_name or "-",
                parameter.description,
            )
        stdout.print(detail)


def _range(parameter: Hyperparameter) -> str:
    if parameter.kind == "choice":
        return " | ".join(parameter.choices)
    return "true | false" if parameter.kind == "bool" else f"{parameter.low:g} to {parameter.high:g}"
