"""``evomerge front``."""

from __future__ import annotations

import csv
import sys
from typing import Annotated

import typer

from evomerge.cli.console import show_json, stdout, table
from evomerge.cli.options import AsJson, RunArgument, StageName
from evomerge.errors import UserError


def command(
    run: RunArgument,
    prefer: Annotated[
        str | None, typer.Option(help="Weights of the objectives, for example 2,1: marks a choice.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
    stage: StageName = None,
) -> None:
    """Show the non-dominated candidates of a run, also while it goes on."""
    from evomerge.experiment.inspecting import choose, front, open_run
    from evomerge.store.stage_list import stage_path
    from evomerge.terms import with_unit

    run = stage_path(run, stage)
    started = open_run(run).state.started
    assert started is not None
    names = [objective.name for objective in started.objectives]
    records = front(run)
    weights = _weights(prefer, len(names))
    chosen = choose(records, weights) if weights else None
    rows = []
    for record in records:
        values = [objective.natural(value) for objective, value in zip(started.objectives, record.fitness or ())]
        rows.append((record, values, chosen is not None and record.id == chosen.id))
    if as_json:
        show_json(
            [
                {
                    "candidate": record.id,
                    "generation": record.asked.generation,
                    "recipe_id": record.asked.recipe_id,
                    "values": dict(zip(names, values)),
                    "feasible": record.violation == 0,
                    "chosen": marked,
                }
                for record, values, marked in rows
            ]
        )
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(["candidate", "generation", "recipe_id", *names, "feasible"])
        for record, values, _ in rows:
            kept = record.violation == 0
            writer.writerow([record.id, record.asked.generation, record.asked.recipe_id, *values, kept])
    else:
        constrained = ["constraints"] if started.constraints else []
        title = f"Front of {started.name} on the search documents"
        shown = table(title, ">candidate", *(f">{n}" for n in names), *constrained, "recipe")
        for record, values, marked in rows:
            style = "bold" if marked else ""
            cells = [with_unit(value, objective.unit) for value, objective in zip(values, started.objectives)]
            if constrained:
                cells.append("kept" if record.violation == 0 else f"missed by {record.violation:.1%}")
            shown.add_row(str(record.id), *cells, record.asked.recipe_id, style=style)
        stdout.print(shown)


def _weights(text: str | None, count: int) -> list[float] | None:
    if text is None:
        return None
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != count:
        raise UserError(f"--prefer {text}: expected {count} numbers separated by commas, one for each objective")
    return weights
