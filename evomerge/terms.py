"""The shared vocabulary: what every room may talk about. Plain frozen data on numpy; knows nothing else of ours.

Shapes use the letters C candidates, G genes, E experts, D documents, M objectives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# For each objective which of its search documents; None = it is scored whole, without choosing.
DocumentChoice = tuple[tuple[int, ...] | None, ...]

SplitName = Literal["search", "validation", "held_out"]
SPLITS: tuple[SplitName, ...] = ("search", "validation", "held_out")


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed that depends only on its parts, the same on every machine and in every process.

    Args:
        *parts: what the seed belongs to, for example ``(run_seed, "candidate", 17)``.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class GeneKind(StrEnum):
    """What values a gene takes."""

    REAL = "real"
    INTEGER = "integer"
    CATEGORY = "category"


@dataclass(frozen=True)
class Gene:
    """One coordinate of a genotype.

    A genotype is a float64 array ``(num_genes,)``: a real gene holds its value, an integer gene a whole number in
    ``[low, high]``, a category gene the index of its choice in ``[0, len(choices) - 1]``.

    Attributes:
        name: unique in its search space.
        kind: what values it takes.
        low: least value.
        high: largest value.
        initial: where the search begins.
        choices: of a category gene.
        sequence: name of the list that this gene is one place of, "" = none. All genes of a list are categories with
            the same choices, in list order; the last choice means that nothing stands there. Only the order of what
            does stand there counts, so optimizers may move it along, insert and delete.
    """

    name: str
    kind: GeneKind = GeneKind.REAL
    low: float = 0.0
    high: float = 1.0
    initial: float = 0.5
    choices: tuple[str, ...] = ()
    sequence: str = ""

    @property
    def width(self) -> float:
        """Length of the gene's range."""
        return self.high - self.low


@dataclass(frozen=True)
class Objective:
    """One named quantity of the fitness. Fitness values are always maximised inside evomerge.

    ``higher_is_better`` is the natural direction of the metric: where it is False the fitness holds the negated metric,
    and reports turn it back. ``weight`` is its share in weighted sums, 0 where it is in a unit of its own. ``unit`` is
    what natural values are counted in, empty for plain scores.
    """

    name: str
    higher_is_better: bool = True
    weight: float = 1.0
    unit: str = ""

    def natural(self, fitness: float) -> float:
        """The metric as its task reports it."""
        return fitness if self.higher_is_better else -fitness


def with_unit(value: float, unit: str, decimals: int = 4) -> str:
    """A natural value for a person: ``0.4375``, ``1 hop``, ``12 hops``, ``134.5M parameters``, ``23.41 ms``."""
    if not unit:
        return f"{value:.{decimals}f}"
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if prefix == 'k' else size):.1f}{prefix} {unit}"
    if value == 1:
        unit = unit.removesuffix("s") if unit != "ms" else unit
    return f"{value:,.0f} {unit}" if value == round(value) else f"{value:.2f} {unit}"


@dataclass(frozen=True)
class ModelCost:
    """What one merged model needs, whatever its weights are.

    Attributes:
        num_hops: blocks that run in one forward, repeated ones as often as they run.
        num_parameters: weights it holds: every block that runs once, everything outside the blocks, tied weights once.
        flops_per_token: 2 for each multiply-add of the matrices one token runs through, the head included, and of
            attention scores over a stated number of positions.
        magnitudes: hyperparameter to the mean magnitude of its values in the recipe, over experts and tensors.
    """

    num_hops: int
    num_parameters: int
    flops_per_token: float
    magnitudes: Mapping[str, float] = field(default_factory=dict)


class FailureKind(StrEnum):
    """Why a candidate has no fitness."""

    EXCEPTION = "exception"
    TIMEOUT = "timeout"
    WORKER_DIED = "worker_died"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE = "non_finite"


@dataclass(frozen=True)
class Failure:
    """Why an evaluation failed; ``message`` is one or a few lines for a person."""

    kind: FailureKind
    message: str


@dataclass(frozen=True)
class Seconds:
    """Where the wall time of one evaluation went, in seconds. ``wait`` is time between submission and start."""

    merge: float = 0.0
    forward: float = 0.0
    metric: float = 0.0
    wait: float = 0.0

    @property
    def busy(self) -> float:
        """Seconds the worker worked."""
        return self.merge + self.forward + self.metric


