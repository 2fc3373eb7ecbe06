"""Recorded landscapes: which documents each of many candidates got right, in one small file without pickle.

A file is an npz of ``about`` (JSON as bytes: genes, tasks, document ids, where it comes from), ``genotypes`` ``(C, G)``
and for each task ``scores_<number>``: bits where all scores are 0 or 1, else float64 ``(C, D)``.
Shapes: C candidates, G genes, D documents of a task.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import InvalidInput, Problem, UserError, did_you_mean
from evomerge.files import atomic_write_bytes
from evomerge.terms import Array, Gene, GeneKind

FOLDER = Path(__file__).resolve().parent / "recordings"
FORMAT = "evomerge landscape recording"
VERSION = 1


@dataclass(frozen=True)
class RecordedTask:
    """One objective of the recorded runs.

    Attributes:
        name: of the objective.
        document_ids: ``(D,)``.
        higher_is_better: natural direction of the scores.
        binary: whether every recorded score is 0 or 1.
    """

    name: str
    document_ids: tuple[str, ...]
    higher_is_better: bool
    binary: bool


@dataclass(frozen=True)
class Recording:
    """What was recorded.

    Attributes:
        genes: G real genes with their bounds.
        tasks: the objectives, in the order of the runs.
        genotypes: ``(C, G)``, no two alike.
        scores: for each task ``(C, D)``, in its natural direction.
        provenance: ``runs`` (name, fingerprint of the experiment, seed, optimizer, counts) and ``models`` (name ->
            fingerprint of the weights).
    """

    genes: tuple[Gene, ...]
    tasks: tuple[RecordedTask, ...]
    genotypes: Array
    scores: tuple[Array, ...]
    provenance: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that is recorded: what was fitted to other numbers does not belong to it."""
        digest = hashlib.sha256(_about(self).encode())
        for array in (self.genotypes, *self.scores):
            digest.update(np.ascontiguousarray(array, dtype=np.float64).tobytes())
        return digest.hexdigest()[:16]


def recording_path(name: str) -> Path:
    """File of a recording that ships with the repository, or of any other that is named by its path.

    Raises:
        UserError: there is none.
    """
    path = Path(name) if name.endswith(".npz") else FOLDER / f"{name}.npz"
    if not path.is_file():
        known = [entry.stem for entry in FOLDER.glob("*.npz")]
        raise UserError(f"there is no recorded landscape {name!r}. {did_you_mean(name, known)}")
    return path


def save_recording(path: Path, recording: Recording) -> None:
    """Write the file whole or not at all; equal recordings give equal bytes.

    Raises:
        UserError: it cannot be written.
    """
    arrays: dict[str, Any] = {
        "about": np.frombuffer(_about(recording).encode(), dtype=np.uint8),
        "genotypes": np.asarray(recording.genotypes, dtype=np.float64),
    }
    for index, (task, values) in enumerate(zip(recording.tasks, recording.scores)):
        arrays[f"scores_{index}"] = np.packbits(values.astype(bool), axis=1) if task.binary else values
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    try:
        atomic_write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot write the recording: {error.strerror or error}.") from error


def load_recording(path: Path) -> Recording:
    """Read a recording and check that its parts fit together.

    Raises:
        UserError: the file is missing, damaged, or something else.
        InvalidInput: its parts contradict each other; all problems at once.
    """
    try:
        with np.load(path, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
        about = json.loads(arrays["about"].tobytes())
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise KeyError("about")
    except FileNotFoundError:
        raise UserError(f"{path}: the recording is missing.") from None
    except KeyError:
        raise UserError(f"{path}: no recorded landscape; expected what scripts/record_landscape.py writes.") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path}: the recording is damaged or is another kind of file ({error}). Record it anew with "
            "scripts/record_landscape.py, or restore it from a copy."
        ) from error
    if about.get("version") != VERSION:
        raise UserError(f"{path}: recording version {about.get('version')!r}, expected {VERSION}. Record it anew.")
    try:
        recording = _unpack(about, arrays)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: the recording is incomplete or damaged ({error!r}). Record it anew.") from error
    if problems := [Problem(str(path), message) for message in problems_of(recording)]:
        raise InvalidInput(problems)
    return recording


