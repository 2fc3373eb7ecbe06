"""What a person sees while a run works: a live panel on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from evomerge.terms import Evaluation, Seconds

PLAIN_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Standing:
    """Where a phase of a run stands.

    Attributes:
        phase: what is going on, for example ``search``.
        done: finished evaluations of this phase.
        total: evaluations of this phase, None when only time limits it.
        failed: how many of ``done`` failed.
        stopped: how many of ``done`` were stopped because they were behind.
        estimated: how many of ``done`` were scored on some documents only, to estimate the others.
        spared: share of documents that both spared.
        busy: workers at work.
        workers: workers in all.
        generation: number of the open generation.
        best: best scalar fitness so far, None before the first.
        best_name: whose it is.
        front_size: members of the front.
        eta_seconds: time left, None while unknown.
        mean_seconds: mean cost of an evaluation of this phase, without those that came out of the evaluation cache.
        recalled: how many of this session did.
    """

    phase: str
    done: int = 0
    total: int | None = None
    failed: int = 0
    stopped: int = 0
    estimated: int = 0
    spared: float = 0.0
    busy: int = 0
    workers: int = 0
    generation: int = 0
    best: float | None = None
    best_name: str = ""
    front_size: int = 0
    eta_seconds: float | None = None
    mean_seconds: Seconds = field(default_factory=Seconds)
    recalled: int = 0

    def text(self) -> str:
        """One line."""
        parts = [f"{self.phase} {self.done}/{self.total if self.total is not None else '?'}"]
        if self.best is not None:
            parts.append(f"best {self.best:.4f} ({self.best_name})")
        if self.front_size > 1:
            parts.append(f"front {self.front_size}")
        if self.failed:
            parts.append(f"failed {self.failed}")
        if self.stopped:
            parts.append(f"stopped {self.stopped} ({self.spared:.0%} of documents spared)")
        if self.estimated:
            parts.append(f"estimated {self.estimated} ({self.spared:.0%} of documents spared)")
        if self.recalled:
            parts.append(f"{self.recalled} from the cache")
        cost = self.mean_seconds
        if self.done:
            parts.append(
                f"{cost.busy:.2f} s each (merge {cost.merge:.2f}, forward {cost.forward:.2f}, "
                f"metric {cost.metric:.2f}, wait {cost.wait:.2f})"
            )
        parts.append(f"workers {self.busy}/{self.workers}")
        if self.eta_seconds is not None:
            parts.append(f"about {format_seconds(self.eta_seconds)} left")
        return ", ".join(parts)


class Clock:
    """Counts the finished evaluations of one phase and estimates the time left."""

    def __init__(self, phase: str, total: int | None, workers: int, done_before: int = 0) -> None:
        self.standing = Standing(phase, done=done_before, total=total, workers=workers)
        self._counted = 0
        self._spared = 0.0  # in candidates
        self._sums = [0.0, 0.0, 0.0, 0.0]
        self._started = time.monotonic()

    def count(self, evaluation: Evaluation, *, busy: int) -> Standing:
        """Take in one finished evaluation."""
        cost = evaluation.seconds
        recalled = self.standing.recalled + evaluation.is_recalled
        if not evaluation.is_recalled:
            for position, seconds in enumerate((cost.merge, cost.forward, cost.metric, cost.wait)):
                self._sums[position] += seconds
        self._counted += 1
        failed, stop = self.standing.failed + (evaluation.failure is not None), evaluation.stop
        if stop is not None:
            self._spared += 1.0 - stop.scored / stop.total
        estimate = None if evaluation.ok else evaluation.estimate
        if estimate is not None:
            self._spared += 1.0 - estimate.documents / estimate.total
        elapsed = time.monotonic() - self._started
        done = self.standing.done + 1
        left = None
        if self.standing.total is not None:
            left = elapsed / self._counted * max(self.standing.total - done, 0)
        self.standing = replace(
            self.standing,
            done=done,
            failed=failed,
            stopped=self.standing.stopped + (stop is not None),
            estimated=self.standing.estimated + (estimate is not None),
            spared=self._spared / max(1, self._counted - failed),
            busy=busy,
            eta_seconds=left,
            mean_seconds=Seconds(*(total / max(1, self._counted - recalled) for total in self._sums)),
            recalled=recalled,
        )
        return self.standing

    def note_best(self, value: float, name: str) -> None:
        """There is a new best."""
        self.standing = replace(self.standing, best=value, best_name=name)

    def note_front(self, size: int) -> None:
        """The front has this many members now."""
        self.standing = replace(self.standing, front_size=size)


class ProgressView(Protocol):
    """Receives what happens; never raises, never slows the run."""

    def note(self, text: str) -> None:
        """One line worth reading once."""

    def show(self, standing: Standing) -> None:
        """The newest state; may be dropped."""

    def close(self) -> None:
        """Give the terminal back."""


class QuietView:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Drop the line."""

    def show(self, standing: Standing) -> None:
        """Drop the state."""

    def close(self) -> None:
        """Nothing to give back."""


