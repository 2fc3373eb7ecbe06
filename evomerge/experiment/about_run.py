"""What a run is about, in a few lines of markdown for the dashboard: from its files, without its models."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def about_run(resolved: Mapping[str, Any], run_dir: Path, summary: Mapping[str, Any] | None = None) -> str:
    """Models, space, optimizer and budget of a run, its result so far, and the commands that go on from it.

    Args:
        resolved: the experiment with its presets written out, as experiment.yaml holds it.
        run_dir: where the run lies.
        summary: what summary.json holds; None or empty while the run goes on.
    """
    models = resolved["models"]
    lines = [str(resolved["description"]).strip(), ""] if resolved.get("description") else []
    lines += [f"- base model: `{_model(models['base'])}`"] if models.get("base") else []
    lines += [f"- expert {name}: `{_model(model)}`" for name, model in models["experts"].items()]
    space = resolved["search_space"]
    if isinstance(space, Mapping):
        methods = space.get("method")
        named = ", ".join(methods) if isinstance(methods, list) else methods
        space = str(space.get("kind", "")).replace("_", " ") + (f", method {named}" if named else "")
    lines += [f"- search space: {space}", f"- optimizer: {_pairs(resolved['optimizer'])}"]
    lines += [f"- budget: {_pairs(resolved['budget'])}"]
    if summary:
        lines += ["", "### Result", "", *_result(summary)]
    run = shlex.quote(str(run_dir))
    lines += ["", "### Commands", "", "```"]
    commands = {
        f"evomerge resume {run}": "go on after an interruption",
        f"evomerge front {run}": "the candidates nobody else beats",
        f"evomerge export {run} OUT": "the best as a checkpoint; --candidate c12 for another",
        f"evomerge report {run}": "write report.html anew",
        f"evomerge project {run}": "write this study anew from the log",
    }
    width = max(map(len, commands))
    lines += [f"{command:<{width}}  # {use}" for command, use in commands.items()]
    return "\n".join([*lines, "```"])


def _result(summary: Mapping[str, Any]) -> list[str]:
    lines = [f"- {summary['evaluations']} candidates, {summary['failed']} failed; ended by: {summary['reason']}"]
    winner = summary.get("winner")
    if not winner:
        return lines
    number = winner["candidate"]
    lines.append(f"- winner: candidate {number} (`evomerge export` takes `c{number}`), chosen on {winner['chosen_on']}")
    row: Mapping[str, Any] = next((row for row in summary["rows"] if row["kind"] == "winner"), {})
    for split in ("search", "validation", "held_out"):
        cell = row.get(split)
        if cell:
            interval = "" if cell["low"] is None else f" ({cell['low']:.4f} to {cell['high']:.4f})"
            lines.append(f"- its {split.replace('_', '-')} score: {cell['value']:.4f}{interval}")
    return lines


def _model(model: Any) -> str:
    if not isinstance(model, Mapping):
        return str(model)
    revision = f"@{model['revision']}" if model.get("revision") else ""
    return f"{model.get('model')}{revision}" + (f" + {model['adapter']}" if model.get("adapter") else "")


def _pairs(entries: Mapping[str, Any]) -> str:
    """``nsga2, population size 8``: the name first, empty entries left out."""
    shown = [str(entries["name"])] if "name" in entries else []
    shown += [
        f"{key.replace('_', ' ')} {value}"
        for key, value in entries.items()
        if key != "name" and value is not None and not isinstance(value, Mapping | list)
    ]
    return ", ".join(shown)
