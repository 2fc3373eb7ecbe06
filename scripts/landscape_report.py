"""How well landscapes predict what was kept from them; see ``scripts/landscapes.py``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from landscape_kernels import Kernel, Regressions
from landscape_recording import Recording, load_recording, recording_path
from landscapes import (
    NUM_FOLDS,
    RecordedLandscape,
    best_known,
    folds_of,
    load_kernels,
    load_landscape,
    recorded_name,
    thresholds,
    unit_points,
)
from record_landscape import read_run
from rich.console import Console
from rich.table import Table
from scipy.special import expit, logit

from evomerge.errors import UserError
from evomerge.terms import Array

Predict = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Quality:
    """How far predictions of candidates are from what was recorded.

    Attributes:
        accuracy: share of (candidate, document) pairs that are right; NaN where documents are not predicted.
        error: root mean square of the task mean's error.
        bias: mean of it.
    """

    accuracy: float
    error: float
    bias: float

    def cells(self) -> tuple[str, str, str]:
        """As text."""
        return f"{self.accuracy:.3f}" if np.isfinite(self.accuracy) else "", f"{self.error:.3f}", f"{self.bias:+.3f}"


def held_out(recording: Recording, index: int, predict: Predict) -> Quality:
    """Five-fold cross-validation of one task.

    Args:
        recording: all candidates.
        index: of the task.
        predict: points, values ``(C, D)`` and other points to predicted values ``(N, D)``, or ``(N, 1)`` task means.
    """
    points, values = unit_points(recording), recording.scores[index]
    folds = folds_of(len(points))
    rows = [predict(points[folds != fold], values[folds != fold], points[folds == fold]) for fold in range(NUM_FOLDS)]
    found = np.empty((len(points), rows[0].shape[1]))
    for fold, row in enumerate(rows):
        found[folds == fold] = row
    return quality(found, values)


def quality(found: Array, values: Array) -> Quality:
    """Of predictions ``(C, D)`` or, of means only, ``(C, 1)``."""
    missed = found.mean(axis=1) - values.mean(axis=1)
    accuracy = float((found == values).mean()) if found.shape == values.shape else float("nan")
    return Quality(accuracy, float(np.sqrt(np.mean(missed**2))), float(missed.mean()))


def majority(points: Array, values: Array, others: Array) -> Array:
    """What most candidates made of each document."""
    return np.tile((values.mean(axis=0) > 0.5).astype(np.float64), (len(others), 1))


def nearest(points: Array, values: Array, others: Array) -> Array:
    """What the nearest recorded candidate made of it."""
    return values[((others[:, None] - points) ** 2).sum(axis=2).argmin(axis=1)]


def latent(kernel: Kernel, calibrated: bool) -> Predict:
    """The recorded landscape's model, cut where documents are right as often as recorded, or at zero."""

    def predict(points: Array, values: Array, others: Array) -> Array:
        found = Regressions(kernel, points, 2.0 * values - 1.0)
        cuts = thresholds(found.left_out(), values) if calibrated else 0.0
        return (found.predict(others) > cuts).astype(np.float64)

    return predict


def values_themselves(kernel: Kernel) -> Predict:
    """The recorded landscape's model of scores that are not 0 and 1."""

    def predict(points: Array, values: Array, others: Array) -> Array:
        found = Regressions(kernel, points, values).predict(others)
        return np.clip(found, values.min(axis=0), values.max(axis=0))

    return predict


def smooth(kernel: Kernel) -> Predict:
    """The surrogate's model: a Gaussian process of the task's mean."""

    def predict(points: Array, values: Array, others: Array) -> Array:
        return np.clip(Regressions(kernel, points, values.mean(axis=1)[:, None]).predict(others), 0.0, 1.0)

    return predict


