"""Landscapes: what a search over merges would see, without models, from recorded outcomes of single documents.

python scripts/landscapes.py NAME... [--fit] [--against RUN]

Prints how well each landscape predicts recorded candidates that were kept from it, and the time of one evaluation.
``--fit`` chooses the kernels anew (a minute or two) and writes them beside the recording; needed once after recording.
``--against`` compares with the candidates of a run that was not recorded, such as a real search of the same space.

Names: a file of scripts/recordings (``zoo3``, ``micro9``), ``smm:NAME`` for the smooth surrogate with noise fitted to
it, ``smm`` for that of micro9.
Shapes: N points, G genes, D documents, M tasks, C recorded candidates.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from landscape_kernels import Kernel, Regressions, fit_kernel, matern
from landscape_recording import Recording, load_recording, recording_path
from scipy.optimize import differential_evolution

from evomerge.errors import UserError
from evomerge.files import atomic_write_json
from evomerge.search.expert_genes import expert_genes
from evomerge.terms import Array, derive_seed

Indices = npt.NDArray[np.int64]

NUM_FOLDS = 5
SMM = "smm"
SMM_RECORDING = "micro9"


class Landscape(ABC):
    """A deterministic function from genotypes to scores of documents.

    Attributes:
        name: of the landscape.
        genes: G real genes.
        tasks: names of the M objectives.
        num_documents: of each task.
    """

    def __init__(self, name: str, recording: Recording) -> None:
        self.name = name
        self.genes = recording.genes
        self.tasks = tuple(task.name for task in recording.tasks)
        self.num_documents = tuple(len(task.document_ids) for task in recording.tasks)
        self._low = np.array([gene.low for gene in self.genes])
        self._width = np.array([gene.width for gene in self.genes])
        self._signs = np.array([1.0 if task.higher_is_better else -1.0 for task in recording.tasks])

    @abstractmethod
    def scores(self, genotype: Array, task: int | str, documents: Indices | None = None) -> Array:
        """Scores ``(D,)`` of a genotype ``(G,)`` on documents of a task (indices, None = all), natural direction."""

    @abstractmethod
    def truths(self, genotypes: Array) -> Array:
        """Fitness ``(N, M)`` of genotypes ``(N, G)``, maximised, without the noise of few documents."""

    def truth(self, genotype: Array) -> tuple[float, ...]:
        """Fitness ``(M,)`` of a genotype ``(G,)``, without the noise of few documents."""
        return tuple(self.truths(np.asarray(genotype, dtype=np.float64)[None])[0].tolist())

    def fitness(self, genotype: Array, documents: Sequence[Indices] | None = None) -> tuple[float, ...]:
        """Fitness ``(M,)`` of a genotype, maximised, on some documents of each task or on all."""
        return tuple(
            float(
                self._signs[task] * self.scores(genotype, task, None if documents is None else documents[task]).mean()
            )
            for task in range(len(self.tasks))
        )

    def subset(self, task: int | str, count: int, seed: int = 0) -> Indices:
        """Some documents of a task: the first ``count`` in an order that depends on the seed only."""
        index = self.task_index(task)
        if not 1 <= count <= self.num_documents[index]:
            raise ValueError(f"{self.tasks[index]} has {self.num_documents[index]} documents, asked for {count}")
        rng = np.random.default_rng(derive_seed("landscape documents", self.tasks[index], seed))
        return rng.permutation(self.num_documents[index])[:count].astype(np.int64)

    def task_index(self, task: int | str) -> int:
        """Number of a task."""
        return self.tasks.index(task) if isinstance(task, str) else task

    @property
    def expert_genotypes(self) -> Array:
        """Each expert alone, with coefficient 1 or what comes nearest within the genes' bounds: ``(E, G)``."""
        rows = np.zeros((len(expert_genes(self.genes)), len(self.genes)))
        for row, members in zip(rows, expert_genes(self.genes).values()):
            row[list(members)] = 1.0
        found: Array = np.clip(rows, self._low, self._low + self._width)
        return found

    @property
    def initial(self) -> Array:
        """Where searches begin, ``(G,)``."""
        return np.array([gene.initial for gene in self.genes])

    def _unit(self, genotypes: Array) -> Array:
        return (np.asarray(genotypes, dtype=np.float64) - self._low) / self._width


