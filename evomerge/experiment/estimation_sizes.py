"""How many documents an estimating run scores, from what the experiment says."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.evaluation.documents import DocumentPlan
from evomerge.evaluation.estimated_fitness import EstimationLayout, lay_out
from evomerge.evaluation.fitness_yaml import FitnessConfig, objective_names
from evomerge.experiment.config import EstimationConfig
from evomerge.terms import Objective


def start_count(config: EstimationConfig, layout: EstimationLayout) -> int:
    """Documents that candidates are scored on first, before they are shared out among tasks."""
    asked, total = config.documents, layout.num_documents
    return min(total, asked if isinstance(asked, int) else round(asked * total))


def layout_of(fitness: Sequence[FitnessConfig], plan: DocumentPlan) -> EstimationLayout:
    """What is estimated of some fitnesses, whose objectives are not built yet."""
    objectives = [
        Objective(name, plan.of(item.name).higher_is_better) for item in fitness for name in objective_names(item)
    ]
    return lay_out(fitness, plan, objectives)
