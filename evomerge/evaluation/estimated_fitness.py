"""A candidate's fitness estimated from chosen search documents: which documents, and what they say of all.

Every lm-eval task of a fitness is estimated by itself, from complete scores of models of the same run; an objective is
the weighted mean of its tasks. Everything that is no mean over documents (costs, Python functions) is scored whole.

Shapes: T tasks, C models, D documents of a task, n chosen ones, M objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evomerge.evaluation.anchor_documents import DocumentSubset, anchor_documents, random_documents, score_features
from evomerge.evaluation.documents import DocumentPlan
from evomerge.evaluation.fitness_yaml import FitnessConfig, objective_names
from evomerge.evaluation.irt import ItemModel, fit_items
from evomerge.evaluation.rungs import can_be_raced
from evomerge.evaluation.score_estimates import Estimates, gp_irt, mean_estimates, mp_irt, p_irt
from evomerge.terms import Array, DocumentChoice, DocumentScores, Objective, derive_seed

Estimator = Literal["p_irt", "mp_irt", "gp_irt", "mean"]

MIN_MODELS = 4  # with fewer complete models a fit says nothing
MIN_TASK_DOCUMENTS = 2


class NotEstimable(ValueError):
    """Scores that no estimator takes; the message says which."""


@dataclass(frozen=True)
class EstimatedTask:
    """One lm-eval task.

    Attributes:
        name: of the task, after its fitness.
        objective: its place among the objectives.
        start: position of its first document among the objective's.
        size: D.
        share: of the objective.
        is_raised: whether larger scores are better.
        metric: key of its mean among the metrics of an evaluation.
    """

    name: str
    objective: int
    start: int
    size: int
    share: float
    is_raised: bool
    metric: str


@dataclass(frozen=True)
class EstimationLayout:
    """What is estimated of a run.

    Attributes:
        tasks: T.
        objectives: M.
        document_ids: of each estimated objective all its documents, in scoring order; None for one scored whole.
        whole_documents: documents that every candidate is scored on whatever is chosen.
    """

    tasks: tuple[EstimatedTask, ...]
    objectives: tuple[Objective, ...]
    document_ids: tuple[tuple[str, ...] | None, ...]
    whole_documents: int = 0

    @property
    def num_documents(self) -> int:
        """Documents to choose from."""
        return sum(task.size for task in self.tasks)

    def choice(self, subsets: Sequence[DocumentSubset]) -> DocumentChoice:
        """The documents ``(T subsets)`` as a job names them."""
        places: list[list[int] | None] = [None if ids is None else [] for ids in self.document_ids]
        for task, subset in zip(self.tasks, subsets, strict=True):
            chosen = places[task.objective]
            assert chosen is not None
            chosen += [task.start + int(index) for index in subset.indices]
        return tuple(None if chosen is None else tuple(sorted(chosen)) for chosen in places)

    def rest(self, choice: DocumentChoice) -> DocumentChoice:
        """What a candidate lacks that was scored on a choice; nothing of objectives that are scored whole."""
        return tuple(
            () if ids is None or places is None else tuple(sorted(set(range(len(ids))) - set(places)))
            for ids, places in zip(self.document_ids, choice, strict=True)
        )

    def columns(self, tables: Sequence[DocumentScores], choice: DocumentChoice | None = None) -> list[Array]:
        """Scores of one model by task, larger is better: ``(D,)`` each, or ``(n,)`` of chosen documents.

        Raises:
            NotEstimable: a document has no score, or one outside [0, 1].
        """
        found = {table.objective: dict(zip(table.document_ids, table.values.tolist())) for table in tables}
        columns = []
        for task in self.tasks:
            objective, ids = self.objectives[task.objective], self.document_ids[task.objective]
            assert ids is not None
            places = None if choice is None else choice[task.objective]
            own = range(task.start, task.start + task.size)
            scores = found.get(objective.name, {})
            kept = [ids[place] for place in (own if places is None else [p for p in places if p in own])]
            column = np.array([scores.get(key, np.nan) for key in kept], dtype=np.float64)
            if not ((column >= 0.0) & (column <= 1.0)).all():
                worst = next(key for key, value in zip(kept, column) if not 0.0 <= value <= 1.0)
                value = scores.get(worst)
                raise NotEstimable(
                    f"{task.name}, document {worst!r}: "
                    + ("no score" if value is None else f"score {value:g} is outside [0, 1]")
                )
            columns.append(column if task.is_raised else 1.0 - column)
        return columns

    def of_objectives(self, values: Array, errors: Array) -> tuple[list[float | None], list[float]]:
        """Fitness ``M`` (None = scored whole) and standard errors from estimates ``(T,)`` of the tasks."""
        fitness: list[float | None] = [None if ids is None else 0.0 for ids in self.document_ids]
        variances = [0.0] * len(self.objectives)
        for task, value, error in zip(self.tasks, values.tolist(), errors.tolist(), strict=True):
            fitness[task.objective] = (fitness[task.objective] or 0.0) + task.share * (
                value if task.is_raised else value - 1.0
            )
            variances[task.objective] += (task.share * error) ** 2
        return fitness, [variance**0.5 for variance in variances]

    def mean(self, objective: int, column: Sequence[float]) -> float:
        """An objective's fitness from the scores of all its documents; bit for bit what the evaluator computes."""
        tasks = [task for task in self.tasks if task.objective == objective]
        means = [sum(column[task.start : task.start + task.size]) / task.size for task in tasks]
        shares = np.array([task.share for task in tasks], dtype=np.float64)
        value = means[0] if len(means) == 1 else float(np.dot(shares, means))
        return self.objectives[objective].natural(value) + 0.0


