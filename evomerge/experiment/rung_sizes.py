"""How many documents the rungs of a racing run take, from what the experiment says."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.evaluation.documents import DocumentPlan
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.rungs import RungSettings
from evomerge.experiment.config import ExperimentConfig
from evomerge.terms import derive_seed

FIRST_SHARE = 0.1  # of the documents, in the first rung, where that is enough of them


def rung_settings(
    config: ExperimentConfig, fitness: Sequence[FitnessConfig], plan: DocumentPlan
) -> RungSettings | None:
    """How a run's search documents are cut; None where nothing is raced."""
    racing = config.racing
    if racing is None:
        return None
    total = sum(len(plan.of(item.name).document_ids("search")) for item in fitness)
    first = racing.first if racing.first != "auto" else max(racing.min_documents, round(FIRST_SHARE * total))
    return RungSettings(racing.rungs, int(first), racing.sizes, derive_seed(config.seed, "rungs"))
