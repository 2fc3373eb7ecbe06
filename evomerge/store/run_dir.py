"""The folder of one run: where everything lies, and who may write there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from evomerge.errors import UserError
from evomerge.store.event_log import EventLog
from evomerge.store.run_lock import RunLock
from evomerge.store.score_store import ScoreStore
from evomerge.store.stage_list import stage_path

ROOM_BYTES = 64 * 2**20

SEED_GRAM = "seed_gram.npz"  # inner products of seed models, see experiment/seed_gram.py
_FILES = (
    "experiment.yaml",
    "manifest.json",
    SEED_GRAM,
    "events.jsonl",
    "front.json",
    "summary.json",
    "report.html",
    "log.txt",
    "run.lock",
)
_FOLDERS = ("scores", "best", "figures")
# Optuna puts its lock and its leftovers beside the journal.
_JOURNAL = "study.journal"


class RunDir:
    """Paths of a run. Made by ``create`` (a new run) or ``open`` (an old one), not directly."""

    def __init__(self, path: Path, lock: RunLock | None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: str | Path, overwrite: bool = False, room_bytes: int = ROOM_BYTES) -> RunDir:
        """Make and lock the folder of a new run, and prove that it can be written, before any work.

        A folder that is empty, or where a run was prepared but never started, is taken over.

        Args:
            path: the run directory; its parents are made.
            overwrite: remove an existing run (only evomerge's own files of it).
            room_bytes: free disk space to ask for.

        Raises:
            UserError: the directory holds a run or foreign files, is in use, cannot be written, or the disk is full.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_taken(path, overwrite)
            lock = RunLock(path / "run.lock")
        except OSError as error:
            raise UserError(f"{path}: cannot make the run directory: {error.strerror or error}.") from error
        try:
            # Again, now that nobody else can start a run here.
            _refuse_taken(path, overwrite)
            _clear(path)
            _check_room(path, room_bytes)
            (path / "scores").mkdir(exist_ok=True)
            (path / "best").mkdir(exist_ok=True)
        except OSError as error:
            lock.release()
            raise UserError(f"{path}: cannot write to the run directory: {error.strerror or error}.") from error
        except BaseException:
            lock.release()
            raise
        return cls(path, lock)

    @classmethod
    def open(cls, path: str | Path, exclusive: bool = False) -> RunDir:
        """Open an existing run; of a staged run the last stage that has begun.

        Args:
            path: the run directory.
            exclusive: take the lock, to go on with the run; without it the run is only read.

        Raises:
            UserError: there is no run here, or (exclusive) another process is using it.
        """
        path = stage_path(path)
        if not (path / "events.jsonl").is_file():
            known = sorted(entry.parent.name for entry in path.parent.glob("*/events.jsonl"))[-8:]
            hint = f" Runs beside it: {', '.join(known)}." if known else ""
            raise UserError(f"{path}: no evomerge run here (there is no events.jsonl).{hint}")
        if not exclusive:
            return cls(path, None)
        try:
            lock = RunLock(path / "run.lock")
            (path / "scores").mkdir(exist_ok=True)
            (path / "best").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot write to the run directory: {error.strerror or error}.") from error
        return cls(path, lock)

    @property
    def exclusive(self) -> bool:
        """Whether this process holds the run's lock."""
        return self._lock is not None

    def close(self) -> None:
        """Free the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def event_log(self) -> EventLog:
        """The event log, writable when this process holds the lock."""
        return EventLog(self.events_path, writable=self.exclusive)

    def score_store(self) -> ScoreStore:
        """The per-document scores."""
        return ScoreStore(self.path)

    @property
    def experiment_path(self) -> Path:
        """The resolved experiment."""
        return self.path / "experiment.yaml"

    @property
    def manifest_path(self) -> Path:
        """Versions, model fingerprints, documents, hardware."""
        return self.path / "manifest.json"

    @property
    def events_path(self) -> Path:
        """The event log."""
        return self.path / "events.jsonl"

    @property
    def scores_dir(self) -> Path:
        """Per-document scores."""
        return self.path / "scores"

    @property
    def front_path(self) -> Path:
        """The front, rewritten each generation."""
        return self.path / "front.json"

    @property
    def best_recipe_path(self) -> Path:
        """Recipe of the best candidate so far."""
        return self.path / "best" / "recipe.yaml"

    @property
    def study_path(self) -> Path:
        """The Optuna projection."""
        return self.path / _JOURNAL

    @property
    def summary_path(self) -> Path:
        """The numbers of the finished run."""
        return self.path / "summary.json"

    @property
    def report_path(self) -> Path:
        """The report for people."""
        return self.path / "report.html"

    @property
    def figures_dir(self) -> Path:
        """Figures; made when the first one is written."""
        return self.path / "figures"

    @property
    def lock_path(self) -> Path:
        """The lock file; it names the process that works or worked here."""
        return self.path / "run.lock"

    @property
    def log_path(self) -> Path:
        """Log lines of every process of the run."""
        return self.path / "log.txt"


def _refuse_taken(path: Path, overwrite: bool) -> None:
    names = sorted(entry.name for entry in path.iterdir())
    foreign = [name for name in names if name not in (*_FILES, *_FOLDERS) and not name.startswith((".", _JOURNAL))]
    if foreign:
        raise UserError(
            f"{path}: the folder holds files that are no evomerge run ({', '.join(foreign[:5])}). Give the run another "
            "name or directory."
        )
    events = path / "events.jsonl"
    if events.exists() and events.stat().st_size > 0 and not overwrite:
        raise UserError(
            f"{path}: a run of this name exists. Go on with it (evomerge resume {path}), or give the new run another "
            "name (--set name=...)."
        )


def _clear(path: Path) -> None:
    """Remove what an earlier run or a failed start left, and nothing else."""
    for name in _FILES:
        if name != "run.lock":
            (path / name).unlink(missing_ok=True)
    for journal in path.glob(f"{_JOURNAL}*"):
        journal.unlink()
    for name in _FOLDERS:
        shutil.rmtree(path / name, ignore_errors=True)


def _check_room(path: Path, room_bytes: int) -> None:
    free = shutil.disk_usage(path).free
    if free < room_bytes:
        raise UserError(
            f"{path}: only {free / 2**20:.0f} MiB free on this disk, a run needs {room_bytes / 2**20:.0f} MiB or more. "
            "Make room or choose another run directory."
        )
    probe = path / ".probe.tmp"
    try:
        with probe.open("wb") as stream:
            stream.write(bytes(2**16))
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        probe.unlink(missing_ok=True)