class _Fast:
    """Predictions of regressions with one kernel: all that does not depend on the point is computed before."""

    def __init__(self, kernel: Kernel, points: Array, weights: Array, means: Array) -> None:
        self._lengths = np.array(kernel.lengths)
        self._points = points / self._lengths
        self._norms = np.einsum("ng,ng->n", self._points, self._points)
        self._weights = np.ascontiguousarray(weights, dtype=np.float32)
        self._means = means.astype(np.float32)

    def __call__(self, points: Array) -> npt.NDArray[np.float32]:
        """Means ``(N, D)`` at points ``(N, G)`` of the unit cube."""
        scaled = points / self._lengths
        norms = np.einsum("ng,ng->n", scaled, scaled)
        squared = norms[:, None] + self._norms - 2.0 * (scaled @ self._points.T)
        covariances = matern(np.maximum(squared, 0.0)).astype(np.float32)
        found: npt.NDArray[np.float32] = self._means + covariances @ self._weights
        return found


class RecordedLandscape(Landscape):
    """Each document has a latent smooth function of the genes, and is right where it exceeds the document's threshold.

    The latent function is a Gaussian process fitted to the recorded outcomes (-1, 1); documents of a task share its
    kernel. Outcomes are correlated between documents and along the genes as they were recorded, and a genotype has one
    outcome, as a real model has. The threshold makes a document right as often as it was, by what each recorded point
    is predicted without itself; at zero tasks that are mostly right would come out too well. Scores other than 0 and 1
    are the process itself, within what was recorded.
    """

    def __init__(self, name: str, recording: Recording, kernels: Sequence[Kernel]) -> None:
        super().__init__(name, recording)
        self._parts = []
        points = self._unit(recording.genotypes)
        for task, values, kernel in zip(recording.tasks, recording.scores, kernels):
            found = Regressions(kernel, points, 2.0 * values - 1.0 if task.binary else values)
            offset = thresholds(found.left_out(), values) if task.binary else np.zeros(values.shape[1])
            fast = _Fast(kernel, points, found.weights, found.means - offset)
            box = None if task.binary else (values.min(axis=0), values.max(axis=0))
            self._parts.append((fast, box))

    def scores(self, genotype: Array, task: int | str, documents: Indices | None = None) -> Array:
        """See the base class."""
        row = self._scores(self.task_index(task), self._unit(genotype)[None])[0]
        return row if documents is None else row[documents]

    def truths(self, genotypes: Array) -> Array:
        """Means over all documents."""
        points = self._unit(genotypes)
        means = [self._scores(task, points).mean(axis=1) for task in range(len(self.tasks))]
        found: Array = np.column_stack(means) * self._signs
        return found

    def _scores(self, task: int, points: Array) -> Array:
        fast, box = self._parts[task]
        latent = fast(points)
        return (latent > 0.0).astype(np.float64) if box is None else np.clip(latent.astype(np.float64), *box)


class SurrogateLandscape(Landscape):
    """A smooth surrogate of each task's mean score, in the shape of SMM-Bench, with binomial noise.

    As there: the mean of the models of a cross-validation, clipped to [0, 1], maximised. There the models are boosted
    trees; here they are Gaussian processes, which predict these recordings better (docs/benchmarks.md). The scores of a
    genotype's documents are drawn once and for all with the predicted probability, so a search on D documents sees the
    noise that D independent documents have.

    Reference: SMM-Bench, https://arxiv.org/abs/2509.02555.
    """

    def __init__(self, name: str, recording: Recording, kernels: Sequence[Kernel]) -> None:
        super().__init__(name, recording)
        if others := [task.name for task in recording.tasks if not task.binary]:
            raise UserError(f"{name}: the surrogate needs scores of 0 and 1, but {', '.join(others)} has others.")
        points = self._unit(recording.genotypes)
        self._models = [
            _cross_validated(kernel, points, values.mean(axis=1)) for kernel, values in zip(kernels, recording.scores)
        ]

    def scores(self, genotype: Array, task: int | str, documents: Indices | None = None) -> Array:
        """Draws with the surrogate's probability, always the same for a genotype."""
        index = self.task_index(task)
        probability = float(self._mean(index, self._unit(genotype)[None])[0])
        text = hashlib.sha256(np.asarray(genotype, dtype=np.float64).tobytes() + self.tasks[index].encode()).digest()
        rng = np.random.default_rng(int.from_bytes(text[:8], "big"))
        row = (rng.random(self.num_documents[index]) < probability).astype(np.float64)
        return row if documents is None else row[documents]

    def truths(self, genotypes: Array) -> Array:
        """The surrogate itself."""
        points = self._unit(genotypes)
        found: Array = np.column_stack([self._mean(task, points) for task in range(len(self.tasks))]) * self._signs
        return found

    def _mean(self, task: int, points: Array) -> Array:
        found: Array = np.clip(self._models[task](points)[:, 0].astype(np.float64), 0.0, 1.0)
        return found


