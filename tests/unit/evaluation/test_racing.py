import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from evomerge.evaluation.documents import DocumentPlan, FitnessPlan, MemberPlan, SplitPlan
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.racing import (
    FRACTIONS,
    Race,
    Reference,
    log_capital,
    running_score,
    running_sum,
    upper_bound,
    verdict,
    wilcoxon_p,
)
from evomerge.evaluation.rung_run import run_rungs
from evomerge.evaluation.rungs import RungLayout, RungSettings, lay_rungs
from evomerge.terms import Objective


def layout_of(*counts: int, rungs: int = 5, first: int = 16, costs: int = 0) -> RungLayout:
    configs, plans = [], []
    for at, count in enumerate(counts):
        roles = {"search": {"split": "s"}}
        configs.append(FitnessConfig.model_validate({"name": f"t{at}", "task": f"t{at}", "documents": roles}))
        ids = tuple(map(str, range(count)))
        split = SplitPlan("", tuple(range(count)), ids, ids)
        plans.append(FitnessPlan(f"t{at}", (MemberPlan("m", {"search": split}),)))
    for at in range(costs):
        configs.append(FitnessConfig(name=f"cost{at}", cost="num_hops"))
        plans.append(FitnessPlan(f"cost{at}", ()))
    return lay_rungs(configs, DocumentPlan(tuple(plans)), RungSettings(rungs, first, "geometric", 0))


def behind_at(layout: RungLayout, race: Race, columns) -> int | None:
    """Documents after which a candidate with these values is stopped."""
    objectives = [Objective(str(at)) for at in range(len(columns))]

    def score(rung: int):
        pairs = zip(layout.objectives, columns, strict=True)
        return [column if found is None else column[found.rungs[rung]] for found, column in pairs]

    ran = run_rungs(score, layout, objectives, race)
    return None if ran.stop is None else ran.stop.documents


def plainly(values, num_documents: int, mean: float) -> float:
    """The gambler's capital, one bet after the other."""
    capitals = []
    for fraction in FRACTIONS:
        capital, seen = 1.0, 0.0
        for at, value in enumerate(values):
            expected = (num_documents * mean - seen) / (num_documents - at)
            capital *= 1.0 + fraction / (1.0 - expected) * (expected - value)
            seen += value
        capitals.append(capital)
    return math.log(sum(capitals) / len(capitals))


def test_the_capital_is_that_of_the_bets():
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 30, p=[0.4, 0.4, 0.2])
    for mean in (-0.3, -0.1, 0.0, 0.2):
        assert log_capital(values, 100, mean) == pytest.approx(plainly(values, 100, mean), abs=1e-9)


def test_what_is_left_cannot_make_up_for_it():
    values = np.full(60, -1.0)
    assert log_capital(values, 100, 0.0) == math.inf
    assert upper_bound(values, 100, 0.05) <= -0.2 + 1e-6


def test_the_bound_is_the_mean_once_all_documents_are_there():
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 50)
    assert upper_bound(values, 50, 0.05) == pytest.approx(values.mean(), abs=1e-6)
    bounds = [upper_bound(np.full(count, -0.1), 50, 0.05) for count in (10, 20, 40)]
    assert bounds == sorted(bounds, reverse=True)


def test_wilcoxon_is_scipys():
    differences = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], 40, p=[0.5, 0.3, 0.2])
    expected = wilcoxon(differences, zero_method="zsplit", alternative="less", method="asymptotic").pvalue
    assert wilcoxon_p(differences) == expected
    assert wilcoxon_p(np.zeros(20)) == 1.0


@pytest.mark.parametrize("counts", [(120,), (60, 60)])
def test_equal_candidates_are_rarely_stopped(counts):
    """Under the hypothesis, with a look after every rung and tasks that differ in opposite directions."""
    rng = np.random.default_rng(3)
    layout = layout_of(*counts, rungs=6)
    shares = tuple(1.0 / len(counts) for _ in counts)
    stopped = 0
    for _ in range(150):
        mine = [np.zeros(count) for count in counts]
        theirs = [np.zeros(count) for count in counts]
        # As many documents that only one of them is right on: equal on all documents.
        wins = [0.5, 0.5] if len(counts) == 1 else [0.8, 0.2]
        for column, other, share in zip(mine, theirs, wins):
            places = rng.permutation(len(column))[:30]
            split = round(share * 30)
            column[places[:split]] = 1.0
            other[places[split:]] = 1.0
        if len(counts) == 1:
            assert mine[0].sum() == theirs[0].sum()
        race = Race((Reference(0, tuple(theirs)),), shares, level=0.1)
        stopped += behind_at(layout, race, mine) is not None
    assert stopped / 150 <= 0.1


