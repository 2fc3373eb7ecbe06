"""Item response theory: simulated answers, known truths; real recorded merges where the model is only nearly true."""

import numpy as np
import pytest

from evomerge.evaluation.anchor_documents import random_documents
from evomerge.evaluation.irt import ItemModel, fit_items
from evomerge.evaluation.ridge_logistic import GaussianPrior, fit_logistic, probability
from evomerge.evaluation.score_estimates import (
    Estimates,
    calibrated_share,
    difference_estimates,
    gp_irt,
    mean_estimates,
    mp_irt,
    p_irt,
)
from evomerge.terms import Array


def simulated(seed: int, num_documents: int = 500) -> tuple[ItemModel, Array, Array]:
    """Documents with five dimensions, and a merge of two experts: items, expected scores ``(1, D)``, answers."""
    rng = np.random.default_rng(seed)
    experts = rng.normal(size=(2, 5))
    items = ItemModel.known(rng.normal(size=(num_documents, 5)), rng.normal(size=num_documents), experts)
    expected = items.probabilities(np.array([[0.3, 0.7]]) @ experts)
    return items, expected, (rng.random(expected.shape) < expected).astype(np.float64)


def one_dimension(seed: int, num_models: int, num_documents: int = 200) -> tuple[Array, Array, Array]:
    """Abilities ``(C,)``, difficulties ``(D,)`` and answers ``(C, D)``; discriminations are 1.5."""
    rng = np.random.default_rng(seed)
    abilities, difficulties = rng.normal(size=num_models), 1.5 * rng.normal(size=num_documents)
    expected = probability(1.5 * abilities[:, None] - difficulties)
    return abilities, difficulties, (rng.random(expected.shape) < expected).astype(np.float64)


def test_estimates_of_simulated_merges_are_nearer_than_the_mean_and_as_sure_as_they_say() -> None:
    errors: dict[str, list[float]] = {"mean": [], "p": [], "mp": [], "mp, no prior": []}
    scaled = []
    for seed in range(60):
        items, _, answers = simulated(seed)
        subset = random_documents(500, 50, seed)
        scores = answers[:, subset.indices]
        found = {
            "mean": mean_estimates(subset, scores),
            "p": p_irt(items, subset, scores),
            "mp": mp_irt(items, subset, scores, items.abilities),
            "mp, no prior": mp_irt(items, subset, scores, items.abilities, mix_width=None),
        }
        for name, estimates in found.items():
            errors[name].append(float(estimates.values[0] - answers.mean()))
        scaled.append(errors["mp"][-1] / float(found["mp"].standard_errors[0]))
    sizes = {name: np.abs(values).mean() for name, values in errors.items()}
    assert max(sizes["p"], sizes["mp"], sizes["mp, no prior"]) < 0.6 * sizes["mean"]
    assert 0.75 < np.sqrt(np.mean(np.square(scaled))) < 1.25


def test_all_documents_give_the_true_mean_without_error() -> None:
    items, _, answers = simulated(0, 40)
    everything = random_documents(40, 40, 0)
    references = answers.repeat(2, axis=0)
    for found in (
        mean_estimates(everything, answers),
        difference_estimates(everything, answers, references),
        p_irt(items, everything, answers),
        mp_irt(items, everything, answers, items.abilities),
        gp_irt(mean_estimates(everything, answers), p_irt(items, everything, answers)),
    ):
        np.testing.assert_allclose(found.values, answers.mean(axis=1), rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.standard_errors, 0.0, atol=1e-12)


