"""Failures, diverged replays and NSGA's generations behind the ask/tell contract."""

import numpy as np
import optuna
import pytest

from evomerge.search.base import Optimizer, Problem, Result
from evomerge.search.catalogue import build_optimizer
from evomerge.terms import Gene, GeneKind

GENES = (
    *(Gene(f"r{i}", low=-1.0, high=1.0, initial=0.0) for i in range(6)),
    Gene("method", GeneKind.CATEGORY, choices=("a", "b", "c"), initial=0),
)
MIDDLE = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0])


def build(name: str, num_objectives: int = 2, **settings: object) -> Optimizer:
    return build_optimizer(name, Problem(GENES, num_objectives, seed=3, evaluations=200), settings)


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_a_generation_with_failures_is_still_a_generation(name: str) -> None:
    """Children of identical parents are those parents but for mutations; random genotypes would share no number."""
    optimizer = build(name, population_size=8)
    proposals = [optimizer.ask() for _ in range(8)]
    optimizer.tell([Result(p.index, MIDDLE, None if p.index in (0, 3, 5) else (1.0, 2.0)) for p in proposals])
    children = np.array([optimizer.ask().genotype for _ in range(8)])
    assert np.mean(np.isclose(children, MIDDLE)) > 0.6


@pytest.mark.parametrize("propose_initial", [True, False])
@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_the_second_generation_is_bred_from_the_first(name: str, propose_initial: bool) -> None:
    optimizer = build(name, population_size=8, propose_initial=propose_initial)
    proposals = [optimizer.ask() for _ in range(8)]
    optimizer.tell([Result(p.index, p.genotype, (float(p.index), -float(p.index))) for p in proposals])
    parents = np.array([p.genotype for p in proposals])
    children = np.array([optimizer.ask().genotype for _ in range(8)])
    nearest = np.abs(children[:, None, :6] - parents[None, :, :6]).min(axis=1)
    assert np.mean(nearest < 0.02) > 0.7


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_failures_are_not_bred_from(name: str) -> None:
    optimizer = build(name, population_size=8)
    failed = -MIDDLE * [1, 1, 1, 1, 1, 1, 0]
    for _ in range(2):
        proposals = [optimizer.ask() for _ in range(8)]
        optimizer.tell(
            [Result(p.index, MIDDLE if p.index % 2 else failed, (1.0, 2.0) if p.index % 2 else None) for p in proposals]
        )
    children = np.array([optimizer.ask().genotype for _ in range(8)])
    assert np.mean(np.isclose(children, MIDDLE)) > 0.6


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_failures_teach_the_model_nothing(name: str) -> None:
    optimizer = build(name, population_size=2)
    proposals = [optimizer.ask(), optimizer.ask()]
    optimizer.tell([Result(0, proposals[0].genotype, None), Result(1, proposals[1].genotype, (1.0, -2.0))])
    first, second = optimizer._study.trials  # type: ignore[attr-defined]
    assert first.state is optuna.trial.TrialState.FAIL
    assert first.values is None
    assert second.values == [-1.0, 2.0]  # minimised


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "nsga3"])
def test_a_diverged_result_stands_in_for_its_proposal(name: str) -> None:
    optimizer = build(name)
    proposal = optimizer.ask()
    optimizer.tell([Result(0, MIDDLE, (1.0, -2.0))])
    trials = optimizer._study.get_trials(states=[optuna.trial.TrialState.COMPLETE])  # type: ignore[attr-defined]
    assert [list(trial.params.values()) for trial in trials] == [MIDDLE.tolist()]
    assert trials[0].values == [-1.0, 2.0]
    assert not np.array_equal(proposal.genotype, MIDDLE)


def test_nsga3_spreads_over_a_maximised_front() -> None:
    """A convex front: told with the wrong sign, the reference directions would gather candidates at the corners."""
    genes = tuple(Gene(f"r{i}", low=0.0, high=1.0, initial=0.5) for i in range(3))
    optimizer = build_optimizer("nsga3", Problem(genes, 2, seed=0, evaluations=240), {"population_size": 12})
    for _ in range(20):
        proposals = [optimizer.ask() for _ in range(12)]
        results = []
        for p in proposals:
            a, *rest = p.genotype
            loss = sum(value**2 for value in rest)
            results.append(Result(p.index, p.genotype, (1 - a**2 - loss, 1 - (1 - a) ** 2 - loss)))
        optimizer.tell(results)
    shares = np.sort([proposal.genotype[0] for proposal in proposals])
    assert np.max(np.diff(np.concatenate([[0.0], shares, [1.0]]))) < 0.45
    assert np.mean([np.abs(proposal.genotype[1:]).max() < 0.2 for proposal in proposals]) > 0.5


def test_optuna_stays_silent(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    for name in ("tpe", "nsga2", "nsga3"):
        optimizer = build(name)
        optimizer.tell([Result(0, optimizer.ask().genotype, (1.0, 2.0))])
    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0
