"""Anchor documents: representative, deterministic, weighted; and the guard that notices when estimates drift."""

import numpy as np
import pytest

from evomerge.evaluation.anchor_documents import anchor_documents, item_features, random_documents, score_features
from evomerge.evaluation.estimate_drift import Drift, find_drift, next_count
from evomerge.evaluation.irt import ItemModel
from evomerge.evaluation.score_estimates import Estimates, mean_estimates
from evomerge.terms import Array


def test_one_anchor_for_each_group_weighted_by_its_size() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    group = np.repeat([0, 1, 2], [5, 10, 25])
    features = centres[group] + 0.1 * rng.normal(size=(40, 2))
    found = anchor_documents(features, 3)
    np.testing.assert_array_equal(group[found.indices], [0, 1, 2])
    np.testing.assert_allclose(found.weights, [5 / 40, 10 / 40, 25 / 40])
    for one, label in zip(found.indices, range(3)):
        middle = features[group == label].mean(axis=0)
        distances = np.linalg.norm(features[group == label] - middle, axis=1)
        assert np.linalg.norm(features[one] - middle) <= distances.min() * (1.0 + 1e-12)


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_documents_with_equal_scores_share_their_weight(count: int) -> None:
    scores = np.zeros((3, 12))
    scores[:, 8:] = 1.0
    found = anchor_documents(score_features(scores), count)
    assert len(np.unique(found.indices)) == count
    assert np.all(found.weights > 0.0)
    assert found.weights.sum() == pytest.approx(1.0)
    if count > 1:
        np.testing.assert_allclose(mean_estimates(found, scores[:, found.indices]).values, scores.mean(axis=1))
    np.testing.assert_array_equal(np.sort(np.append(found.indices, found.others)), np.arange(12))


def test_equal_arguments_give_equal_anchors() -> None:
    features = np.random.default_rng(1).normal(size=(60, 4))
    one, other = anchor_documents(features, 7, seed=3), anchor_documents(features.copy(), 7, seed=3)
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_array_equal(one.weights, other.weights)


def test_features_and_wrong_arguments() -> None:
    scores = np.array([[0.0, np.nan, 1.0], [1.0, 1.0, 0.0]])
    np.testing.assert_allclose(score_features(scores), [[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    items = ItemModel.known(np.array([[2.0], [1.0]]), np.array([0.5, -0.5]), np.zeros((2, 1)))
    np.testing.assert_allclose(item_features(items), [[2.0, 0.5], [1.0, -0.5]])
    with pytest.raises(ValueError, match=r"1\.\.3"):
        anchor_documents(scores.T, 4)
    with pytest.raises(ValueError, match="finite"):
        anchor_documents(scores.T, 2)
    with pytest.raises(ValueError, match=r"1\.\.3"):
        random_documents(3, 0, 0)


def test_random_documents_are_nested() -> None:
    small, large = random_documents(50, 5, 9), random_documents(50, 20, 9)
    assert np.isin(small.indices, large.indices).all()
    assert not np.array_equal(small.indices, random_documents(50, 5, 10).indices)


def estimated(full: Array, errors: Array, standard_error: float) -> Estimates:
    return Estimates(full + errors, np.full(len(full), standard_error))


def test_errors_as_large_as_stated_are_no_drift() -> None:
    alarms = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        full = rng.uniform(0.2, 0.8, size=8)
        alarms += find_drift(estimated(full, 0.05 * rng.normal(size=8), 0.05), full, 0.0, level=0.1).is_drifting
    assert 0.03 * 400 < alarms < 0.13 * 400


def test_bias_and_overconfidence_are_found() -> None:
    rng = np.random.default_rng(0)
    full = rng.uniform(0.2, 0.8, size=12)
    biased = find_drift(estimated(full, 0.08 + 0.02 * rng.normal(size=12), 0.1), full)
    assert biased.is_biased
    assert not biased.is_overconfident
    assert biased.bias == pytest.approx(0.08, abs=0.02)
    wild = find_drift(estimated(full, 0.2 * rng.normal(size=12), 0.05), full)
    assert wild.is_overconfident
    assert wild.kendall < biased.kendall
    assert find_drift(estimated(full, np.full(12, 0.01), 1e-4), full, tolerance=0.02).is_drifting is False
    turned = find_drift(Estimates(1.0 - full, np.full(12, 0.05)), full)
    assert turned.kendall == pytest.approx(-1.0)


def test_certain_estimates_must_be_right() -> None:
    full = np.array([0.3, 0.5, 0.7])
    assert not find_drift(Estimates(full, np.zeros(3)), full).is_drifting
    assert find_drift(Estimates(full + np.array([0.0, 0.0, 0.1]), np.zeros(3)), full).is_overconfident
    assert not find_drift(Estimates(full[:2] + 0.5, np.zeros(2)), full[:2]).is_drifting
    assert find_drift(Estimates(full[:0], full[:0]), full[:0]).num_candidates == 0


def test_drift_widens_the_subset_up_to_all_documents() -> None:
    calm = Drift(5, 0.0, 0.0, 1.0, is_biased=False, is_overconfident=False)
    drifting = Drift(5, 0.1, 0.1, 0.2, is_biased=True, is_overconfident=False)
    assert next_count(10, 100, calm) == 10
    assert next_count(10, 100, drifting) == 20
    assert next_count(1, 100, drifting, growth=1.1) == 2
    assert next_count(70, 100, drifting) == 100
    with pytest.raises(ValueError, match="growth"):
        next_count(10, 100, drifting, growth=1.0)
    with pytest.raises(ValueError, match="do not match"):
        find_drift(Estimates(np.zeros(2), np.zeros(2)), np.zeros(3))
    with pytest.raises(ValueError, match="level"):
        find_drift(Estimates(np.zeros(2), np.zeros(2)), np.zeros(2), level=1.0)
    with pytest.raises(ValueError, match="leave failed candidates out"):
        find_drift(Estimates(np.zeros(2), np.zeros(2)), np.array([0.0, np.nan]))
