"""The note of a run's study: what the run is, how its fixed recipes scored, and how to go on from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.store.events import RunStarted
from evomerge.store.study_columns import Column
from evomerge.store.study_names import BASELINES_SUFFIX
from evomerge.terms import Array, with_unit


def study_note(
    started: RunStarted,
    columns: tuple[Column, ...] = (),
    baselines: Mapping[str, Sequence[float] | Array] | None = None,
    about: str = "",
) -> str:
    """Markdown for the study's note.

    Args:
        started: the run's first event.
        columns: the study's parameters.
        baselines: name -> objective values ``(M,)`` in their natural direction.
        about: markdown on the experiment, shown below the title.
    """
    lines = [f"## {started.name}", "", *([about, ""] if about else []), "### Objectives", ""]
    lines += ["| objective | direction | weight |", "|---|---|---|"]
    for objective in started.objectives:
        direction = "higher is better" if objective.higher_is_better else "lower is better"
        unit = f" ({objective.unit})" if objective.unit else ""
        lines.append(f"| {_cell(objective.name)}{unit} | {direction} | {objective.weight:g} |")
    if started.constraints:
        lines += ["", *(f"- constraint: `{text}`" for text in started.constraints)]
        lines += ["", "A constraint's value is zero or less where it is kept; `missed ...` is by what share it is not."]
    if baselines:
        lines += ["", "### Baselines on the search documents", ""]
        lines.append("| baseline | " + " | ".join(_cell(objective.name) for objective in started.objectives) + " |")
        lines.append("|---" * (1 + len(started.objectives)) + "|")
        for name, values in baselines.items():
            pairs = zip(started.objectives, values, strict=True)
            shown = [with_unit(float(v), o.unit) if o.unit else f"{float(v):.4g}" for o, v in pairs]
            lines.append(f"| {_cell(name)} | " + " | ".join(shown) + " |")
        lines += ["", f"They are trials too, in the study whose name ends in `{BASELINES_SUFFIX.strip()}`."]
    return "\n".join([*lines, "", "### How to read it", "", *_reading(started, columns)])


def _reading(started: RunStarted, columns: tuple[Column, ...]) -> list[str]:
    seeds = ", ".join(f"{purpose} {seed}" for purpose, seed in started.seeds.items())
    lines = [
        "- Trials are numbered as they finished; `candidate` is the number that `evomerge export` takes (`c12`).",
        "- Failed trials carry their reason in `failure`; pruned ones were stopped before their last document.",
        f"- {len(started.genes)} genes; seeds: {seeds}; evomerge {started.evomerge}.",
    ]
    if len(columns) < len(started.genes):
        lines.append(
            f"- The genes are shown as {len(columns)} parameters (mean, least and largest of a group, or its mean "
            "alone); whole genotypes are in `events.jsonl`."
        )
    return [*lines, "- This study is a picture of the run's event log and can be rebuilt from it: `evomerge project`."]


def _cell(text: str) -> str:
    """Text that keeps its table in one piece."""
    return text.replace("|", "\\|").replace("\n", " ")