def thresholds(predicted: Array, values: Array) -> Array:
    """Where to cut each document's predictions ``(C, D)`` so that it is right as often as recorded, ``(D,)``.

    Between the two predictions that the cut divides; documents that are always right or always wrong are cut beyond
    their predictions, so that they stay so among them.
    """
    order = np.sort(predicted, axis=0)
    num_wrong = (values == 0.0).sum(axis=0)
    columns = np.arange(values.shape[1])
    below = order[np.maximum(num_wrong - 1, 0), columns]
    above = order[np.minimum(num_wrong, len(order) - 1), columns]
    found: Array = np.where(num_wrong == 0, np.minimum(0.0, above - 1e-6), 0.5 * (below + above))
    return np.where(num_wrong == len(order), np.maximum(0.0, below + 1e-6), found)


def folds_of(count: int) -> Indices:
    """Fold 0 to 4 of each recorded candidate, at random but always the same."""
    rng = np.random.default_rng(derive_seed("landscape folds", count))
    return (rng.permutation(count) % NUM_FOLDS).astype(np.int64)


def _cross_validated(kernel: Kernel, points: Array, values: Array) -> _Fast:
    """The mean of the models that each leave one fold out; linear in the covariances, so it is one model itself."""
    folds = folds_of(len(points))
    weights, mean = np.zeros((len(points), 1)), np.zeros(1)
    for fold in range(NUM_FOLDS):
        kept = folds != fold
        found = Regressions(kernel, points[kept], values[kept, None])
        weights[kept] += found.weights / NUM_FOLDS
        mean += found.means / NUM_FOLDS
    return _Fast(kernel, points, weights, mean)


@dataclass(frozen=True)
class SearchView:
    """What a search is scored on: some documents of each task.

    Attributes:
        landscape: the whole.
        documents: of each task.
    """

    landscape: Landscape
    documents: tuple[Indices, ...]

    @classmethod
    def of(cls, landscape: Landscape, count: int | None = None, seed: int = 0) -> SearchView:
        """``count`` documents of each task that depend on the seed only; None or too many = all."""
        documents = [
            landscape.subset(task, available if count is None else min(count, available), seed)
            for task, available in enumerate(landscape.num_documents)
        ]
        return cls(landscape, tuple(documents))

    @property
    def is_sample(self) -> bool:
        """Whether some documents are left out, so that scores are estimates."""
        return self.num_documents != self.landscape.num_documents

    @property
    def num_documents(self) -> tuple[int, ...]:
        """Of each task."""
        return tuple(len(some) for some in self.documents)

    def fitness(self, genotype: Array) -> tuple[float, ...]:
        """``(M,)``, maximised, on the view's documents."""
        return self.landscape.fitness(genotype, self.documents)


@lru_cache(maxsize=8)
def load_landscape(name: str) -> Landscape:
    """The landscape of that name, from its recording and the kernels beside it.

    Raises:
        UserError: there is no such recording, it is damaged, or its kernels are missing or were fitted to another one.
    """
    base, is_surrogate = recorded_name(name)
    path = recording_path(base)
    recording = load_recording(path)
    documents, means = load_kernels(path, recording)
    return SurrogateLandscape(name, recording, means) if is_surrogate else RecordedLandscape(name, recording, documents)