class StageView:
    """Passes everything on and says which stage it belongs to.

    Args:
        view: what a person sees.
        stage: name of the stage.
    """

    def __init__(self, view: ProgressView, stage: str) -> None:
        self._view = view
        self._stage = stage

    def note(self, text: str) -> None:
        """Pass the line on."""
        self._view.note(f"{self._stage}: {text}")

    def show(self, standing: Standing) -> None:
        """Pass the state on."""
        self._view.show(replace(standing, phase=f"{self._stage}: {standing.phase}"))

    def close(self) -> None:
        """The view that was given is closed by whoever made it."""


class PlainView:
    """Lines for logs and pipes: every note, the state at most every ten seconds and at the end of a phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown_at = 0.0
        self._phase = ""

    def note(self, text: str) -> None:
        """Print the line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, standing: Standing) -> None:
        """Print the state when it is due."""
        due = time.monotonic() - self._shown_at >= PLAIN_LINE_SECONDS
        if due or standing.phase != self._phase or standing.done == standing.total:
            self.note(standing.text())
            self._shown_at = time.monotonic()
            self._phase = standing.phase

    def close(self) -> None:
        """Nothing to give back."""


class LiveView:
    """A bar with the newest state under it, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._task: TaskID | None = None
        self._phase = ""
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def note(self, text: str) -> None:
        """Print the line above the bar."""
        self._live.console.print(text, markup=False, highlight=False)

    def show(self, standing: Standing) -> None:
        """Redraw."""
        if standing.phase != self._phase:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(standing.phase, total=standing.total)
            self._phase = standing.phase
        assert self._task is not None
        self._bar.update(self._task, completed=standing.done)
        self._live.update(Group(self._bar, _panel(standing)))

    def close(self) -> None:
        """Remove the bar."""
        self._live.stop()


def _panel(standing: Standing) -> Table:
    table = Table.grid(padding=(0, 2))
    cost = standing.mean_seconds
    best = "-" if standing.best is None else f"{standing.best:.4f} ({standing.best_name})"
    left = "-" if standing.eta_seconds is None else format_seconds(standing.eta_seconds)
    table.add_row("best", best, "left", left, "workers", f"{standing.busy}/{standing.workers}")
    table.add_row(
        "seconds",
        f"merge {cost.merge:.2f} forward {cost.forward:.2f} metric {cost.metric:.2f} wait {cost.wait:.2f}",
        "front",
        str(standing.front_size),
        "failed",
        str(standing.failed),
    )
    if standing.stopped:
        table.add_row("stopped", str(standing.stopped), "documents spared", f"{standing.spared:.0%}")
    if standing.estimated:
        table.add_row("estimated", str(standing.estimated), "documents spared", f"{standing.spared:.0%}")
    return table


def format_seconds(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def open_view(quiet: bool, console: Console | None = None) -> ProgressView:
    """The view that suits the terminal."""
    console = console or Console(stderr=True)
    if quiet:
        return QuietView()
    return LiveView(console) if console.is_terminal else PlainView(console)
