from typing import Any

import numpy as np

from evomerge.evaluation.documents import DocumentPlan, FitnessPlan, MemberPlan, SplitPlan
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.rungs import RungSettings, lay_rungs
from evomerge.experiment.config import RacingConfig
from evomerge.experiment.racing import MAX_REFERENCES, RacePlan, RacePlanner
from evomerge.experiment.racing_ranks import told_results
from evomerge.experiment.racing_summary import racing_summary
from evomerge.experiment.search_loop import Progress
from evomerge.recipes.recipe import Recipe, Source
from evomerge.runtime.executor import Job, Outcome
from evomerge.store.events import Asked, Evaluated, Failed, RunStarted, Stopped
from evomerge.store.run_state import read_state
from evomerge.terms import Candidate, DocumentScores, Evaluation, Failure, FailureKind, Objective, Rung, Stop

DOCUMENTS = 40


class Tables:
    """Per-document scores in memory."""

    def load(self, ref: str) -> tuple[DocumentScores, ...]:
        ids = tuple(map(str, range(DOCUMENTS)))
        return tuple(DocumentScores(name, ids, np.full(DOCUMENTS, float(ref))) for name in ("a", "b"))


def layout():
    configs, plans = [], []
    ids = tuple(map(str, range(DOCUMENTS)))
    for name in ("a", "b"):
        configs.append(
            FitnessConfig.model_validate({"name": name, "task": name, "documents": {"search": {"split": "s"}}})
        )
        plans.append(
            FitnessPlan(name, (MemberPlan(name, {"search": SplitPlan("", tuple(range(DOCUMENTS)), ids, ids)}),))
        )
    return lay_rungs(configs, DocumentPlan(tuple(plans)), RungSettings(4, 16, "geometric", 0))


def planner(many: bool = False, place: int = 1, **config: Any) -> RacePlanner:
    objectives = (Objective("a"), Objective("b"))
    shares = (1.0, 1.0) if many else (0.5, 0.5)
    plan = RacePlan(RacingConfig(**config), layout(), objectives, shares, many, place, seed=1)
    outcomes = {f"c{key}": Evaluated(f"c{key}", key, "search", (0.0, 0.0), scores_ref="0.5") for key in range(50)}
    told = (lambda fitness: fitness) if many else (lambda fitness: (sum(fitness) / 2,))
    return RacePlanner(plan, Tables(), outcomes, told)  # type: ignore[arg-type]


def progress_of(evaluations: list[Evaluation], told: list[int]) -> Progress:
    progress = Progress()
    for key, evaluation in enumerate(evaluations):
        progress.add(Candidate(key, np.zeros(2), "r", 0))
        progress.outcomes[key] = Outcome(Job(f"c{key}", Recipe(Source("m"))), evaluation, 0, 1, 0.0, 0.0)
    progress.told |= set(told)
    return progress


def scored(*fitness: float, rungs: tuple[Rung, ...] = ()) -> Evaluation:
    return Evaluation(fitness, rungs=rungs)


def stopped(against: int, upper: float = -0.1, documents: int = 16, rungs: tuple[Rung, ...] = ()) -> Evaluation:
    return Evaluation(rungs=rungs, stop=Stop(documents, 80, against, -0.3, upper))


FAILED = Evaluation(failure=Failure(FailureKind.EXCEPTION, "no"))


def test_only_told_and_complete_candidates_are_raced_against():
    progress = progress_of([scored(0.1, 0.2), scored(0.9, 0.9), stopped(0), scored(0.5, 0.5), FAILED], [0, 2, 3, 4])
    assert planner().entry(progress).against == (3,)
    assert planner(place=2).entry(progress).against == (0,)
    assert planner(place=3).entry(progress).against == ()
    assert planner().entry(progress_of([scored(1.0, 1.0)], [])).against == ()


def test_with_several_objectives_the_front_is_raced_against():
    corner = [scored(0.1, 0.9), scored(0.5, 0.5), scored(0.9, 0.1), scored(0.4, 0.4)]
    assert planner(many=True).entry(progress_of(corner, [0, 1, 2, 3])).against == (0, 1, 2)
    line = [scored(at / 20, 1 - at / 20) for at in range(20)]
    chosen = planner(many=True).entry(progress_of(line, list(range(20)))).against
    assert len(chosen) == MAX_REFERENCES
    assert {0, 19} & set(chosen)


