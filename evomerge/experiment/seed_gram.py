"""Inner products of a run's seed models: read once from the models, kept in the run directory."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.engine.seed_models import SeedModels
from evomerge.experiment.load import Experiment
from evomerge.files import atomic_write_bytes
from evomerge.search.base import Problem
from evomerge.search.seed_gram import CellGram
from evomerge.spaces.lineage_space import LineageSpace
from evomerge.store.run_dir import SEED_GRAM, RunDir
from evomerge.terms import Array

_VERSION = 1
_NOTE_EVERY = 10.0  # seconds


def with_seeds(problem: Problem, loaded: Experiment, folder: RunDir, note: Callable[[str], None]) -> Problem:
    """The problem with the seeds' inner products and chromosomes, where the search merges seeds.

    Args:
        problem: of the run.
        loaded: the experiment.
        folder: keeps the inner products, so that a resumed run reads no model for them and has the same bits.
        note: takes a line of progress.

    Raises:
        UserError: a seed holds NaN or infinite values.
    """
    space = loaded.space
    if not isinstance(space, LineageSpace):
        return problem
    reference = loaded.base or loaded.experts[0][1]
    seeds = SeedModels(reference, loaded.models, space.seeds)
    assert seeds.layout.id == space.layout.id
    path = folder.path / SEED_GRAM
    about = {"v": _VERSION, "layout": seeds.layout.id, "seeds": [str(source) for _, source in space.seeds]}
    cells = _load(path, about, len(seeds.edges) - 1)
    if cells is None:
        cells = seeds.cells(_told(note))
        _save(path, about, cells)
    gram = CellGram(seeds.read, seeds.edges, cells, seeds.products)
    return replace(problem, seeds=gram, chromosomes=space.chromosomes)


def _told(note: Callable[[str], None]) -> Callable[[int, int], None]:
    last = time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _NOTE_EVERY:
            last = time.monotonic()
            note(f"inner products of the seed models: {done / total:.0%} of {total:,} parameters read")

    return told


def _save(path: Path, about: dict[str, Any], cells: Array) -> None:
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    np.savez(buffer, allow_pickle=False, about=text, cells=cells)
    atomic_write_bytes(path, buffer.getvalue())


def _load(path: Path, about: dict[str, Any], num_cells: int) -> Array | None:
    """What an earlier session saved; None where there is nothing, or nothing that fits."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = json.loads(arrays["about"].tobytes())
            cells: Array = arrays["cells"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    count = len(about["seeds"])
    return cells if found == about and cells.shape == (num_cells, count, count) else None
