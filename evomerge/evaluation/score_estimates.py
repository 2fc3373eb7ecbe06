"""A model's mean score on all documents, estimated from its scores on some of them.

Four ways, each for a batch of models that were scored on the same documents: the (weighted) mean; the mean plus how
much easier or harder the chosen documents are for reference models; item response theory with a free ability (p-IRT) or
with one that interpolates between the experts' (mp-IRT); and the mean and one of the others combined (gp-IRT).
Scores lie in [0, 1] and larger is better.

Shapes: C models, D documents, n scored ones, F dimensions of the ability, K experts.

References: Polo 2024, tinyBenchmarks, https://arxiv.org/abs/2402.14992, eqs. 3 to 5 (p-IRT, gp-IRT); Mencattini 2025,
MERGE3, https://arxiv.org/abs/2502.10436 (mp-IRT); Saerndal 1992, Model Assisted Survey Sampling, section 6.3 (the
difference estimator).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.evaluation.anchor_documents import DocumentSubset
from evomerge.evaluation.irt import ItemModel
from evomerge.evaluation.ridge_logistic import GaussianPrior, fit_logistic, probability
from evomerge.terms import Array

EQUAL_SHARE = 0.5
MIX_WIDTH = 1.0
# The moderation of logits depends on the ability that is sought; it hardly moves after the second round.
_NUM_ROUNDS = 3


@dataclass(frozen=True)
class Estimates:
    """Estimated scores of some models on all documents.

    Attributes:
        values: ``(C,)`` in [0, 1] (the difference estimator's too: it is clipped).
        standard_errors: ``(C,)`` of ``values`` as estimates of the scores on the same D documents; zero where all were
            scored. They hold as far as the estimator's model does, see docs/estimators.md.
    """

    values: Array
    standard_errors: Array


def mean_estimates(subset: DocumentSubset, scores: Array) -> Estimates:
    """The weighted mean of what was scored.

    The error is that of a draw without replacement; for anchors it is too large when they are good
    ones. The documents' spread is that of scores 0 and 1 with two imagined successes and failures, so that a few equal
    scores do not look certain.

    Args:
        subset: n of D documents.
        scores: ``(C, n)``, in the subset's order.

    Raises:
        ValueError: the scores' shape or values.

    Reference: Agresti and Coull 1998, Approximate is better than "exact", section 3; Cochran 1977, theorem 2.2.
    """
    scores = _checked(subset, scores)
    count = scores.shape[1]
    values = scores @ subset.weights
    middle = (count * values + 2.0) / (count + 4.0)
    left_out = 1.0 - count / subset.num_documents
    return Estimates(values, np.sqrt(middle * (1.0 - middle) * np.sum(subset.weights**2) * left_out))


def difference_estimates(subset: DocumentSubset, scores: Array, references: Array) -> Estimates:
    """The mean, corrected by how much easier the scored documents are for reference models than all documents.

    On one subset it shifts all models alike: it improves values, not their order.

    Args:
        subset: n of D documents.
        scores: ``(C, n)``.
        references: ``(R, D)`` scores of models that were scored on all documents; NaN = not scored.

    Raises:
        ValueError: the shapes or values, or a document that no reference was scored on.
    """
    scores = _checked(subset, scores)
    if references.ndim != 2 or references.shape[1] != subset.num_documents:
        raise ValueError(f"references must be (models, {subset.num_documents}), got {references.shape}")
    if not np.isfinite(references).any(axis=0).all():
        raise ValueError("each document needs a score of one reference")
    expected = np.nanmean(references, axis=0)
    rest = scores - expected[subset.indices]
    values = expected.mean() + rest @ subset.weights
    count = scores.shape[1]
    centre = values - expected.mean()
    # Four imagined documents as surprising as a fair coin, for the same reason as in `mean_estimates`.
    spread = (((rest - centre[:, None]) ** 2).sum(axis=1) + 1.0) / (count + 4.0)
    left_out = 1.0 - count / subset.num_documents
    errors = np.sqrt(spread * np.sum(subset.weights**2) * left_out)
    return Estimates(np.clip(values, 0.0, 1.0), errors)


def p_irt(items: ItemModel, subset: DocumentSubset, scores: Array) -> Estimates:
    """What was scored, and for each other document what the model's ability predicts.

    The ability has a standard normal prior, in units of the models that the documents were fitted to. What was scored
    counts as it is, unweighted: with all documents the estimate is the true mean.

    Args:
        items: fitted to all D documents.
        subset: n of D documents.
        scores: ``(C, n)``.

    Raises:
        ValueError: the shapes or values.
    """
    size = items.num_dimensions
    return _predicted(items, subset, scores, np.eye(size), GaussianPrior(np.zeros(size), np.ones(size)))


def mp_irt(
    items: ItemModel, subset: DocumentSubset, scores: Array, experts: Array, mix_width: float | None = MIX_WIDTH
) -> Estimates:
    """Like `p_irt`, for merges: the ability is a linear combination of the experts' abilities.

    The combination's coefficients are not worth reading, answers of 0 and 1 do not determine them. With as many experts
    as dimensions, or more, every ability can be combined; then only the prior differs from p-IRT's.

    Args:
        items: fitted to all D documents.
        subset: n of D documents.
        scores: ``(C, n)``.
        experts: ``(K, F)`` abilities, for example the experts' rows of ``items.abilities``.
        mix_width: standard deviation of the coefficients' prior, around 1 / K; None = no prior, as in MERGE3.

    Raises:
        ValueError: the shapes or values.
    """
    if experts.ndim != 2 or len(experts) < 1 or experts.shape[1] != items.num_dimensions:
        raise ValueError(f"experts must be (experts, {items.num_dimensions}), got {experts.shape}")
    count = len(experts)
    precision = 0.0 if mix_width is None else 1.0 / mix_width**2
    prior = GaussianPrior(np.full(count, 1.0 / count), np.full(count, precision))
    return _predicted(items, subset, scores, experts, prior)


def gp_irt(means: Estimates, predicted: Estimates, share: float = EQUAL_SHARE) -> Estimates:
    """The mean and an estimate by a model combined: ``share`` of the first, the rest of the second.

    The error is the largest that the two errors allow, as they come from the same scores.

    Args:
        means: of `mean_estimates` or `difference_estimates`.
        predicted: of `p_irt` or `mp_irt` (the latter gives gmp-IRT).
        share: in [0, 1]; MERGE3 uses one half, `calibrated_share` finds one.

    Raises:
        ValueError: the share.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be in [0, 1], got {share}")
    return Estimates(
        share * means.values + (1.0 - share) * predicted.values,
        share * means.standard_errors + (1.0 - share) * predicted.standard_errors,
    )


def calibrated_share(mean_errors: Array, predicted_errors: Array) -> float:
    """The share of the mean in `gp_irt` that would have had the smallest squared error.

    Args:
        mean_errors: ``(N,)`` estimate minus truth of models that were scored on all documents and kept from the fit.
        predicted_errors: ``(N,)`` of the other estimator, for the same models.

    Returns:
        In [0, 1]; drawn to one half as if one more pair had been seen whose errors were typical and independent.

    Raises:
        ValueError: no or unequal numbers of errors.
    """
    if mean_errors.shape != predicted_errors.shape or mean_errors.size == 0:
        raise ValueError("calibrated_share needs the two errors of each of some models")
    difference = mean_errors - predicted_errors
    typical = 0.5 * (np.mean(mean_errors**2) + np.mean(predicted_errors**2))
    above = -float(predicted_errors @ difference) + typical
    below = float(difference @ difference) + 2.0 * typical
    return EQUAL_SHARE if below <= 0.0 else float(np.clip(above / below, 0.0, 1.0))


def _predicted(
    items: ItemModel, subset: DocumentSubset, scores: Array, basis: Array, prior: GaussianPrior
) -> Estimates:
    """Estimates from abilities ``coefficients @ basis``, basis ``(K, F)``, coefficients with a prior ``(K,)``."""
    scores = _checked(subset, scores)
    if items.num_documents != subset.num_documents:
        raise ValueError(f"the subset is of {subset.num_documents} documents, the items are {items.num_documents}")
    features = items.discriminations @ basis.T
    seen, rest = subset.indices, subset.others
    coefficients = np.tile(prior.mean, (len(scores), 1))
    for _ in range(_NUM_ROUNDS):
        fitted = fit_logistic(
            features[seen], scores.T, prior, offsets=-items.difficulties[seen],
            scales=items.moderation(coefficients @ basis)[:, seen].T, start=coefficients,
        )  # fmt: skip
        coefficients = fitted.coefficients
    moderation = items.moderation(coefficients @ basis)[:, rest]
    p = probability(moderation * (coefficients @ features[rest].T - items.difficulties[rest]))
    values = (scores.sum(axis=1) + p.sum(axis=1)) / subset.num_documents
    slopes = (moderation * p * (1.0 - p)) @ features[rest]
    # Capped at what no score can exceed: without a prior, an ability that nothing determines has no error.
    from_ability = np.minimum(np.einsum("cf,cfg,cg->c", slopes, fitted.covariances, slopes), len(rest) ** 2 / 4.0)
    variances = (p * (1.0 - p)).sum(axis=1) + from_ability
    return Estimates(values, np.sqrt(variances) / subset.num_documents)


def _checked(subset: DocumentSubset, scores: Array) -> Array:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(subset.indices):
        raise ValueError(f"scores must be (models, {len(subset.indices)}), got {table.shape}")
    if not np.all((table >= 0.0) & (table <= 1.0)):
        raise ValueError("scores must lie in [0, 1]; a failed evaluation has no score to estimate from")
    return table
