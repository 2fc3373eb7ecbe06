"""The list of the stages of a staged run, and the way from a run's folder to that of one of its stages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import UserError, did_you_mean
from evomerge.files import atomic_write_json

_VERSION = 1
STAGES_FILE = "stages.json"


@dataclass(frozen=True)
class StageFolder:
    """One stage: its name and where its run lies or will lie."""

    name: str
    path: Path

    @property
    def has_run(self) -> bool:
        """Whether the stage has begun."""
        return (self.path / "events.jsonl").is_file()


def is_staged(path: str | Path) -> bool:
    """Whether a folder holds a run of several stages."""
    return (Path(path) / STAGES_FILE).is_file()


def has_run(path: str | Path) -> bool:
    """Whether a folder holds a run, staged or not."""
    return is_staged(path) or (Path(path) / "events.jsonl").is_file()


def folder_names(names: Sequence[str]) -> list[str]:
    """Folder names of stages: their number from 1 and their name."""
    return [f"{number}-{name}" for number, name in enumerate(names, start=1)]


def write_stages(path: Path, names: Sequence[str]) -> None:
    """Write the list of a staged run atomically.

    Args:
        path: the run's folder.
        names: of the stages, in order.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    stages = [{"name": name, "folder": folder} for name, folder in zip(names, folder_names(names))]
    atomic_write_json(path / STAGES_FILE, {"v": _VERSION, "stages": stages})


def read_stages(path: Path) -> tuple[StageFolder, ...]:
    """The stages of a staged run, in order.

    Raises:
        UserError: the list is missing, damaged, or of another schema version.
    """
    file = path / STAGES_FILE
    try:
        entries = json.loads(file.read_text())
        if entries["v"] != _VERSION:
            raise ValueError(f"schema version {entries['v']}, this evomerge reads {_VERSION}")
        found = tuple(StageFolder(str(entry["name"]), path / Path(entry["folder"]).name) for entry in entries["stages"])
    except FileNotFoundError:
        raise UserError(f"{path}: no run of several stages here (there is no {STAGES_FILE}).") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: the list of stages is damaged ({error}).") from error
    if not found:
        raise UserError(f"{file}: the list of stages is damaged (it is empty).")
    return found


def stage_path(path: str | Path, stage: str | None = None) -> Path:
    """The folder of the run that is meant.

    Args:
        path: a run, staged or not.
        stage: name of a stage; None = the last one that has begun, of a run without stages the run itself.

    Raises:
        UserError: there is no such stage, or it has not begun.
    """
    path = Path(path)
    if not is_staged(path):
        if stage is not None:
            raise UserError(f"{path}: --stage {stage}: this run has no stages")
        return path
    stages = read_stages(path)
    if stage is None:
        return next((entry.path for entry in reversed(stages) if entry.has_run), stages[0].path)
    named = {entry.name: entry for entry in stages}
    if stage not in named:
        raise UserError(f"{path}: there is no stage {stage!r}. {did_you_mean(stage, named)}")
    if not named[stage].has_run:
        raise UserError(f"{path}: stage {stage} has not begun yet")
    return named[stage].path
