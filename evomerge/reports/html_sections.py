"""The sections of a run's report that are words and tables. All take plain data and give HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.reports.front_points import FrontData, FrontMark, FrontSplit
from evomerge.reports.html_parts import (
    commands,
    data_table,
    escaped,
    folded,
    link,
    paragraph,
    preformatted,
    rich_table,
)
from evomerge.reports.progress import format_seconds
from evomerge.reports.run_cost import FailureGroup, RunCost
from evomerge.reports.summary_table import closing_lines, comparison_table, score_table
from evomerge.store.manifest import Manifest
from evomerge.terms import SPLITS, with_unit

MAX_NAMES = 12
MAX_FRONT_ROWS = 40


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        status: ``running``, ``finished`` or ``interrupted``.
        note: why it ended.
        done: candidates finished.
        budget: candidates in all, None where only time limits it.
        seconds: of all sessions.
        wall_budget: seconds it may take, None where only candidates limit it.
    """

    status: str
    note: str
    done: int
    budget: int | None
    seconds: float
    wall_budget: float | None = None

    @property
    def share(self) -> float:
        """How much of the budget is spent."""
        shares = [self.done / self.budget] if self.budget else []
        shares += [self.seconds / self.wall_budget] if self.wall_budget else []
        return min(1.0, max(shares, default=0.0))


@dataclass(frozen=True)
class StageLink:
    """A stage of a staged run: ``target`` is its report, None while it has none or for the page itself."""

    name: str
    target: str | None
    is_this: bool = False


@dataclass(frozen=True)
class Heading:
    """What stands at the top of a report."""

    searched: str
    lead: str
    standing: Standing
    warnings: Sequence[str] = field(default=())
    stages: Sequence[StageLink] = field(default=())


def header(heading: Heading) -> str:
    """What was searched, where the run stands, and what came of it."""
    standing = heading.standing
    of_budget = f" of {standing.budget}" if standing.budget else ""
    spent = f"{standing.done}{of_budget} candidates in {format_seconds(standing.seconds)}"
    if standing.wall_budget:
        spent += f" of {format_seconds(standing.wall_budget)}"
    note = f"; {standing.note}" if standing.note else ""
    parts = [
        paragraph(heading.searched, "quiet"),
        f'<p><span class="status {standing.status}">{standing.status}</span> {escaped(spent + note)}</p>',
    ]
    if standing.status != "finished":
        parts.append(f'<div class="bar"><span style="width:{standing.share:.1%}"></span></div>')
    if heading.stages:
        shown = " &#8594; ".join(_stage(stage) for stage in heading.stages)
        parts.append(f"<p>Stages: {shown}</p>")
    parts.append(paragraph(heading.lead, "lead"))
    parts += [paragraph(text, "warning") for text in heading.warnings]
    return "\n".join(parts)


def _stage(stage: StageLink) -> str:
    if stage.is_this:
        return f"<strong>{escaped(stage.name)}</strong>"
    return link(stage.target, stage.name) if stage.target else escaped(stage.name)


def results(summary: Mapping[str, Any]) -> str:
    """Tables of scores, the documents nobody searched first, and the comparison with the baselines."""
    splits = [split for split in reversed(SPLITS) if any(row[split] for row in summary["rows"])]
    parts = [rich_table(score_table(summary, splits[0]))] if splits else []
    if summary["comparison"]:
        parts.append(rich_table(comparison_table(summary)))
    for split in splits[1:]:
        title = f"Scores on {split.replace('_', '-')} documents"
        parts.append(folded(title, rich_table(score_table(summary, split))))
    parts += [paragraph(line) for line in closing_lines(summary)]
    return "\n".join(parts)


def documents(manifest: Manifest) -> str:
    """How many documents each fitness has in each split."""
    rows = []
    for entry in [*manifest.documents.get("fitness", []), *manifest.documents.get("report", [])]:
        counts = dict.fromkeys(SPLITS, 0)
        for member in entry["members"]:
            for role, split in member["splits"].items():
                counts[role] += len(split["ids"])
        rows.append([entry["name"], *(counts[split] or "-" for split in SPLITS)])
    if not rows:
        return ""
    caption = "Documents of each fitness: searched, for choosing the winner, and reported once"
    names = [split.replace("_", "-") for split in SPLITS]
    return data_table(["fitness", *names], rows, right=range(1, 4), caption=caption)


def front_tables(front: FrontData, confidence: float) -> str:
    """The points of a front, the documents nobody searched open, the others folded."""
    splits = [split for split in front.splits if split.marks]
    parts = []
    for index, split in enumerate(reversed(splits)):
        shown = _front_table(front, split, confidence)
        parts.append(shown if index == 0 else folded(f"On {split.label} documents", shown))
    return "\n".join(parts)