@dataclass(frozen=True)
class DocumentScores:
    """Scores of one objective on each document, in fixed document order.

    Attributes:
        objective: name of the objective.
        document_ids: ids ``(D,)``, fixed for the run.
        values: ``(D,)`` the objective's per-document metric, in its natural direction.
        extra: further per-document columns ``(D,)``, for example other metrics or the gold log-probability.
    """

    objective: str
    document_ids: tuple[str, ...]
    values: Array
    extra: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class HopCounts:
    """Work of a route's forward passes, in hops times tokens.

    Attributes:
        run: done.
        skipped: spared, because an earlier route began with the same hops.
    """

    run: int = 0
    skipped: int = 0

    def __add__(self, other: HopCounts) -> HopCounts:
        return HopCounts(self.run + other.run, self.skipped + other.skipped)

    @property
    def share_skipped(self) -> float:
        """Part of the work that was spared, 0 where there was none to do."""
        return self.skipped / max(1, self.run + self.skipped)


@dataclass(frozen=True)
class Rung:
    """What a candidate of a racing run had after some of its documents. It is no fitness: that means all documents.

    Attributes:
        documents: scored so far, over all fitnesses.
        fitness: ``(M,)`` maximised, over these documents.
    """

    documents: int
    fitness: tuple[float, ...]


@dataclass(frozen=True)
class Stop:
    """Why a candidate was not scored to the end: on the documents so far it was clearly behind another one.

    Attributes:
        documents: scored when it was stopped.
        total: documents there would have been.
        against: id of the candidate it was behind.
        difference: its score minus the other's on these documents, as the optimizer counts; with several objectives
            in the one where it came nearest.
        upper: upper confidence bound of that difference over all documents; under ``halving`` the difference itself.
        audit: ``(M,)`` its fitness on all documents, where it was scored to the end to check the decision.
    """

    documents: int
    total: int
    against: int
    difference: float
    upper: float
    audit: tuple[float, ...] = ()

    @property
    def scored(self) -> int:
        """Documents it cost: all of them where it was audited."""
        return self.total if self.audit else self.documents


@dataclass(frozen=True)
class Estimate:
    """What a candidate's fitness would be, estimated from some of its documents. It is no fitness: that means all.

    Attributes:
        documents: scored.
        total: documents there are.
        fitness: ``(M,)`` maximised, estimated; an objective that needs no documents, or was scored on all, has its own.
        standard_errors: ``(M,)`` of ``fitness``, 0 where it is exact.
        fit: number of the fit it was computed from.
    """

    documents: int
    total: int
    fitness: tuple[float, ...]
    standard_errors: tuple[float, ...]
    fit: int


@dataclass(frozen=True)
class Part:
    """Marks an evaluation of chosen documents only: material for an estimate, or the rest of a complete evaluation.

    Attributes:
        documents: for each objective the positions that were scored; None = it was scored whole.
        whole: ``(M,)`` maximised, of each objective that was scored whole; None for the others.
    """

    documents: DocumentChoice
    whole: tuple[float | None, ...]


@dataclass(frozen=True)
class Evaluation:
    """What scoring one merged model gave.

    Attributes:
        fitness: ``(M,)`` maximised objective values in the order of the evaluator's objectives; empty when it failed
            or was stopped.
        document_scores: one table for each objective that has documents; of a stopped one only those scored.
        metrics: every scalar worth showing, natural direction, keyed ``task/metric,filter``.
        seconds: cost.
        failure: set where something went wrong.
        hops: work of a route's forward passes; not recorded, as it depends on what the worker did before.
        rungs: of a racing run, what it had on the way, the last rung left out.
        stop: set where it was stopped before the last document.
        estimate: what the optimizer is told instead of the fitness; without a fitness beside it, the candidate was not
            scored on all documents.
        part: set while it is neither a complete evaluation nor an estimate.
        known_documents: whose answers came from the evaluation cache.
        is_recalled: whether all of it came from there: nothing was merged and no forward pass ran.
    """

    fitness: tuple[float, ...] = ()
    document_scores: tuple[DocumentScores, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=Seconds)
    failure: Failure | None = None
    hops: HopCounts = field(default_factory=HopCounts)
    rungs: tuple[Rung, ...] = ()
    stop: Stop | None = None
    estimate: Estimate | None = None
    part: Part | None = None
    known_documents: int = 0
    is_recalled: bool = False

    @property
    def ok(self) -> bool:
        """Whether the candidate has a fitness: it did not fail, and all documents were scored."""
        if self.failure is not None or self.stop is not None or self.part is not None:
            return False
        return self.estimate is None or bool(self.fitness)


@dataclass(frozen=True)
class Candidate:
    """One proposal of an optimizer. ``id`` counts from 0 in ask order over the whole run.

    ``note`` holds what the optimizer expected of it, for people. In a racing run ``race_against`` has the ids of the
    candidates it has to keep up with, and ``race_thresholds`` what it needs after each rung (``halving``; None = no
    more than the others); both were fixed when it was asked.
    """

    id: int
    genotype: Array
    recipe_id: str
    generation: int
    parent_ids: tuple[int, ...] = ()
    note: Mapping[str, float] = field(default_factory=dict)
    race_against: tuple[int, ...] = ()
    race_thresholds: tuple[float | None, ...] = ()
