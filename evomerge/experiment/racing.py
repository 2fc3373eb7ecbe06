"""Racing in a search: who races against whom, fixed when a candidate is asked and written into the log.

Everything here depends on candidates that the optimizer was told before, so a resumed run decides as the first one did,
and what is decided is in the ``asked`` event anyway.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.evaluation.documents import DocumentPlan
from evomerge.evaluation.racing import Race, Reference
from evomerge.evaluation.rungs import RungLayout, lay_rungs
from evomerge.experiment.config import ExperimentConfig, RacingConfig
from evomerge.experiment.load import Experiment
from evomerge.experiment.racing_ranks import Scalariser
from evomerge.experiment.recorder import RunRecorder
from evomerge.experiment.rung_sizes import rung_settings
from evomerge.experiment.search_loop import Progress, RaceEntry, candidate_key
from evomerge.search.catalogue import SPECS
from evomerge.search.front import contributions, learnt_reference, non_dominated
from evomerge.store.events import Ended, Evaluated
from evomerge.store.score_store import ScoreStore
from evomerge.terms import Array, Candidate, Objective, derive_seed

LOG = logging.getLogger(__name__)

MAX_REFERENCES = 8  # members of the front that a candidate is compared with


def linear_shares(config: ExperimentConfig, objectives: Sequence[Objective], scales: Sequence[float]) -> Array:
    """Factor ``(M,)`` of each natural score in the one number that candidates are compared by.

    Args:
        config: with a scalarisation that is a weighted sum.
        objectives: M.
        scales: ``(M,)`` by what scores are divided.
    """
    signs = np.array([objective.natural(1.0) for objective in objectives])
    if config.scalarisation == "first":
        weights = np.eye(len(objectives))[0]
    else:
        weights = np.array([objective.weight for objective in objectives])
        weights = weights / weights.sum()
    shares: Array = weights * signs / np.asarray(scales)
    return shares


@dataclass(frozen=True)
class RacePlan:
    """What is the same for all races of a run.

    Attributes:
        config: what the user asked for.
        layout: the rungs.
        objectives: M.
        shares: ``(M,)``: with several objectives only sign and scale of each.
        many: whether the optimizer sees all objectives.
        place: which of the best candidates so far the others race against, 1 = the very best; for one objective.
        seed: of the audit.
    """

    config: RacingConfig
    layout: RungLayout
    objectives: tuple[Objective, ...]
    shares: tuple[float, ...]
    many: bool
    place: int
    seed: int


class RacePlanner:
    """Chooses references and thresholds for new candidates, and makes the races of jobs.

    Args:
        plan: what is the same for all.
        scores: per-document scores of the run.
        outcomes: of the run by key; grows while it goes on.
        scalarise: raw fitness ``(M,)`` to what the optimizer is told.
        note: tells a person something once.
    """

    def __init__(
        self,
        plan: RacePlan,
        scores: ScoreStore,
        outcomes: Mapping[str, Ended],
        scalarise: Scalariser,
        note: Callable[[str], None] = LOG.warning,
    ) -> None:
        self.plan = plan
        self._scores = scores
        self._outcomes = outcomes
        self._scalarise = scalarise
        self._note = note
        self._said: set[str] = set()
        self._references: dict[int, Reference | None] = {}

    def entry(self, progress: Progress) -> RaceEntry:
        """What candidates that are asked now have to keep up with; looks at told candidates only."""
        complete = [key for key in sorted(progress.told) if progress.outcomes[key].evaluation.ok]
        told = {key: self._scalarise(progress.outcomes[key].evaluation.fitness) for key in complete}
        if self.plan.many:
            return RaceEntry(self._front(complete, told))
        ranked = sorted(complete, key=lambda key: (-told[key][0], key))
        if self.plan.config.rule == "halving":
            return RaceEntry(tuple(ranked[:1]), self._thresholds(progress) if ranked else ())
        return RaceEntry(tuple(ranked[self.plan.place - 1 : self.plan.place]))

    def race(self, candidate: Candidate) -> Race | None:
        """The race that goes with a candidate's job; None where it has nobody to keep up with."""
        found = [self._reference(key) for key in candidate.race_against]
        references = tuple(one for one in found if one is not None)
        if not references:
            return None
        config = self.plan.config
        drawn = np.random.default_rng(derive_seed(self.plan.seed, candidate.id)).random()
        return Race(
            references, self.plan.shares, self.plan.many, config.rule, config.error_rate, config.min_documents,
            candidate.race_thresholds, audit=bool(drawn < config.audit),
        )  # fmt: skip

    def _front(self, complete: Sequence[int], told: Mapping[int, tuple[float, ...]]) -> tuple[int, ...]:
        """The front so far; where it is large, the members that add most hypervolume."""
        if not complete:
            return ()
        fitness = np.array([told[key] for key in complete])
        members = [key for key, kept in zip(complete, non_dominated(fitness)) if kept]
        if len(members) <= MAX_REFERENCES:
            return tuple(members)
        rows = np.array([told[key] for key in members])
        volumes = contributions(rows, learnt_reference(fitness).tolist())
        kept = sorted(range(len(members)), key=lambda at: (-volumes[at], members[at]))[:MAX_REFERENCES]
        return tuple(sorted(members[at] for at in kept))

    def _thresholds(self, progress: Progress) -> tuple[float | None, ...]:
        """After each rung, the value that the best 1/eta of all told candidates that got so far have."""
        ends = self.plan.layout.documents
        values: dict[int, list[float]] = {documents: [] for documents in ends[:-1]}
        for key in progress.told:
            for rung in progress.outcomes[key].evaluation.rungs:
                values[rung.documents].append(self._scalarise(rung.fitness)[0])
        return tuple(self._threshold(sorted(values[documents], reverse=True)) for documents in ends[:-1])

    def _threshold(self, best_first: Sequence[float]) -> float | None:
        place = math.floor(len(best_first) / self.plan.config.eta)
        return best_first[place - 1] if place else None

    def _reference(self, key: int) -> Reference | None:
        if key not in self._references:
            event = self._outcomes[candidate_key(key)]
            assert isinstance(event, Evaluated)
            found = self._load(key, event)
            if found is None:
                self._say(f"candidate {key} has documents without a number, so nobody can be compared with it")
            elif self.plan.config.rule == "betting" and not self._is_bounded(found):
                self._say("some scores lie outside [0, 1], where `rule: betting` stops nobody; use `rule: wilcoxon`")
            self._references[key] = found
        return self._references[key]

    def _is_bounded(self, reference: Reference) -> bool:
        raced = [column for column, found in zip(reference.columns, self.plan.layout.objectives, strict=True) if found]
        return all(bool(((column >= 0.0) & (column <= 1.0)).all()) for column in raced)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._note(f"racing: {text}")

    def _load(self, key: int, event: Evaluated) -> Reference | None:
        """A candidate's scores as columns; None where a document has no number."""
        tables = {table.objective: table for table in self._scores.load(event.scores_ref)} if event.scores_ref else {}
        columns: list[Array] = []
        for m, (objective, found) in enumerate(zip(self.plan.objectives, self.plan.layout.objectives, strict=True)):
            if found is None:
                columns.append(np.array([objective.natural(event.fitness[m])]))
            elif objective.name in tables and len(tables[objective.name].values) == len(found.strata):
                columns.append(tables[objective.name].values)
            else:
                return None
        return Reference(key, tuple(columns))


def build_racer(
    loaded: Experiment,
    plan: DocumentPlan,
    recorder: RunRecorder,
    scalarise: Scalariser,
    population_size: int,
) -> RacePlanner | None:
    """Who decides the races of a run; None where nothing is raced.

    Args:
        loaded: the experiment.
        plan: its documents.
        recorder: of the run.
        scalarise: raw fitness ``(M,)`` to what the optimizer is told.
        population_size: of the optimizer at its start.
    """
    config, objectives, spec = loaded.config, recorder.objectives, SPECS[loaded.config.optimizer.name]
    settings = rung_settings(config, loaded.fitness, plan)
    if config.racing is None or settings is None:
        return None
    many = spec.multi_objective and len(objectives) > 1
    signs = np.array([objective.natural(1.0) for objective in objectives])
    shares = signs / np.asarray(recorder.scales) if many else linear_shares(config, objectives, recorder.scales)
    layout, place = lay_rungs(loaded.fitness, plan, settings), max(1, round(spec.race_place * population_size))
    seed = derive_seed(config.seed, "audit")
    races = RacePlan(config.racing, layout, objectives, tuple(shares.tolist()), many, place, seed)
    return RacePlanner(races, recorder.scores, recorder.outcomes, scalarise, recorder.view.note)
