"""The Optuna projection while a run goes on: in its own thread, and never able to stop the run.

What it misses (a storage that is away, a killed process) the next ``sync`` adds from the log.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from evomerge.store.events import Asked, Ended, RunStarted
from evomerge.store.run_state import RunState
from evomerge.store.study_names import shown

if TYPE_CHECKING:
    from pathlib import Path

    from evomerge.store.optuna_study import StudyProjection

_logger = logging.getLogger(__name__)

_Task = Callable[["StudyProjection"], object]


class LiveProjection:
    """Projects evaluations in the background; its methods return at once and never raise.

    The first failure is logged and ends the projection; the run does not notice.

    Args:
        storage: journal path or Optuna storage URL.
        started: the run's first event.
        state: what the log held when this process began, added first.
        about: markdown on the experiment for the study's note.
    """

    def __init__(
        self, storage: str | Path, started: RunStarted, state: RunState | None = None, about: str = ""
    ) -> None:
        self._storage = storage
        self._started = started
        self._about = about
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._failed = threading.Event()
        if state is not None:
            self._tasks.put(lambda study: study.sync(state))
        # A daemon: a storage that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="optuna-projection", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the projection gave up; the reason is in the log."""
        return self._failed.is_set()

    def add(self, outcome: Ended, asked: Asked | None = None) -> None:
        """Project one finished evaluation soon."""
        self._put(lambda study: study.add(outcome, asked))

    def set_about(self, about: str) -> None:
        """Say this of the experiment in the study's note soon."""
        self._put(lambda study: study.set_about(about))

    def close(self, timeout_seconds: float = 10.0) -> bool:
        """Finish what is queued and stop; whether all of it was projected."""
        self._tasks.put(None)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            _logger.warning("%s: the Optuna projection is slow and was left unfinished", shown(self._storage))
        return not self._thread.is_alive() and not self.failed

    def _put(self, task: _Task) -> None:
        if not self.failed:
            self._tasks.put(task)

    def _work(self) -> None:
        try:
            # Importing Optuna takes a second that the first candidates need not wait for.
            from evomerge.store.optuna_study import StudyProjection

            study = StudyProjection(self._storage, self._started, about=self._about)
            while (task := self._tasks.get()) is not None:
                task(study)
            study.close()
        except BaseException as error:
            self._failed.set()
            _logger.warning(
                "%s: the Optuna projection stopped (%s: %s); the run goes on and `evomerge project` can rebuild it",
                shown(self._storage),
                type(error).__name__,
                shown(str(error)),
            )
