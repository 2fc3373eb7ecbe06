"""The folder of a staged run: the whole experiment, the list of stages, and one run directory for each."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import UserError
from evomerge.files import atomic_write_text
from evomerge.store.run_dir import RunDir
from evomerge.store.run_lock import RunLock
from evomerge.store.stage_list import STAGES_FILE, StageFolder, is_staged, read_stages, write_stages

_FILES = (STAGES_FILE, "experiment.yaml", "run.lock")


class StagesDir:
    """A staged run, locked by this process. Made by ``create`` (a new run) or ``open`` (an old one), not directly."""

    def __init__(self, path: Path, stages: tuple[StageFolder, ...], lock: RunLock) -> None:
        self.path = path
        self.stages = stages
        self._lock = lock

    @classmethod
    def create(cls, path: str | Path, names: Sequence[str], experiment: str, overwrite: bool = False) -> StagesDir:
        """Make and lock the folder of a new staged run.

        Args:
            path: the run directory; its parents are made.
            names: of the stages, in order.
            experiment: text of the resolved experiment.
            overwrite: remove an existing staged run (only evomerge's own files of it).

        Raises:
            UserError: the directory holds a run or foreign files, is in use, or cannot be written.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_taken(path, overwrite)
            lock = RunLock(path / "run.lock")
        except OSError as error:
            raise UserError(f"{path}: cannot make the run directory: {error.strerror or error}.") from error
        try:
            _refuse_taken(path, overwrite)
            for stage in read_stages(path) if is_staged(path) else ():
                _remove_stage(stage.path)
            (path / STAGES_FILE).unlink(missing_ok=True)
            atomic_write_text(path / "experiment.yaml", experiment)
            # Last: a folder with a list of stages is a staged run that can be resumed.
            write_stages(path, names)
            return cls(path, read_stages(path), lock)
        except OSError as error:
            lock.release()
            raise UserError(f"{path}: cannot write to the run directory: {error.strerror or error}.") from error
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, path: str | Path) -> StagesDir:
        """Open and lock an existing staged run, to go on with it.

        Raises:
            UserError: there is no staged run here, or another process is using it.
        """
        path = Path(path)
        stages = read_stages(path)
        try:
            return cls(path, stages, RunLock(path / "run.lock"))
        except OSError as error:
            raise UserError(f"{path}: cannot write to the run directory: {error.strerror or error}.") from error

    @property
    def experiment_path(self) -> Path:
        """The resolved experiment of all stages."""
        return self.path / "experiment.yaml"

    def close(self) -> None:
        """Free the lock."""
        self._lock.release()


def _refuse_taken(path: Path, overwrite: bool) -> None:
    staged = is_staged(path)
    own = {*_FILES, *(stage.path.name for stage in (read_stages(path) if staged else ()))}
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in own and not entry.name.startswith("."))
    if foreign:
        raise UserError(
            f"{path}: the folder holds files that are no evomerge run of several stages ({', '.join(foreign[:5])}). "
            "Give the run another name or directory."
        )
    if staged and not overwrite:
        raise UserError(
            f"{path}: a run of this name exists. Go on with it (evomerge resume {path}), or give the new run another "
            "name (--set name=...)."
        )


def _remove_stage(path: Path) -> None:
    """Remove the run of one stage, unless there is something in its folder that is not evomerge's."""
    if path.exists():
        RunDir.create(path, overwrite=True).close()
        shutil.rmtree(path)