def test_one_far_behind_is_stopped_early_and_one_ahead_never():
    layout = layout_of(100, 100)
    good, bad = np.ones(100), np.zeros(100)
    for rule in ("betting", "wilcoxon"):
        race = Race((Reference(4, (good, good)),), (0.5, 0.5), rule=rule, level=0.02)
        assert behind_at(layout, race, [bad, bad]) == 16
        assert behind_at(layout, race, [good, good]) is None
        ahead = Race((Reference(4, (bad, good)),), (0.5, 0.5), rule=rule, level=0.02)
        assert behind_at(layout, ahead, [good, good]) is None


def test_too_few_documents_decide_nothing():
    layout = layout_of(100)
    race = Race((Reference(0, (np.ones(100),)),), (1.0,), min_documents=40)
    assert behind_at(layout, race, [np.zeros(100)]) >= 40


def test_betting_says_nothing_of_values_it_was_not_made_for():
    layout = layout_of(100)
    good, bad = np.full(100, 3.0), np.zeros(100)
    assert behind_at(layout, Race((Reference(0, (good,)),), (1.0,)), [bad]) is None
    assert behind_at(layout, Race((Reference(0, (good,)),), (1.0,), rule="wilcoxon"), [bad]) == 16
    missing = np.where(np.arange(100) < 50, np.nan, 0.0)
    assert behind_at(layout, Race((Reference(0, (np.ones(100),)),), (1.0,)), [missing]) is None


def test_a_lowered_score_counts_the_other_way():
    layout = layout_of(100)
    race = Race((Reference(0, (np.zeros(100),)),), (-1.0,))
    assert behind_at(layout, race, [np.ones(100)]) == 16
    assert behind_at(layout, Race((Reference(0, (np.ones(100),)),), (-1.0,)), [np.zeros(100)]) is None


def test_with_several_objectives_behind_means_dominated():
    layout = layout_of(100, 100, first=40)
    good, bad = np.ones(100), np.zeros(100)
    references = (Reference(1, (good, good)), Reference(2, (good, bad)))
    race = Race(references, (1.0, 1.0), many=True)
    found = verdict(race, layout, [bad, bad], 0)
    assert found is not None
    assert found.against == 1
    assert found.upper < 0
    assert behind_at(layout, race, [bad, good]) is None
    only_second = Race(references[1:], (1.0, 1.0), many=True)
    assert behind_at(layout, only_second, [bad, good]) is None


def test_costs_are_known_at_once():
    layout = layout_of(100, costs=1)
    good, bad, cheap, dear = np.ones(100), np.zeros(100), np.array([10.0]), np.array([12.0])
    race = Race((Reference(1, (good, cheap)),), (1.0, -1.0), many=True)
    assert behind_at(layout, race, [bad, dear]) == 16
    assert behind_at(layout, race, [bad, np.array([9.0])]) is None
    # In a sum a lead in cost has to be made up for.
    summed = Race((Reference(1, (good, dear)),), (1.0, -1.0))
    assert behind_at(layout, summed, [bad, cheap]) is None
    assert behind_at(layout, Race((Reference(1, (good, cheap)),), (1.0, -0.1)), [bad, cheap]) == 16


def test_halving_looks_at_thresholds():
    layout = layout_of(100)
    column = np.tile([1.0, 0.0], 50)
    value = running_sum((1.0,), layout, [column], 1)
    reference = (Reference(5, (np.ones(100),)),)
    stopping = Race(reference, (1.0,), rule="halving", thresholds=(None, value + 0.01, None, None))
    assert behind_at(layout, stopping, [column]) == layout.documents[1]
    keeping = Race(reference, (1.0,), rule="halving", thresholds=(None, value, None, None))
    assert behind_at(layout, keeping, [column]) is None


def test_an_audited_candidate_is_stopped_and_scored_to_the_end():
    layout = layout_of(100)
    asked = []

    def score(rung: int):
        asked.append(rung)
        return [np.zeros(len(layout.objectives[0].rungs[rung]))]

    race = Race((Reference(0, (np.ones(100),)),), (1.0,), audit=True)
    ran = run_rungs(score, layout, [Objective("x")], race)
    assert asked == list(range(layout.num_rungs))
    assert ran.is_complete
    assert ran.stop.documents == 16
    assert [rung.documents for rung in ran.rungs] == [16]

    def failing(rung: int):
        if rung == 3:
            raise ValueError("broken")
        return score(rung)

    ran = run_rungs(failing, layout, [Objective("x")], race)
    assert not ran.is_complete
    assert ran.stop.documents == 16


def test_the_score_so_far_weighs_tasks_as_the_whole_does():
    ids = [tuple(map(str, range(count))) for count in (10, 40)]
    members = tuple(
        MemberPlan(str(at), {"search": SplitPlan("", tuple(range(len(one))), one, one)}) for at, one in enumerate(ids)
    )
    config = FitnessConfig.model_validate({"name": "g", "task": "g", "documents": {"search": {"split": "s"}}})
    layout = lay_rungs([config], DocumentPlan((FitnessPlan("g", members),)), RungSettings(3, 8, "geometric", 0))
    column = np.concatenate([np.ones(10), np.zeros(40)])
    for rung in range(3):
        assert running_score(layout.objectives[0], column, rung) == pytest.approx(0.5)
