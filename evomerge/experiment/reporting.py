"""The report of a run and the figures of its routes, written from what the run directory holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evomerge.errors import UserError
from evomerge.experiment.inspecting import front_records, open_run, read_summary
from evomerge.experiment.load import Experiment
from evomerge.files import atomic_write_bytes, atomic_write_text
from evomerge.recipes.recipe import Recipe, Route, Source, Stack, children
from evomerge.reports.html_report import html_report
from evomerge.reports.progress import ProgressView
from evomerge.reports.route_figure import figure_bytes, route_figure
from evomerge.store.event_log import EventLog
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import CandidateRecord, RunState, read_state

MAX_FRONT_FIGURES = 12

_logger = logging.getLogger(__name__)


def report(path: str | Path) -> list[Path]:
    """Write a run's report and the figures of its routes anew, also while the run goes on.

    Args:
        path: run directory; of a staged run the last stage that has begun is meant.

    Returns:
        The files written, the report first.

    Raises:
        UserError: there is no run, its models are not on this machine, or the files cannot be written.
    """
    opened = open_run(path)
    return _write(opened.run_dir, opened.experiment, opened.state, read_summary(opened.run_dir))


def report_at_end(run_dir: RunDir, loaded: Experiment, summary: dict[str, Any], view: ProgressView) -> None:
    """Write the report of a run that has just ended; a run whose numbers are complete does not fail because of it."""
    try:
        _write(run_dir, loaded, read_state(EventLog(run_dir.events_path, writable=False).read()), summary)
    except Exception as error:
        _logger.exception("the report could not be written")
        view.note(f"the report could not be written ({error}); evomerge report {run_dir.path} tries again")


def _write(run_dir: RunDir, loaded: Experiment, state: RunState, summary: dict[str, Any]) -> list[Path]:
    figures: list[tuple[str, bytes]] = []
    written: dict[str, bytes] = {}
    for record, name, caption in _drawn(run_dir, state, summary):
        svg, png = _draw(loaded, record, caption)
        if svg:
            figures.append((caption, svg))
            written[f"{name}.svg"] = svg
            written |= {f"{name}.png": png} if name == "route_best" else {}
    lines = [] if summary else [_standing(state)]
    text = html_report(loaded.config.name, summary or None, lines, figures)
    try:
        paths = _write_figures(run_dir.figures_dir, written)
        atomic_write_text(run_dir.report_path, text)
    except OSError as error:
        raise UserError(f"{run_dir.path}: cannot write the report: {error.strerror or error}.") from error
    return [run_dir.report_path, *paths]


def _drawn(run_dir: RunDir, state: RunState, summary: dict[str, Any]) -> Iterator[tuple[CandidateRecord, str, str]]:
    """(candidate, file name, caption) of everything that is drawn."""
    best = state.best()
    if best is None:
        return
    if summary.get("winner"):
        best = state.candidates[summary["winner"]["candidate"]]
    yield best, "route_best", f"candidate {best.id}, {'the winner' if summary.get('winner') else 'the best so far'}"
    members = front_records(state)
    if len(members) > 1:
        for record in members[:MAX_FRONT_FIGURES]:
            yield record, f"route_c{record.id}", f"candidate {record.id}, member of the front"


def _draw(loaded: Experiment, record: CandidateRecord, caption: str) -> tuple[bytes, bytes]:
    """SVG and PNG of a candidate's route; empty when it is no route."""
    if loaded.space is None:
        raise UserError(f"{loaded.where}: the models of this run are not on this machine")
    recipe = loaded.space.decode(record.asked.array)
    figure = route_figure(recipe, f"{loaded.config.name}: {caption}", tuple(_depths(loaded, recipe)))
    return (b"", b"") if figure is None else (figure_bytes(figure, "svg"), figure_bytes(figure, "png"))


def _depths(loaded: Experiment, recipe: Recipe) -> Iterator[tuple[str, int]]:
    """(model, number of blocks) of a route's models, where known."""
    named = dict(loaded.experts) | ({} if loaded.base is None else {"base": loaded.base})
    known = {source: loaded.depths[name] for name, source in named.items() if name in loaded.depths}
    for name, node in recipe.model.models if isinstance(recipe.model, Route) else ():
        while not isinstance(node, Source | Stack):  # a merge is as deep as what it merges
            node = children(node)[0]
        depth = node.num_blocks if isinstance(node, Stack) else known.get(node)
        if depth is not None:
            yield name, depth


def _write_figures(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write these figures and remove those of candidates that are no longer drawn."""
    if not files and not folder.exists():
        return []
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        atomic_write_bytes(folder / name, data)
    for old in sorted(folder.glob("route_*")):
        if old.name not in files:
            old.unlink()
    return [folder / name for name in files]


def _standing(state: RunState) -> str:
    best = state.best()
    text = f"The run has not ended. {state.num_evaluations} candidates have been scored."
    return text if best is None else f"{text} The best so far is candidate {best.id}."