def _front_table(front: FrontData, split: FrontSplit, confidence: float) -> str:
    many = len(front.objectives) > 1
    headings = ["", *(objective.name for objective in front.objectives)]
    headings += ["not dominated in", "dominated by"] if many else []
    marks = [mark for mark in split.marks if mark.is_member or mark.is_best or mark.candidate is None]
    members = [mark for mark in marks if mark.candidate is not None]
    kept = [*members[:MAX_FRONT_ROWS], *(mark for mark in marks if mark.candidate is None)]
    rows = []
    for mark in kept:
        cells = [_value(front, mark, index) for index in range(len(front.objectives))]
        if many:
            cells.append("" if mark.probability is None else f"{mark.probability:.0%} of draws")
            cells.append(_names(mark.dominated_by, 4))
        rows.append([_mark_name(mark), *cells])
    caption = f"{split.label.capitalize()} documents, with {confidence:.0%} intervals"
    if len(members) > MAX_FRONT_ROWS:
        caption += f"; the first {MAX_FRONT_ROWS} of {len(members)} members"
    classes = ["strong" if mark.is_best else "behind" if mark.is_behind else "" for mark in kept]
    right = range(1, len(front.objectives) + 2)
    return data_table(headings, rows, right=right, caption=caption, marks=classes)


def _value(front: FrontData, mark: FrontMark, index: int) -> str:
    unit = front.objectives[index].unit
    text = with_unit(mark.values[index], unit, decimals=3)
    ends = mark.interval(index)
    return text if ends is None else f"{text} ({with_unit(ends[0], unit, 3)}-{with_unit(ends[1], unit, 3)})"


def _mark_name(mark: FrontMark) -> str:
    notes = [*(["best"] if mark.is_best else []), *(["knee"] if mark.is_knee else [])]
    return mark.name + (f" ({', '.join(notes)})" if notes else "")


def costs(cost: RunCost) -> str:
    """Where the seconds of a run went."""
    rows: list[list[object]] = []
    for phase in cost.phases:
        parts = phase.seconds
        rows.append(
            [phase.name, phase.count, *(f"{value:.1f}" for value in (parts.merge, parts.forward, parts.metric)),
             f"{parts.busy / max(1, phase.count):.2f}", f"{parts.wait / max(1, phase.count):.2f}"]
        )  # fmt: skip
    headings = ["", "scored", "merge s", "forward s", "metric s", "work each s", "wait each s"]
    table = data_table(headings, rows, right=range(1, 7), caption="Seconds of work in sum, and per evaluation")
    available = cost.workers * cost.wall_seconds
    share = cost.idle_seconds / available if available else 0.0
    plural = "s" if cost.workers != 1 else ""
    text = (
        f"{cost.workers} worker{plural} for {format_seconds(cost.wall_seconds)}: "
        f"{format_seconds(cost.occupied_seconds)} of evaluations, {format_seconds(cost.idle_seconds)} ({share:.0%}) "
        "without one (start-up, the rest of a generation, the driver's own work)."
    )
    if cost.recalled:
        text += f" {cost.recalled} more evaluations came out of the evaluation cache, in no time worth counting."
    return table + paragraph(text)


def failures(groups: Sequence[FailureGroup]) -> str:
    """What failed, by kind."""
    if not groups:
        return paragraph("No evaluation failed.")
    rows = [[group.kind, group.phase, group.count, group.message, _names(group.keys, MAX_NAMES)] for group in groups]
    text = "A failed candidate has no fitness; it is never counted as a low score. Tracebacks are in log.txt."
    return data_table(["kind", "in", "how many", "first message", "which"], rows, right=[2]) + paragraph(text, "quiet")


def provenance(manifest: Manifest, seeds: Mapping[str, int]) -> str:
    """Versions, hardware, code, models and seeds."""
    hardware, git = manifest.hardware, manifest.git
    memory = hardware.get("memory_bytes")
    rows: list[list[object]] = [
        ["experiment", manifest.experiment_fingerprint],
        ["seeds", ", ".join(f"{purpose} {seed}" for purpose, seed in seeds.items())],
        ["versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())],
    ]
    if git:
        rows.append(["code", f"{git.get('commit')}{' with changes' if git.get('changed') else ''}"])
    rows.append(["processor", f"{hardware.get('cpu')}, {hardware.get('cores')} cores"])
    if memory:
        rows.append(["memory", f"{memory / 2**30:.1f} GiB"])
    rows += [["GPU", text] for text in hardware.get("gpus", [])]
    rows += [["merge method", f"{name}, file {mark}"] for name, mark in manifest.methods.items()]
    models = [[name, _model(manifest.experiment, name), mark] for name, mark in manifest.models.items()]
    return data_table(["", ""], rows) + data_table(["model", "source", "fingerprint of its weights"], models)


def _model(experiment: Mapping[str, Any], name: str) -> str:
    models = experiment.get("models", {})
    entry = models.get("base") if name == "base" else models.get("experts", {}).get(name)
    if not isinstance(entry, Mapping):
        return str(entry or "")
    text = str(entry.get("model", "")) + (f"@{entry['revision']}" if entry.get("revision") else "")
    return text + (f" + {entry['adapter']}" if entry.get("adapter") else "")


def reproduction(lines: Sequence[tuple[str, str]], experiment_yaml: str) -> str:
    """Commands to repeat the run and to use what it found, and its whole experiment."""
    return commands(lines) + folded("The experiment with every preset written out", preformatted(experiment_yaml))


def _names(names: Sequence[str], most: int) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
