"""Events of a run whose candidates' fitness is estimated from some of their documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evomerge.terms import Estimate, Seconds


@dataclass(frozen=True)
class Estimated:
    """A candidate was scored on some documents: it has an estimate of its fitness, but no fitness.

    Where it is scored on the others later, an `Evaluated` with the same candidate follows.

    Attributes:
        key: as of `Evaluated`.
        candidate: id of the asked candidate.
        estimate: what the optimizer is told, with its standard errors.
        metrics: of objectives that were scored whole.
        seconds: where the time went.
        scores_ref: reference of the scores of the documents that were scored.
        worker: index of the worker.
        started: Unix seconds.
        finished: Unix seconds.
        attempts: from 1.
        known_documents: as of `Evaluated`.
        is_recalled: as of `Evaluated`.
    """

    key: str
    candidate: int
    estimate: Estimate
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=Seconds)
    scores_ref: str | None = None
    worker: int = 0
    started: float = 0.0
    finished: float = 0.0
    attempts: int = 1
    split: str = "search"
    recipe_id: str = ""
    known_documents: int = 0
    is_recalled: bool = False


@dataclass(frozen=True)
class Completing:
    """These estimated candidates are scored on the documents they lack before anything else is asked.

    Attributes:
        generation: closed generations so far.
        leaders: ids of those with the best estimates.
        sampled: ids drawn without looking at estimates; they show whether estimates drift.
        num_asked: candidates asked so far.
        time: Unix seconds.
        is_final: at the end of the search.
    """

    generation: int
    leaders: tuple[int, ...]
    sampled: tuple[int, ...]
    num_asked: int
    time: float
    is_final: bool = False


@dataclass(frozen=True)
class TaskSubset:
    """The documents of one task that candidates are scored on.

    Attributes:
        task: its name.
        documents: positions among its search documents, ascending.
        weights: share of all its documents that each of them stands for.
        num_documents: how many it has.
    """

    task: str
    documents: tuple[int, ...]
    weights: tuple[float, ...]
    num_documents: int


@dataclass(frozen=True)
class ObjectiveDrift:
    """How estimates of one objective differ from full scores, see `evomerge.evaluation.estimate_drift`.

    Attributes:
        objective: its name.
        num_candidates: sampled candidates compared.
        bias: mean of estimate minus full score.
        error: root mean square of it.
        num_ranked: candidates compared by rank, leaders included.
        kendall: their rank correlation; None where there is none.
        is_biased: see `Drift`.
        is_overconfident: see `Drift`.
        is_disordered: whether ranks agree too little.
    """

    objective: str
    num_candidates: int
    bias: float
    error: float
    num_ranked: int
    kendall: float | None
    is_biased: bool
    is_overconfident: bool
    is_disordered: bool

    @property
    def is_drifting(self) -> bool:
        """Whether more documents are needed."""
        return self.is_biased or self.is_overconfident or self.is_disordered


@dataclass(frozen=True)
class EstimationFitted:
    """What candidates asked from now on are scored on, and what their estimates are computed from.

    Attributes:
        fit: number of the fit, from 0.
        generation: closed generations so far.
        subsets: of each task whose scores are estimated.
        models: keys of the complete evaluations that it was fitted to.
        time: Unix seconds.
        drift: how the estimates so far compare, for each objective; empty at first.
        is_widened: whether the subsets grew because of it.
    """

    fit: int
    generation: int
    subsets: tuple[TaskSubset, ...]
    models: tuple[str, ...]
    time: float
    drift: tuple[ObjectiveDrift, ...] = ()
    is_widened: bool = False

    @property
    def num_documents(self) -> int:
        """Documents that a candidate is scored on, those of objectives without estimates left out."""
        return sum(len(subset.documents) for subset in self.subsets)

    @property
    def num_all(self) -> int:
        """Documents there are."""
        return sum(subset.num_documents for subset in self.subsets)

    @property
    def is_off(self) -> bool:
        """Whether candidates are scored on all documents from now on."""
        return self.num_documents == self.num_all
