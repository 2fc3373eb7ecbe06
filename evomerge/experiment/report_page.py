"""A run's report as one HTML page. A section that cannot be made says so and leaves the others alone."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from evomerge.errors import UserError
from evomerge.experiment.report_data import ReportData
from evomerge.experiment.report_figures import Figures
from evomerge.reports import html_parts as html
from evomerge.reports import html_sections as sections
from evomerge.reports.html_sections import Heading, StageLink, Standing
from evomerge.reports.lead import lead_sentence
from evomerge.reports.run_cost import read_failures
from evomerge.store.run_lock import holder_has_gone
from evomerge.store.stage_list import is_staged, read_stages

_logger = logging.getLogger(__name__)


def build_page(data: ReportData, figures: Figures) -> str:
    """The text of ``report.html``; the same run directory gives the same text.

    Args:
        data: the run.
        figures: of it, in the page's size.
    """

    def drawn(section: str) -> str:
        return "\n".join(html.figure(shown.drawing.element(), shown.caption) for shown in figures.of(section))

    parts: list[tuple[str, str, Callable[[], str]]] = [
        ("results", "Results", lambda: _results(data)),
        ("convergence", "Convergence", lambda: drawn("convergence") or _nothing()),
        ("front", "Front" if data.has_many_objectives else "Candidates", lambda: _front(data, drawn)),
        ("coefficients", "Numbers of the merge", lambda: drawn("coefficients")),
        ("routes", "Paths through the blocks", lambda: drawn("routes")),
        ("importance", "Importance of parameters", lambda: drawn("importance")),
        ("cost", "Cost", lambda: drawn("cost") + sections.costs(data.cost) + _spared(data)),
        ("failures", "Failures", lambda: sections.failures(read_failures(data.state))),
        ("provenance", "Provenance", lambda: sections.provenance(data.manifest, data.started.seeds)),
        ("repeat", "How to repeat and use it", lambda: _repeat(data)),
    ]
    made = [html.Section(name, title, body) for name, title, build in parts if (body := _made(name, build))]
    return html.page(data.started.name, _made("header", lambda: sections.header(_heading(data))), made)


def _made(name: str, build: Callable[[], str]) -> str:
    try:
        return build()
    except UserError as error:
        return html.paragraph(f"This part is missing: {error}", "quiet")
    except Exception as error:
        _logger.exception("the section %s of the report could not be made", name)
        return html.paragraph(f"This part could not be made ({type(error).__name__}: {error}); see log.txt.", "warning")


def _nothing() -> str:
    return html.paragraph("No candidate has a fitness yet.")


def _results(data: ReportData) -> str:
    # A run that was moved is shown where it lies.
    summary = {**data.summary, "run_dir": str(data.run_dir.path)}
    parts = [sections.results(summary)] if data.summary else []
    if not data.summary:
        parts.append(html.paragraph("Scores on held-out documents and comparisons come at the end of the run."))
    return "\n".join([*parts, sections.documents(data.manifest)])


def _front(data: ReportData, drawn: Callable[[str], str]) -> str:
    if not data.front.splits:
        return _nothing()
    return drawn("front") + sections.front_tables(data.front, data.view.confidence)


def _spared(data: ReportData) -> str:
    """What racing or estimation spared: such candidates have no score anywhere else on the page."""
    meaning = {
        "racing": "Stopped candidates were clearly behind after some of their documents and have no fitness; figures "
        "and tables show complete candidates only.",
        "estimation": "An estimate is no fitness: figures and tables show only candidates that were scored on all "
        "documents. The best by estimate are estimated too high on average.",
    }
    return "".join(
        html.paragraph(f"{line[0].upper()}{line[1:]}. {meaning[line.split(' ', 1)[0]]}") for line in data.spared()
    )


def _repeat(data: ReportData) -> str:
    run = shlex.quote(str(data.run_dir.path))
    experiment = shlex.quote(str(data.run_dir.experiment_path))
    names = [str(entry.get("name")) for entry in data.config.fitness if isinstance(entry, dict) and entry.get("task")]
    fitness = " ".join(f"-f {shlex.quote(name)}" for name in names)
    lines = [
        ("the same search again, in a new directory", f"evomerge run {experiment} --out AGAIN"),
        ("go on after an interruption, or with a larger budget", f"evomerge resume {run}"),
        ("the front, and how sure it is", f"evomerge front {run}"),
        ("write the best candidate, or every member of the front, as checkpoints", f"evomerge export {run} OUT"),
        ("", f"evomerge export {run} OUT --candidate front"),
        ("score a checkpoint on held-out documents", f"evomerge evaluate OUT {fitness}"),
        ("this report and its figures for print", f"evomerge report {run} --figures png,svg,pdf"),
    ]
    return sections.reproduction(lines, data.run_dir.experiment_path.read_text())


def _heading(data: ReportData) -> Heading:
    config, loaded = data.config, data.loaded
    base = f" around {config.models.base.source()}" if config.models.base is not None else ""
    space = f"{len(data.started.genes)} genes"
    if loaded is not None and loaded.space is not None:
        space = loaded.space.describe().splitlines()[0]
    names = ", ".join(config.models.experts)
    objectives = ", ".join(objective.name for objective in data.started.objectives)
    searched = (
        f"{config.description + ' ' if config.description else ''}Merges of {names}{base}. Searched: {space}. "
        f"Optimizer: {config.optimizer.name}. Scored by {objectives}."
    )
    return Heading(searched, _lead(data), _standing(data), list(_warnings(data)), list(_stages(data)))


def _lead(data: ReportData) -> str:
    if data.summary:
        return lead_sentence(data.summary)
    if data.best is None:
        return "No candidate has a fitness yet."
    history = data.history
    text = (
        f"The best so far is candidate {data.best.id}: {history.label} {history.steps[-1].best:.4g} on search documents"
    )
    if history.baselines:
        name, value = history.baselines[0]
        text += f"; the strongest baseline there is {name} with {value:.4g}"
    return f"{text}. The best of many noisy scores is too good by chance."


def _standing(data: ReportData) -> Standing:
    budget, state = data.config.budget, data.state
    done = state.num_evaluations
    status, note = "running", ""
    if state.finished is not None:
        reason = state.finished.reason
        status = "interrupted" if reason == "interrupted" else "finished"
        note = f"ended by {reason}" if status == "finished" else "evomerge resume goes on with it"
    elif budget.evaluations is not None and done >= budget.evaluations and not holder_has_gone(data.run_dir.lock_path):
        note = "the search has ended; finalists and baselines are scored"
    elif holder_has_gone(data.run_dir.lock_path):
        status, note = "interrupted", "its process ended without a word; evomerge resume goes on with it"
    evaluations = budget.evaluations if budget.evaluations is None or budget.evaluations >= done else None
    return Standing(status, note, done, evaluations, state.elapsed_seconds, budget.wall_time)


def _warnings(data: ReportData) -> Iterator[str]:
    entries = [entry for entry in data.config.fitness if isinstance(entry, dict)]
    searched = [str(entry.get("name")) for entry in entries if entry.get("allow_test_split")]
    if searched:
        yield f"Searched on the test split of: {', '.join(searched)}. Do not report its score there."
    if data.summary and not data.summary["documents"].get("held_out"):
        yield "No held-out documents were scored: the scores shown chose the winner and are too good by chance."
    failed = sum(failure.candidate is not None for failure in data.state.failures)
    done = data.state.num_evaluations
    if done and failed / done > 0.2:
        yield f"{failed} of {done} candidates failed."


def _stages(data: ReportData) -> Iterator[StageLink]:
    """The stages of the run that this one is a part of."""
    parent = Path(os.path.abspath(data.run_dir.path)).parent
    if not is_staged(parent):
        return
    for stage in read_stages(parent):
        is_this = stage.path.name == data.run_dir.path.name
        # Also those to come: what is written now is read when they have run.
        yield StageLink(stage.name, None if is_this else f"../{stage.path.name}/report.html", is_this)
