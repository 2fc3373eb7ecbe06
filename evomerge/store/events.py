"""The events of a run and their JSON form. Floats keep every bit; NaN and infinities are refused."""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.store.estimation_events import Completing, Estimated, EstimationFitted
from evomerge.store.event_fields import EventError, decode, encode
from evomerge.terms import Array, Candidate, FailureKind, Gene, Objective, Rung, Seconds, Stop

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunStarted:
    """First event of every log: all that is needed to read the others.

    Attributes:
        name: the experiment's name.
        evomerge: version that started the run.
        experiment_fingerprint: hash of the resolved experiment.
        time: Unix seconds.
        seeds: every seed of the run by purpose, for example ``{"run": 7}``.
        objectives: in the order of every fitness of this log.
        reference_point: ``(M,)`` of the hypervolume, on the maximised scale; empty when there is none.
        genes: of every genotype of this log.
        gene_groups: group name -> indices of its genes, for summaries of long genotypes.
        normalise: of each objective, whose score it is divided by for the optimizer; empty = nothing is.
        constraints: as the experiment writes them.
    """

    name: str
    evomerge: str
    experiment_fingerprint: str
    time: float
    seeds: Mapping[str, int]
    objectives: tuple[Objective, ...]
    reference_point: tuple[float, ...] = ()
    genes: tuple[Gene, ...] = ()
    gene_groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    normalise: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()

    @property
    def run_id(self) -> str:
        """Different for every run, also of one experiment."""
        return f"{self.experiment_fingerprint}@{self.time!r}"


@dataclass(frozen=True)
class Calibrated:
    """What fitness is measured against, fixed before the first candidate is asked; absent where nothing is.

    Attributes:
        scales: ``(M,)`` by what raw fitness is divided before the optimizer is told.
        thresholds: bound of each constraint, in its objective's natural direction.
        expert_fitness: ``(E, M)`` of the experts, after dividing; empty where they were not scored before.
        reference_point: ``(M,)`` of the hypervolume, after dividing; empty when there is none.
    """

    scales: tuple[float, ...]
    thresholds: tuple[float, ...] = ()
    expert_fitness: tuple[tuple[float, ...], ...] = ()
    reference_point: tuple[float, ...] = ()


@dataclass(frozen=True)
class WarmStarted:
    """The optimizer was told evaluations of another run before its first proposal. They are no candidates of this run.

    Attributes:
        run: directory of the other run.
        genotypes: ``(K, G)``.
        fitness: ``(K, M)`` maximised.
    """

    run: str
    genotypes: tuple[tuple[float, ...], ...]
    fitness: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Asked:
    """The optimizer proposed a candidate; ``genotype`` is ``(G,)``, ``note`` what the optimizer expected of it.

    ``race_against`` and ``race_thresholds`` are the candidate's, see `Candidate`.
    """

    candidate: int
    generation: int
    genotype: tuple[float, ...]
    recipe_id: str
    parents: tuple[int, ...] = ()
    note: Mapping[str, float] = field(default_factory=dict)
    race_against: tuple[int, ...] = ()
    race_thresholds: tuple[float | None, ...] = ()

    @classmethod
    def of(cls, candidate: Candidate) -> Asked:
        """The event of a candidate."""
        genotype = tuple(float(value) for value in candidate.genotype)
        return cls(
            candidate.id, candidate.generation, genotype, candidate.recipe_id, candidate.parent_ids, candidate.note,
            candidate.race_against, candidate.race_thresholds,
        )  # fmt: skip

    @property
    def array(self) -> Array:
        """The genotype ``(G,)`` as float64."""
        return np.asarray(self.genotype, dtype=np.float64)

    def as_candidate(self) -> Candidate:
        """The candidate of the event, bit for bit."""
        return Candidate(
            self.candidate, self.array, self.recipe_id, self.generation, self.parents, self.note,
            self.race_against, self.race_thresholds,
        )  # fmt: skip


@dataclass(frozen=True)
class Started:
    """A worker began an evaluation. Informative only: a replay does not need it."""

    key: str
    attempt: int
    worker: int
    time: float


