"""Writing the report of a run and its figures, from what the run directory holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.experiment.inspecting import OpenRun, open_run, read_summary
from evomerge.experiment.load import Experiment
from evomerge.experiment.report_data import ReportData
from evomerge.experiment.report_figures import Figures, Shown
from evomerge.experiment.report_page import build_page
from evomerge.files import atomic_write_bytes, atomic_write_text
from evomerge.reports.look import PAGE, SIZES, FigureFormat
from evomerge.reports.progress import ProgressView
from evomerge.store.event_log import EventLog
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import read_state

FORMS: tuple[FigureFormat, ...] = ("svg", "png", "pdf")
# The page holds the drawings as SVG, so these files cost nothing more.
FORMS_AT_END: tuple[FigureFormat, ...] = ("svg",)

_logger = logging.getLogger(__name__)


def report(path: str | Path, figures: Sequence[str] = ("svg", "png"), size: str = "page") -> list[Path]:
    """Write a run's report and its figures anew, also while the run goes on.

    Args:
        path: run directory; of a staged run the last stage that has begun is meant.
        figures: forms of the figures' files: ``svg``, ``png``, ``pdf``.
        size: of the figures' files: ``page``, or the width of a paper's ``one-column`` or ``two-column``.

    Returns:
        The files written, the report first.

    Raises:
        UserError: there is no run, or the files cannot be written.
        InvalidInput: there is no such form or size.
    """
    problems = [
        Problem("--figures", f"{form!r} is no form of a figure; expected some of {', '.join(FORMS)}")
        for form in figures
        if form not in FORMS
    ]
    if size not in SIZES:
        problems.append(Problem("--figure-size", f"{size!r} is no size; expected one of {', '.join(SIZES)}"))
    if problems:
        raise InvalidInput(problems)
    data = read_data(path)
    forms = tuple(form for form in FORMS if form in figures)
    on_page = Figures(data)
    in_files = on_page if SIZES[size] == PAGE else Figures(data, SIZES[size])
    return [write_page(data, on_page), *_write_figures(data.run_dir, in_files, forms)]


def read_data(path: str | Path) -> ReportData:
    """What the report of a run shows.

    Raises:
        UserError: there is no run, or it cannot be read.
    """
    opened: OpenRun = open_run(path)
    loaded: Experiment | None = None
    try:
        loaded = opened.experiment
    except UserError as error:  # its models have gone; the log still tells most of it
        _logger.warning("%s: %s", opened.run_dir.path, error)
    return ReportData(opened.run_dir, opened.config, loaded, opened.state, read_summary(opened.run_dir))


def report_at_end(run_dir: RunDir, loaded: Experiment, summary: dict[str, Any] | None, view: ProgressView) -> None:
    """Write the report of a run that has just ended; a run whose numbers are complete does not fail because of it.

    Args:
        run_dir: the run.
        loaded: its experiment.
        summary: what summary.json holds; None when it was interrupted.
        view: what a person sees.
    """
    try:
        state = read_state(EventLog(run_dir.events_path, writable=False).read())
        data = ReportData(run_dir, OpenRun(run_dir, state).config, loaded, state, summary or {})
        figures = Figures(data)
        write_page(data, figures)
        if summary is not None:
            _write_figures(run_dir, figures, FORMS_AT_END)
    except Exception as error:
        _logger.exception("the report could not be written")
        view.note(f"the report could not be written ({error}); evomerge report {run_dir.path} tries again")


def write_page(data: ReportData, figures: Figures | None = None) -> Path:
    """Replace ``report.html``.

    Args:
        data: the run.
        figures: of it, in the page's size, where they are needed elsewhere too.

    Raises:
        UserError: it cannot be written.
    """
    text = build_page(data, figures or Figures(data))
    try:
        atomic_write_text(data.run_dir.report_path, text)
    except OSError as error:
        raise UserError(f"{data.run_dir.path}: cannot write the report: {error.strerror or error}.") from error
    return data.run_dir.report_path


def _write_figures(run_dir: RunDir, figures: Figures, forms: Sequence[FigureFormat]) -> list[Path]:
    """Write the figures, and remove those of candidates that are no longer drawn."""
    folder = run_dir.figures_dir
    written: list[Path] = []
    drawn = [shown.drawing for section in Figures.SECTIONS for shown in _section(figures, section)] if forms else []
    try:
        for drawing in drawn:
            folder.mkdir(exist_ok=True)
            for form in forms:
                path = folder / f"{drawing.name}.{form}"
                atomic_write_bytes(path, drawing.file(form))
                written.append(path)
        names = {drawing.name for drawing in drawn}
        for old in sorted(folder.glob("route_*")) if forms else ():
            if old.stem not in names:
                old.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot write the figures: {error.strerror or error}.") from error
    return written


def _section(figures: Figures, section: str) -> Sequence[Shown]:
    """The figures of a section; none where the page says what it lacks."""
    try:
        return figures.of(section)
    except UserError as error:
        _logger.warning("the figures of %s are not drawn: %s", section, error)
        return ()
    except Exception:
        _logger.exception("the figures of %s could not be drawn", section)
        return ()
