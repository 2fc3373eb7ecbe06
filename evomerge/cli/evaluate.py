"""``evomerge evaluate``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from evomerge.cli.console import show_json, stdout, table
from evomerge.cli.options import AsJson, StageName


class Split(StrEnum):
    """Roles of documents."""

    SEARCH = "search"
    VALIDATION = "validation"
    HELD_OUT = "held_out"


def command(
    model: Annotated[
        str, typer.Argument(help="Recipe file, run directory, or a model: hub id, directory or zoo:<name>.")
    ],
    fitness: Annotated[list[str], typer.Option("--fitness", "-f", help="Fitness preset or file; may be repeated.")],
    split: Annotated[Split, typer.Option(help="Which documents.")] = Split.HELD_OUT,
    dtype: Annotated[str, typer.Option(help="dtype of the model in memory.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Documents of one forward block.")] = None,
    stage: StageName = None,
    as_json: AsJson = False,
) -> None:
    """Score a model, or a recipe merged in memory, on the documents of a fitness."""
    from evomerge.experiment.evaluating import evaluate
    from evomerge.runtime.resources import RuntimeSettings
    from evomerge.store.stage_list import has_run, stage_path
    from evomerge.terms import with_unit

    if stage is not None or has_run(model):
        model = str(stage_path(model, stage))
    settings = RuntimeSettings(executor="inline", dtype=dtype, device=device, batch_size=batch_size)
    scored = evaluate(model, fitness, split.value, settings)
    values = dict(zip((objective.name for objective in scored.objectives), scored.evaluation.fitness))
    if as_json:
        show_json(
            {
                "model": model,
                "split": scored.split,
                "recipe_id": scored.recipe.recipe_id,
                "scores": {o.name: o.natural(values[o.name]) for o in scored.objectives},
                "intervals": {name: [item.low, item.high] for name, item in scored.intervals.items()},
                "metrics": dict(scored.evaluation.metrics),
                "seconds": vars(scored.evaluation.seconds),
            }
        )
        return
    shown = table(f"{model} on {split.value.replace('_', '-')} documents", "objective", ">score", ">95% interval", ">n")
    counts = {item.objective: len(item.document_ids) for item in scored.evaluation.document_scores}
    for objective in scored.objectives:
        interval = scored.intervals.get(objective.name)
        text = f"{interval.low:.3f} to {interval.high:.3f}" if interval else "-"
        score = with_unit(objective.natural(values[objective.name]), objective.unit)
        shown.add_row(objective.name, score, text, str(counts.get(objective.name, "-")))
    stdout.print(shown)
    cost = scored.evaluation.seconds
    stdout.print(f"merge {cost.merge:.2f} s, forward {cost.forward:.2f} s, metric {cost.metric:.2f} s", highlight=False)