def lay_out(configs: Sequence[FitnessConfig], plan: DocumentPlan, objectives: Sequence[Objective]) -> EstimationLayout:
    """What can be estimated of some fitnesses, and what is scored whole."""
    tasks: list[EstimatedTask] = []
    ids: list[tuple[str, ...] | None] = []
    whole = 0
    for config in configs:
        fitness = plan.of(config.name)
        if not can_be_raced(config, fitness):
            whole += len(fitness.document_ids("search"))
            ids += [None] * len(objective_names(config))
            continue
        sizes = [len(member.splits["search"].ids) for member in fitness.members]
        shares = np.array(sizes if fitness.weight_by_size else [1.0] * len(sizes), dtype=np.float64)
        shares /= shares.sum()
        start = 0
        for member, size, share in zip(fitness.members, sizes, shares.tolist(), strict=True):
            name = config.name if len(sizes) == 1 else f"{config.name}/{member.name}"
            metric = f"{member.name}/{fitness.metric},{fitness.filter}"
            tasks.append(EstimatedTask(name, len(ids), start, size, share, fitness.higher_is_better, metric))
            start += size
        ids.append(fitness.document_ids("search"))
    return EstimationLayout(tuple(tasks), tuple(objectives), tuple(ids), whole)


def split_count(layout: EstimationLayout, count: int) -> list[int]:
    """How many documents of each task, about ``count`` in all, in proportion to what each has."""
    total = layout.num_documents
    if count >= total:
        return [task.size for task in layout.tasks]
    return [min(task.size, max(MIN_TASK_DOCUMENTS, int(count * task.size / total + 0.5))) for task in layout.tasks]


def choose_subsets(
    layout: EstimationLayout, models: Mapping[str, Sequence[Array]], count: int, estimator: Estimator, seed: int
) -> list[DocumentSubset]:
    """Documents of each task: random ones for the mean, else anchors of what the models' scores have in common.

    Args:
        layout: the tasks.
        models: complete scores of C models by key, ``(D,)`` for each task.
        count: over all tasks.
        estimator: who reads them.
        seed: of the draw.
    """
    subsets = []
    for at, (task, number) in enumerate(zip(layout.tasks, split_count(layout, count), strict=True)):
        task_seed = derive_seed("estimation", seed, task.name)
        if estimator == "mean" or number == task.size:
            subsets.append(random_documents(task.size, number, task_seed))
        else:
            scores = np.stack([columns[at] for columns in models.values()])
            subsets.append(anchor_documents(score_features(scores), number, task_seed))
    return subsets


@dataclass(frozen=True)
class FittedTask:
    """Everything that estimates of one task are computed from; ``items`` and ``experts`` where they are needed."""

    subset: DocumentSubset
    items: ItemModel | None = None
    experts: Array | None = None

    def estimate(self, estimator: Estimator, scores: Array) -> Estimates:
        """Of one model, scored ``(n,)`` on the subset."""
        row = scores[None, :]
        if estimator == "mean":
            return mean_estimates(self.subset, row)
        assert self.items is not None
        if estimator == "mp_irt":
            assert self.experts is not None
            return mp_irt(self.items, self.subset, row, self.experts)
        predicted = p_irt(self.items, self.subset, row)
        return predicted if estimator == "p_irt" else gp_irt(mean_estimates(self.subset, row), predicted)


def fit_tasks(
    subsets: Sequence[DocumentSubset],
    models: Mapping[str, Sequence[Array]],
    estimator: Estimator,
    experts: Sequence[str],
) -> list[FittedTask]:
    """Fit each task's documents to the models' complete scores.

    Args:
        subsets: T.
        models: complete scores by key, ``(D,)`` for each task.
        estimator: the mean needs no fit.
        experts: keys of the experts among the models, for ``mp_irt``.
    """
    if estimator == "mean":
        return [FittedTask(subset) for subset in subsets]
    fitted = []
    rows = [list(models).index(key) for key in experts]
    for at, subset in enumerate(subsets):
        items = fit_items(np.stack([columns[at] for columns in models.values()]))
        fitted.append(FittedTask(subset, items, items.abilities[rows] if rows else None))
    return fitted
