"""Whether estimates of a run still agree with the full scores of the candidates that were completed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.evaluation.estimate_drift import find_drift
from evomerge.evaluation.score_estimates import Estimates
from evomerge.experiment.config import DriftConfig
from evomerge.store.estimation_events import ObjectiveDrift
from evomerge.terms import Array, Estimate

MIN_RANKED = 6  # candidates whose order says anything


@dataclass(frozen=True)
class Compared:
    """A candidate with an estimate and a full score.

    Attributes:
        estimate: what it was told.
        fitness: ``(M,)`` on all documents.
        is_sampled: whether it was chosen without looking at its estimate.
    """

    estimate: Estimate
    fitness: tuple[float, ...]
    is_sampled: bool


def objective_drift(name: str, objective: int, compared: Sequence[Compared], config: DriftConfig) -> ObjectiveDrift:
    """Compare one objective.

    The best by estimate are too high on average whatever the estimator, so only sampled candidates tell whether
    estimates are off. Leaders help to see whether ranks agree.

    Args:
        name: of the objective.
        objective: its place.
        compared: estimated on the documents in force.
        config: what counts as drift.
    """
    estimates, full = _arrays(objective, [one for one in compared if one.is_sampled])
    drift = find_drift(estimates, full, config.tolerance, config.level)
    everyone = find_drift(*_arrays(objective, compared), config.tolerance, config.level)
    kendall = None if math.isnan(everyone.kendall) else everyone.kendall
    is_disordered = kendall is not None and len(compared) >= MIN_RANKED and kendall < config.min_rank
    return ObjectiveDrift(
        name, drift.num_candidates, drift.bias, drift.error, len(compared), kendall, drift.is_biased,
        drift.is_overconfident, is_disordered,
    )  # fmt: skip


def _arrays(objective: int, compared: Sequence[Compared]) -> tuple[Estimates, Array]:
    values = np.array([one.estimate.fitness[objective] for one in compared], dtype=np.float64)
    errors = np.array([one.estimate.standard_errors[objective] for one in compared], dtype=np.float64)
    return Estimates(values, errors), np.array([one.fitness[objective] for one in compared], dtype=np.float64)