def recorded_name(name: str) -> tuple[str, bool]:
    """The recording behind a landscape, and whether the landscape is its smooth surrogate."""
    if name == SMM:
        return SMM_RECORDING, True
    return name.removeprefix(f"{SMM}:"), name.startswith(f"{SMM}:")


def best_known(landscape: Landscape, seed: int = 0) -> tuple[float, Array]:
    """Largest mean of the tasks that differential evolution finds with all documents, and its genotype.

    Tens of thousands of evaluations, far more than any search that is compared with it.
    """
    bounds = [(gene.low, gene.high) for gene in landscape.genes]
    found = differential_evolution(
        lambda columns: -landscape.truths(columns.T).mean(axis=1), bounds, popsize=20, maxiter=150, tol=0.0, atol=0.0,
        rng=np.random.default_rng(seed), init="sobol", polish=False, vectorized=True, updating="deferred",
    )  # fmt: skip
    return -float(found.fun), np.asarray(found.x, dtype=np.float64)


def fit_kernels(recording: Recording) -> tuple[list[Kernel], list[Kernel]]:
    """Kernels of the tasks' documents and of the tasks' means."""
    points = unit_points(recording)
    scores, means = [], []
    for task, values in zip(recording.tasks, recording.scores):
        targets = 2.0 * values - 1.0 if task.binary else values
        scores.append(fit_kernel(points, targets, binary=task.binary))
        means.append(fit_kernel(points, values.mean(axis=1)[:, None], binary=False))
    return scores, means


def unit_points(recording: Recording) -> Array:
    """Recorded genotypes ``(C, G)`` in the unit cube."""
    low = np.array([gene.low for gene in recording.genes])
    found: Array = (recording.genotypes - low) / np.array([gene.width for gene in recording.genes])
    return found


def kernels_path(path: Path) -> Path:
    """File of the kernels of a recording."""
    return path.with_suffix(".kernels.json")


def save_kernels(path: Path, recording: Recording, scores: Sequence[Kernel], means: Sequence[Kernel]) -> None:
    """Write the kernels beside the recording."""
    entries = {
        task.name: {
            kind: {"lengths": list(kernel.lengths), "noise": kernel.noise}
            for kind, kernel in (("documents", document), ("mean", mean))
        }
        for task, document, mean in zip(recording.tasks, scores, means)
    }
    atomic_write_json(kernels_path(path), {"recording": recording.fingerprint, "tasks": entries})


def load_kernels(path: Path, recording: Recording) -> tuple[list[Kernel], list[Kernel]]:
    """Kernels of the tasks' documents and of the tasks' means.

    Raises:
        UserError: the file is missing, damaged, or belongs to another recording.
    """
    file = kernels_path(path)
    hint = f"Fit them: python scripts/landscapes.py {path.stem} --fit"
    try:
        entries: Mapping[str, Any] = json.loads(file.read_text())
        fitted = entries["recording"]
        found = [
            [Kernel(tuple(float(v) for v in one["lengths"]), float(one["noise"])) for one in (task[kind] for task in
             (entries["tasks"][task.name] for task in recording.tasks))]
            for kind in ("documents", "mean")
        ]  # fmt: skip
    except FileNotFoundError:
        raise UserError(f"{file}: the kernels of this recording are missing. {hint}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: the kernels are damaged ({error!r}). {hint}") from error
    if fitted != recording.fingerprint:
        raise UserError(f"{file}: the kernels were fitted to another recording than {path.name}. {hint}")
    if any(
        len(kernel.lengths) != len(recording.genes) or not all(math.isfinite(v) and v > 0 for v in kernel.lengths)
        for kernel in (*found[0], *found[1])
    ):
        raise UserError(f"{file}: the kernels do not fit {len(recording.genes)} genes. {hint}")
    return found[0], found[1]


def main() -> None:
    from landscape_report import report, report_against

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--against", type=Path, metavar="RUN")
    options = parser.parse_args()
    for name in options.names:
        try:
            path = recording_path(recorded_name(name)[0])
            recording = load_recording(path)
            if options.fit:
                began = time.perf_counter()
                save_kernels(path, recording, *fit_kernels(recording))
                print(f"{kernels_path(path).name}: fitted in {time.perf_counter() - began:.0f} s")
            if options.against is not None:
                report_against(name, options.against)
            else:
                report(name)
        except UserError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