@dataclass(frozen=True)
class Evaluated:
    """An evaluation ended with a fitness.

    Attributes:
        key: unique in the run, for example ``c17`` or ``baseline:uniform_soup:search``; ``full:c17`` where an
            estimated candidate was scored on the documents it lacked.
        candidate: id of the asked candidate when this is its search evaluation, else None.
        split: which documents were scored.
        fitness: ``(M,)`` maximised.
        metrics: scalars in their natural direction, keyed ``task/metric,filter``.
        seconds: where the time went.
        scores_ref: reference of the per-document scores in the score store, or None.
        worker: index of the worker.
        started: Unix seconds.
        finished: Unix seconds.
        attempts: from 1.
        recipe_id: of the evaluated recipe, where the key is not a candidate's.
        constraints: on search documents, by what share of its bound each constraint is missed; zero or less = kept.
        rungs: of a racing run, what it had on the way.
        known_documents: whose answers came from the evaluation cache; ``seconds`` are those of the others.
        is_recalled: whether all of it came from there: nothing was merged and no forward pass ran.
    """

    key: str
    candidate: int | None
    split: str
    fitness: tuple[float, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=Seconds)
    scores_ref: str | None = None
    worker: int = 0
    started: float = 0.0
    finished: float = 0.0
    attempts: int = 1
    recipe_id: str = ""
    constraints: tuple[float, ...] = ()
    rungs: tuple[Rung, ...] = ()
    known_documents: int = 0
    is_recalled: bool = False

    @property
    def name(self) -> str:
        """The key under which a search evaluation is looked up: a candidate's is the same however it came about."""
        return self.key if self.candidate is None else f"c{self.candidate}"

    @property
    def violation(self) -> float:
        """By how much the constraints are missed in sum; zero where all are kept."""
        return math.fsum(max(0.0, value) for value in self.constraints)


@dataclass(frozen=True)
class Failed:
    """An evaluation ended without a fitness, after its last attempt."""

    key: str
    candidate: int | None
    split: str
    kind: FailureKind
    message: str
    worker: int = 0
    started: float = 0.0
    finished: float = 0.0
    attempts: int = 1
    recipe_id: str = ""


@dataclass(frozen=True)
class Stopped:
    """A candidate was clearly behind after some of its documents: it has no fitness, and did not fail.

    Attributes:
        key: as of `Evaluated`.
        candidate: id of the asked candidate.
        stop: why, after how many documents.
        rungs: what it had on the way.
        seconds: where the time went.
        scores_ref: reference of the scores of the documents that were scored, or None.
        worker: index of the worker.
        started: Unix seconds.
        finished: Unix seconds.
        attempts: from 1.
        known_documents: as of `Evaluated`.
        is_recalled: as of `Evaluated`.
    """

    key: str
    candidate: int
    stop: Stop
    rungs: tuple[Rung, ...] = ()
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


Ended = Evaluated | Failed | Stopped | Estimated


@dataclass(frozen=True)
class Told:
    """The optimizer was told these candidates' results, in this order, in one call."""

    candidates: tuple[int, ...]


@dataclass(frozen=True)
class GenerationClosed:
    """Every candidate of a generation has been told.

    Attributes:
        generation: from 0.
        time: Unix seconds.
        evaluations: search evaluations so far, failures included.
        best: id of the best candidate so far, or None.
        hypervolume: of the front so far, or None.
    """

    generation: int
    time: float
    evaluations: int
    best: int | None = None
    hypervolume: float | None = None


@dataclass(frozen=True)
class Resumed:
    """A new process went on with the run; ``notes`` say what differs harmlessly from the last one."""

    time: float
    evomerge: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunFinished:
    """The run ended on purpose, for example ``budget``, ``converged``, ``interrupted``."""

    reason: str
    time: float


Event = (
    RunStarted | Calibrated | WarmStarted | Asked | Started | Evaluated | Failed | Stopped | Told | GenerationClosed
    | Resumed | RunFinished | Estimated | Completing | EstimationFitted
)  # fmt: skip

_TAGS: dict[str, type[Any]] = {
    "run_started": RunStarted,
    "calibrated": Calibrated,
    "warm_started": WarmStarted,
    "asked": Asked,
    "started": Started,
    "evaluated": Evaluated,
    "failed": Failed,
    "stopped": Stopped,
    "told": Told,
    "generation_closed": GenerationClosed,
    "resumed": Resumed,
    "run_finished": RunFinished,
    "estimated": Estimated,
    "completing": Completing,
    "estimation_fitted": EstimationFitted,
}
_NAMES = {cls: tag for tag, cls in _TAGS.items()}


def format_event(event: Event) -> str:
    """One line of JSON, without the newline.

    Raises:
        ValueError: a NaN or an infinity, named with its field.
    """
    entries = {"v": SCHEMA_VERSION, "event": _NAMES[type(event)], **encode(event, _NAMES[type(event)])}
    return json.dumps(entries, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def parse_event(line: str | bytes) -> Event:
    """The event of one line.

    Raises:
        EventError: no JSON, another schema version, an unknown event, or fields that do not fit.
    """
    try:
        entries = json.loads(line)
    except ValueError as error:
        raise EventError(f"is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise EventError("is not a JSON object")
    version = entries.pop("v", None)
    if version != SCHEMA_VERSION:
        raise EventError(f"has schema version {version!r}; this evomerge reads version {SCHEMA_VERSION}")
    tag = entries.pop("event", None)
    if tag not in _TAGS:
        raise EventError(f"has unknown event {tag!r}")
    return typing.cast("Event", decode(_TAGS[tag], entries, tag))
