"""``evomerge front``."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from evomerge.cli.console import show_json, stdout
from evomerge.cli.options import AsJson, RunArgument, StageName
from evomerge.errors import UserError, did_you_mean
from evomerge.terms import SPLITS


def command(
    run: RunArgument,
    prefer: Annotated[
        str | None, typer.Option(help="Weights of the objectives, for example 2,1: marks a choice.")
    ] = None,
    knee: Annotated[bool, typer.Option("--knee", help="Choose the knee: the most even compromise.")] = False,
    baselines: Annotated[bool, typer.Option("--baselines", help="Show the baselines too.")] = False,
    split: Annotated[
        str | None, typer.Option(help="search, validation or held_out; default: search, and held_out once it is there.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
    stage: StageName = None,
) -> None:
    """Show the non-dominated candidates of a run, also while it goes on."""
    from evomerge.experiment.front_data import front_data
    from evomerge.experiment.front_view import front_view
    from evomerge.reports.front_table import members
    from evomerge.store.stage_list import stage_path

    if knee and prefer:
        raise UserError("--knee and --prefer both choose a candidate; give one of them")
    if split is not None and split not in SPLITS:
        raise UserError(f"--split {split}: expected {', '.join(SPLITS)}. {did_you_mean(split, SPLITS)}")
    view = front_view(stage_path(run, stage))
    front = front_data(view)
    chosen = view.knee if knee else _preferred(front, prefer)
    points = [point for point in front["points"] if baselines or point["kind"] != "baseline"]
    if as_json:
        show_json({"name": view.name, **front, "points": points, "chosen": chosen})
    elif as_csv:
        _write_csv(front, points, chosen)
    else:
        shown = [point for point in points if point["kind"] != "candidate"] if members(front) else points
        _show(view.name, front, shown, [split] if split else _splits(front), chosen)
        if chosen is not None:
            where = f"{run} OUT" + (f" --stage {stage}" if stage else "")
            stdout.print(f"chosen: candidate {chosen}; evomerge export {where} --candidate {chosen}", highlight=False)


def _show(
    name: str, front: Mapping[str, Any], points: Sequence[Mapping[str, Any]], splits: Sequence[str], chosen: int | None
) -> None:
    from evomerge.reports.front_table import front_lines, front_table

    for number, split in enumerate(splits):
        if number:
            stdout.print()
        title = f"Front of {name} on the {split.replace('_', '-')} documents"
        stdout.print(front_table(front, split, title, points, chosen))
        for line in front_lines(front, split) if split != "search" else ():
            stdout.print(line, markup=False, highlight=False)


def _splits(front: Mapping[str, Any]) -> list[str]:
    return ["search", *(["held_out"] if front["counts"].get("held_out") else [])]


def _write_csv(front: Mapping[str, Any], points: Sequence[Mapping[str, Any]], chosen: int | None) -> None:
    """One row a point; columns of the search documents first, those of other splits behind a prefix."""
    from evomerge.reports.front_table import marks

    names = [objective["name"] for objective in front["objectives"]]
    splits = [split for split in SPLITS if any(split in point["splits"] for point in points)]
    prefixes = {split: "" if split == "search" else f"{split}:" for split in splits}
    head = ["candidate", "generation", "recipe_id", "name", "kind", "feasible", "best", "knee", "chosen"]
    for split in splits:
        prefix = prefixes[split]
        head += [f"{prefix}{name}{end}" for name in names for end in ("", ":low", ":high")]
        head += [f"{prefix}probability", f"{prefix}dominated_by"]
    writer = csv.writer(sys.stdout)
    writer.writerow(head)
    for point in points:
        about = [point[key] for key in ("candidate", "generation", "recipe_id", "name", "kind")]
        said = marks(front, point, "search", chosen)
        row = [*about, point["missed"] == 0 if point["kind"] != "baseline" else None]
        row += [mark in said for mark in ("best", "knee", "chosen")]
        for split in splits:
            here = point["splits"].get(split)
            if here is None:
                row += [None] * (3 * len(names) + 2)
                continue
            row += [here["scores"][name][key] for name in names for key in ("value", "low", "high")]
            row += [here["probability"], " ".join(here["dominated_by"])]
        writer.writerow(row)


def _preferred(front: Mapping[str, Any], text: str | None) -> int | None:
    """The member with the best weighted sum on the search documents."""
    from evomerge.reports.front_table import members

    objectives = front["objectives"]
    if text is None or not members(front):
        return None
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(objectives):
        raise UserError(f"--prefer {text}: expected {len(objectives)} numbers separated by commas, one an objective")
    signed = [
        (weight if objective["higher_is_better"] else -weight, objective["name"])
        for weight, objective in zip(weights, objectives)
    ]

    def value(point: Mapping[str, Any]) -> float:
        scores = point["splits"]["search"]["scores"]
        return math.fsum(weight * scores[name]["value"] for weight, name in signed)

    found: int = max(members(front), key=value)["candidate"]
    return found