def problems_of(recording: Recording) -> list[str]:
    """Everything that makes a recording no landscape."""
    found = []
    genotypes, genes = recording.genotypes, recording.genes
    names = [gene.name for gene in genes]
    if not genes or len(set(names)) < len(names):
        found.append(f"expected genes of different names, got {names}")
    if others := [gene.name for gene in genes if gene.kind is not GeneKind.REAL]:
        found.append(f"expected real genes only, but {', '.join(others)} are not; record a space of coefficients")
    if genotypes.ndim != 2 or genotypes.shape[1:] != (len(genes),) or len(genotypes) < 2:
        return [*found, f"expected genotypes of {len(genes)} genes, 2 or more, got shape {genotypes.shape}"]
    low, high = (np.array([getattr(gene, end) for gene in genes]) for end in ("low", "high"))
    if not np.all(np.isfinite(genotypes)) or np.any(genotypes < low) or np.any(genotypes > high):
        found.append("some genotypes are outside the genes' bounds")
    if len(np.unique(genotypes, axis=0)) < len(genotypes):
        found.append("some genotypes are recorded twice")
    if not recording.tasks or len({task.name for task in recording.tasks}) < len(recording.tasks):
        found.append(f"expected tasks of different names, got {[task.name for task in recording.tasks]}")
    for task, values in zip(recording.tasks, recording.scores):
        shape = (len(genotypes), len(task.document_ids))
        if values.shape != shape or shape[1] == 0:
            found.append(f"task {task.name!r}: expected scores of shape {shape}, got {values.shape}")
        elif not np.all(np.isfinite(values)):
            found.append(f"task {task.name!r}: some scores are not finite")
        if len(set(task.document_ids)) < len(task.document_ids):
            found.append(f"task {task.name!r}: a document is listed twice")
    return found


def is_binary(values: Array) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(np.all((values == 0.0) | (values == 1.0)))


def _about(recording: Recording) -> str:
    entries = {
        "format": FORMAT,
        "version": VERSION,
        "genes": [[gene.name, gene.kind.value, gene.low, gene.high, gene.initial] for gene in recording.genes],
        "tasks": [asdict(task) for task in recording.tasks],
        "provenance": dict(recording.provenance),
    }
    return json.dumps(entries, ensure_ascii=False, sort_keys=True, allow_nan=False)


def _unpack(about: Mapping[str, Any], arrays: Mapping[str, Any]) -> Recording:
    genes = tuple(
        Gene(str(name), GeneKind(kind), float(low), float(high), float(initial))
        for name, kind, low, high, initial in about["genes"]
    )
    tasks = tuple(RecordedTask(**{**task, "document_ids": tuple(task["document_ids"])}) for task in about["tasks"])
    genotypes = np.asarray(arrays["genotypes"], dtype=np.float64)
    scores = [_unpack_scores(task, arrays[f"scores_{index}"], len(genotypes)) for index, task in enumerate(tasks)]
    return Recording(genes, tasks, genotypes, tuple(scores), dict(about["provenance"]))


def _unpack_scores(task: RecordedTask, stored: Any, num_candidates: int) -> Array:
    if not task.binary:
        return np.asarray(stored, dtype=np.float64)
    num_documents = len(task.document_ids)
    if stored.dtype != np.uint8 or stored.shape != (num_candidates, (num_documents + 7) // 8):
        raise ValueError(f"task {task.name!r}: {stored.dtype} {stored.shape} for {num_documents} documents")
    return np.unpackbits(stored, axis=1, count=num_documents).astype(np.float64)


def joined(recordings: Sequence[Recording]) -> Recording:
    """Recordings of the same models, genes and documents as one; of a genotype that occurs twice the first.

    Raises:
        InvalidInput: they differ in any of these.
    """
    first = recordings[0]
    problems = []
    for other in recordings[1:]:
        run = other.provenance["runs"][0]["name"]
        if other.genes != first.genes:
            problems.append(Problem(f"run {run}", "searches other genes than the first run. Record it by itself."))
        if [(t.name, t.document_ids, t.higher_is_better) for t in other.tasks] != [
            (t.name, t.document_ids, t.higher_is_better) for t in first.tasks
        ]:
            problems.append(Problem(f"run {run}", "scores other tasks or documents than the first run."))
        if other.provenance["models"] != first.provenance["models"]:
            problems.append(Problem(f"run {run}", "merges other models than the first run."))
    if problems:
        raise InvalidInput(problems)
    genotypes = np.vstack([one.genotypes for one in recordings])
    kept = np.sort(np.unique(genotypes, axis=0, return_index=True)[1])
    scores = [np.vstack([one.scores[index] for one in recordings])[kept] for index in range(len(first.tasks))]
    tasks = tuple(
        RecordedTask(task.name, task.document_ids, task.higher_is_better, is_binary(values))
        for task, values in zip(first.tasks, scores)
    )
    runs = [run for one in recordings for run in one.provenance["runs"]]
    provenance = {"runs": runs, "models": first.provenance["models"]}
    return Recording(first.genes, tasks, genotypes[kept], tuple(scores), provenance)