def test_thresholds_are_those_of_the_best_third_that_got_so_far():
    first, second = layout().documents[:2]
    evaluations = [
        scored(0.5, 0.5, rungs=(Rung(first, (at / 10, at / 10)), Rung(second, (0.5, 0.5)))) for at in range(5)
    ]
    evaluations.append(stopped(0, rungs=(Rung(first, (0.9, 0.9)),)))
    entry = planner(rule="halving", eta=3).entry(progress_of(evaluations, list(range(6))))
    assert entry.against == (0,)
    assert entry.thresholds[:2] == (0.4, 0.5)
    assert entry.thresholds[2] is None
    assert planner(rule="halving").entry(progress_of(evaluations, [0, 1])).thresholds == (None, None, None)


def test_the_race_of_a_job_has_the_references_scores():
    candidate = Candidate(7, np.zeros(2), "r", 0, race_against=(3,), race_thresholds=(0.2,))
    race = planner(audit=0.5).race(candidate)
    assert race is not None
    assert race.references[0].candidate == 3
    assert [column.tolist() for column in race.references[0].columns] == [[0.5] * DOCUMENTS] * 2
    assert race.thresholds == (0.2,)
    audits = [
        planner(audit=0.5).race(Candidate(key, np.zeros(2), "r", 0, race_against=(3,))).audit for key in range(60)
    ]
    assert 15 <= sum(audits) <= 45
    assert audits == [
        planner(audit=0.5).race(Candidate(key, np.zeros(2), "r", 0, race_against=(3,))).audit for key in range(60)
    ]
    assert planner().race(Candidate(7, np.zeros(2), "r", 0)) is None


def test_scores_that_betting_was_not_made_for_are_said_once():
    found = planner()
    notes: list[str] = []
    found._note = notes.append
    for key in (3, 4):
        found._outcomes[f"c{key}"] = Evaluated(f"c{key}", key, "search", (0.0, 0.0), scores_ref="7.5")
        assert found.race(Candidate(9, np.zeros(2), "r", 0, race_against=(key,))) is not None
    assert len(notes) == 1
    assert "outside [0, 1]" in notes[0]


def test_what_a_batch_is_told_as():
    evaluations = {0: scored(0.4, 0.6), 1: stopped(0, -0.2, 30), 2: FAILED, 3: stopped(0, -0.1, 16)}
    candidates = {key: Candidate(key, np.full(2, key), "r", 0) for key in evaluations}
    results = told_results([0, 1, 2, 3], candidates, evaluations, lambda f: (sum(f) / 2,), lambda f: ())
    assert [result.fitness for result in results] == [(0.5,), None, None, None]
    assert [result.standing for result in results] == [None, (0.3, 30.0), None, (0.4, 16.0)]
    many = told_results([1], candidates, evaluations, lambda f: f, lambda f: ())
    assert many[0].standing == (-0.2, 30.0)


def test_the_summary_counts_documents_and_false_stops():
    started = RunStarted("s", "0", "f", 1.0, {"run": 1}, (Objective("a"), Objective("b")))
    asked = [Asked(key, 0, (0.0,), "r") for key in range(5)]
    audits = {1: (), 2: (0.9, 0.1), 3: (0.1, 0.1)}
    stops = [
        Stopped(f"c{key}", key, Stop(20, 80, 0, -0.3, -0.1, audit), (Rung(20, (0.1, 0.1)),))
        for key, audit in audits.items()
    ]
    failed = Failed("c4", 4, "search", FailureKind.TIMEOUT, "slow")
    state = read_state([started, *asked, Evaluated("c0", 0, "search", (0.4, 0.5)), *stops, failed])
    assert state.num_evaluations == 5
    assert [record.fitness for record in state.candidates] == [(0.4, 0.5), None, None, None, None]
    assert state.best().id == 0
    found = racing_summary(state, "betting", False, lambda fitness: sum(fitness) / 2)
    assert found == {
        "rule": "betting", "stopped": 3, "documents_scored": 80 + 20 + 80 + 80, "documents_without": 4 * 80,
        "audited": 2, "false_stops": 1,
    }  # fmt: skip
    assert racing_summary(state, "betting", True, lambda fitness: 0.0)["false_stops"] == 1