def test_soft_answers_determine_the_mix_of_experts() -> None:
    items, expected, _ = simulated(3, 300)
    features = items.discriminations @ items.abilities.T
    no_prior = GaussianPrior(np.full(2, 0.5), np.zeros(2))
    found = fit_logistic(features, expected.T, no_prior, offsets=-items.difficulties)
    np.testing.assert_allclose(found.coefficients, [[0.3, 0.7]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("mix_width", [None, 1.0])
def test_all_right_and_all_wrong_stay_finite(score: float, mix_width: float | None) -> None:
    items, _, _ = simulated(1, 60)
    subset = random_documents(60, 10, 0)
    with np.errstate(all="raise", under="ignore"):
        scores = np.full((1, 10), score)
        merged = mp_irt(items, subset, scores, items.abilities, mix_width)
        free = p_irt(items, subset, scores)
        fitted = fit_items(np.full((3, 12), score))
    for found in (merged, free, mean_estimates(subset, scores)):
        assert np.all((found.values >= 0.0) & (found.values <= 1.0))
        assert np.all(np.isfinite(found.standard_errors) & (found.standard_errors > 0.0))
    assert free.standard_errors[0] < 0.5
    chance = fitted.probabilities(np.zeros((1, 1)))
    assert np.all(np.abs(chance - score) < 0.35)
    assert np.all(fitted.abilities == 0.0)


def test_fit_finds_abilities_and_difficulties() -> None:
    abilities, difficulties, answers = one_dimension(0, 40)
    items = fit_items(answers)
    assert np.corrcoef(items.abilities[:, 0], abilities)[0, 1] > 0.97
    assert np.corrcoef(items.difficulties, difficulties)[0, 1] > 0.9
    assert items.discriminations.mean() == pytest.approx(1.5 * abilities.std(), abs=0.15)  # in standardised abilities
    assert items.abilities.mean() == pytest.approx(0.0, abs=1e-9)
    assert np.mean(items.abilities**2) == pytest.approx(1.0)


def test_five_models_are_enough_to_beat_the_mean() -> None:
    squared = np.zeros(2)
    for seed in range(8):
        _, _, answers = one_dimension(seed, 25)
        items = fit_items(answers[:5])
        subset = random_documents(200, 10, seed)
        scores, truth = answers[5:, subset.indices], answers[5:].mean(axis=1)
        found = [mean_estimates(subset, scores), p_irt(items, subset, scores)]
        squared += [np.mean((estimates.values - truth) ** 2) for estimates in found]
    assert squared[1] < 0.85 * squared[0]


def test_a_document_that_few_models_were_right_on_is_not_taken_for_certain() -> None:
    answers = np.zeros((4, 30))
    answers[:, :15] = 1.0
    answers[3, 5:20] = [0, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 0, 0]
    items = fit_items(answers)
    expected = items.probabilities(items.abilities)
    assert 0.75 < expected[0, 0] < 0.995
    sure = ItemModel.known(items.discriminations, items.difficulties, items.abilities)
    assert abs(sure.probabilities(items.abilities)[0, 0] - 0.5) > abs(expected[0, 0] - 0.5)


def test_missing_scores_and_fractions_and_order_of_models() -> None:
    _, difficulties, answers = one_dimension(4, 20)
    partly = answers.copy()
    partly[np.random.default_rng(0).random(partly.shape) < 0.3] = np.nan
    items = fit_items(partly)
    assert np.corrcoef(items.difficulties, difficulties)[0, 1] > 0.8
    again, turned = fit_items(partly), fit_items(partly[::-1])
    np.testing.assert_array_equal(again.difficulties, items.difficulties)
    np.testing.assert_allclose(turned.difficulties, items.difficulties, atol=1e-3)
    halves = fit_items(0.25 + 0.5 * answers)
    assert np.all(np.isfinite(halves.difficulties))
    assert np.std(halves.difficulties) < np.std(fit_items(answers).difficulties)


def test_a_document_that_better_models_fail_has_a_negative_discrimination() -> None:
    _, _, answers = one_dimension(2, 30, 60)
    answers[:, 7] = 1.0 - (answers.mean(axis=1) > np.median(answers.mean(axis=1)))
    assert fit_items(answers).discriminations[7, 0] < -0.5


def test_difference_estimator_removes_the_luck_of_easy_documents() -> None:
    _, _, answers = one_dimension(5, 40)
    subset = random_documents(200, 15, 1)
    scores, truth = answers[20:, subset.indices], answers[20:].mean(axis=1)
    plain, found = mean_estimates(subset, scores), difference_estimates(subset, scores, answers[:20])
    shift = answers[:20].mean() - answers[:20][:, subset.indices].mean()
    np.testing.assert_allclose(found.values, np.clip(plain.values + shift, 0.0, 1.0), atol=1e-12)
    assert np.mean((found.values - truth) ** 2) < np.mean((plain.values - truth) ** 2)


def test_combinations() -> None:
    one, other = Estimates(np.array([0.2, 0.4]), np.array([0.1, 0.1])), Estimates(np.array([0.6, 0.4]), np.zeros(2))
    np.testing.assert_allclose(gp_irt(one, other).values, [0.4, 0.4])
    np.testing.assert_allclose(gp_irt(one, other, 1.0).values, one.values)
    np.testing.assert_allclose(gp_irt(one, other, 0.25).standard_errors, 0.025)
    with pytest.raises(ValueError, match="share"):
        gp_irt(one, other, 1.5)
    rng = np.random.default_rng(0)
    noisy, exact = rng.normal(size=200), 0.3 * rng.normal(size=200)
    assert calibrated_share(noisy, exact) == pytest.approx(0.09 / 1.09, abs=0.03)
    assert calibrated_share(exact, noisy) == pytest.approx(1.0 / 1.09, abs=0.03)
    assert calibrated_share(noisy, noisy) == pytest.approx(0.5)
    assert calibrated_share(np.zeros(3), np.zeros(3)) == 0.5


def test_wrong_shapes_and_values_are_refused() -> None:
    items, _, answers = simulated(0, 20)
    subset = random_documents(20, 5, 0)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        fit_items(np.array([[0.0, 2.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="at least two models"):
        fit_items(answers)
    with pytest.raises(ValueError, match="num_dimensions"):
        fit_items(np.zeros((3, 4)), 3)
    with pytest.raises(ValueError, match="at least one score"):
        fit_items(np.array([[np.nan, 1.0], [np.nan, 0.0]]))
    with pytest.raises(ValueError, match="failed evaluation"):
        p_irt(items, subset, np.full((1, 5), np.nan))
    with pytest.raises(ValueError, match="models, 5"):
        mean_estimates(subset, answers)
    with pytest.raises(ValueError, match="experts"):
        mp_irt(items, subset, answers[:, :5], np.zeros((2, 3)))
    with pytest.raises(ValueError, match="items are 20"):
        p_irt(items, random_documents(30, 5, 0), answers[:, :5])
    with pytest.raises(ValueError, match="score of one reference"):
        difference_estimates(subset, answers[:, :5], np.full((2, 20), np.nan))