def boosted(points: Array, values: Array, others: Array) -> Array:
    """Boosted trees of the task's mean, as SMM-Bench has them."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(min_samples_leaf=5, random_state=0)
    return np.asarray(model.fit(points, values.mean(axis=1)).predict(others))[:, None]


def quadratic(points: Array, values: Array, others: Array) -> Array:
    """The sigmoid of a quadratic of the task's mean, which MAP assumes, fitted by least squares of the log odds."""
    means, ends = values.mean(axis=1), 0.5 / values.shape[1]
    odds = logit(np.clip(means, ends, 1.0 - ends))
    spread = np.clip(means * (1.0 - means), ends, None) ** 0.5
    found = np.linalg.lstsq(_monomials(points) * spread[:, None], odds * spread, rcond=None)[0]
    return np.asarray(expit(_monomials(others) @ found))[:, None]


def _monomials(points: Array) -> Array:
    pairs = np.triu_indices(points.shape[1])
    return np.column_stack([np.ones(len(points)), points, points[:, pairs[0]] * points[:, pairs[1]]])


def report_against(name: str, run: Path) -> None:
    """How well a landscape predicts candidates of a run that it was not recorded from, for example of a real search."""
    landscape, others = load_landscape(name), read_run(run)
    if [task.name for task in others.tasks] != list(landscape.tasks) or others.genes != landscape.genes:
        raise UserError(f"{run}: searches other genes or tasks than {name} was recorded from.")
    table = Table("task", "documents", "error of the mean", "bias", title=f"{name}, candidates of {run.name}")
    for index, task in enumerate(landscape.tasks):
        found = np.array([landscape.scores(row, index) for row in others.genotypes])
        table.add_row(task, *quality(found, others.scores[index]).cells())
    predicted = landscape.truths(others.genotypes).mean(axis=1)
    real = np.mean([values.mean(axis=1) for values in others.scores], axis=0)
    Console(width=120).print(
        table,
        f"mean of tasks, {len(real)} candidates: error {np.sqrt(np.mean((predicted - real) ** 2)):.4f}, correlation "
        f"{np.corrcoef(predicted, real)[0, 1]:.3f}, best {real.max():.4f}, predicted {predicted[real.argmax()]:.4f}\n",
    )


def report(name: str) -> None:
    """Print the tables of one landscape."""
    base, is_smm = recorded_name(name)
    path = recording_path(base)
    recording = load_recording(path)
    documents, means = load_kernels(path, recording)
    table = Table(
        "task", "predicted by", "documents", "error of the mean", "bias", title=f"{name}: candidates left out"
    )
    for index, task in enumerate(recording.tasks):
        models: dict[str, Predict] = {"most candidates": majority, "nearest candidate": nearest}
        if is_smm:
            models |= {
                "sigmoid of a quadratic, mean": quadratic,
                "boosted trees, mean": boosted,
                "process, mean": smooth(means[index]),
            }
        elif task.binary:
            models |= {"process, cut at 0": latent(documents[index], False)}
            models |= {"process, cut as often": latent(documents[index], True)}
        else:
            models = {"nearest candidate": nearest, "process": values_themselves(documents[index])}
        for label, model in models.items():
            table.add_row(task.name, label, *held_out(recording, index, model).cells())
        spread = float(recording.scores[index].mean(axis=1).std())
        table.add_row(task.name, "(standard deviation of the recorded means)", "", f"{spread:.3f}", "")
    console = Console(width=120)
    console.print(table)
    landscape = load_landscape(name)
    if isinstance(landscape, RecordedLandscape):
        shown = Table("task", "documents", "error of the mean", "bias", title=f"{name}: recorded candidates again")
        for index, task in enumerate(recording.tasks):
            again = np.array([landscape.scores(row, index) for row in recording.genotypes])
            shown.add_row(task.name, *quality(again, recording.scores[index]).cells())
        console.print(shown)
    times = []
    for row in recording.genotypes[:200]:
        began = time.process_time()
        landscape.fitness(row)
        times.append(time.process_time() - began)
    value, genotype = best_known(landscape)
    console.print(
        f"{len(recording.genotypes)} candidates, evaluation {1000 * float(np.median(times)):.2f} ms; mean of tasks "
        f"at the initial genes {np.mean(landscape.truth(landscape.initial)):.4f}, best known {value:.4f} at "
        f"{[round(float(gene), 3) for gene in genotype]}\n"
    )
