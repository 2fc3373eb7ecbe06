import itertools

import numpy as np
import pytest

from evomerge.evaluation.documents import DocumentPlan, FitnessPlan, MemberPlan, SplitPlan
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.rungs import RungSettings, lay_rungs


def member(name: str, count: int) -> MemberPlan:
    ids = tuple(f"{name}{index}" for index in range(count))
    return MemberPlan(name, {"search": SplitPlan("data", tuple(range(count)), ids, ids)})


def task(name: str) -> FitnessConfig:
    return FitnessConfig.model_validate({"name": name, "task": name, "documents": {"search": {"split": "s"}}})


CONFIGS = [
    task("plain"),
    FitnessConfig(name="hops", cost="num_hops"),
    task("group"),
    task("corpus"),
    FitnessConfig.model_validate({"name": "own", "python": "m:f", "objectives": ("a", "b")}),
]
PLAN = DocumentPlan(
    (
        FitnessPlan("plain", (member("plain", 50),)),
        FitnessPlan("hops", (), metric="num_hops"),
        FitnessPlan("group", (member("x", 10), member("y", 40)), weight_by_size=False),
        FitnessPlan("corpus", (member("corpus", 7),), is_mean=False),
        FitnessPlan("own", (member("own", 0),)),
    )
)


@pytest.mark.parametrize("sizes", ["geometric", "equal"])
def test_every_document_is_in_one_rung_in_proportion(sizes):
    layout = lay_rungs(CONFIGS, PLAN, RungSettings(5, 20, sizes, 3))
    plain, hops, group, *whole = layout.objectives
    assert hops is None
    assert whole == [None, None, None]
    assert layout.whole_documents == 7
    for objective, count in ((plain, 50), (group, 50)):
        assert sorted(np.concatenate(objective.rungs).tolist()) == list(range(count))
        assert objective.weights.sum() == pytest.approx(1.0)
    assert layout.documents[0] == 20 + 7
    assert layout.documents[-1] == 100 + 7
    steps = np.diff([0, *layout.documents])
    assert (steps > 0).all()
    if sizes == "equal":
        assert np.ptp(steps[1:]) <= 2
    for rung in range(5):
        assert sorted(layout.order[rung][layout.order[rung][:, 0] == 2, 1]) == sorted(group.rungs[rung])
        share = len(group.until(rung)) / 50
        for stratum, size in ((0, 10), (1, 40)):
            assert abs((group.strata[group.until(rung)] == stratum).sum() - share * size) <= 1
        # Each task keeps its share of the group, however many of its documents are there.
        balanced = group.balanced(group.until(rung))
        assert balanced[group.strata[group.until(rung)] == 0].sum() == pytest.approx(0.5)
        assert balanced.sum() == pytest.approx(1.0)


def test_the_order_depends_on_the_seed_only():
    first, again, other = (lay_rungs(CONFIGS, PLAN, RungSettings(4, 20, "geometric", seed)) for seed in (1, 1, 2))
    for rung in range(4):
        assert np.array_equal(first.order[rung], again.order[rung])
    assert any(not np.array_equal(a, b) for a, b in zip(first.order, other.order))
    assert first.documents == other.documents


def test_few_documents_are_one_rung():
    layout = lay_rungs(CONFIGS, PLAN, RungSettings(4, 100, "geometric", 1))
    assert layout.num_rungs == 1
    assert layout.documents == (107,)


def test_rungs_rise_strictly_on_small_tasks():
    plan = DocumentPlan((FitnessPlan("a", (member("a", 6),)), FitnessPlan("b", (member("b", 3),))))
    layout = lay_rungs([task("a"), task("b")], plan, RungSettings(3, 3, "geometric", 0))
    assert all(len(found.rungs[0]) >= 1 for found in layout.objectives if found)
    assert layout.documents[-1] == 9
    assert all(low <= high for low, high in itertools.pairwise(layout.documents))
