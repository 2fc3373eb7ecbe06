"""Item response theory: each document's difficulty and discrimination, each model's ability, from a run's own scores.

The two-parameter model: a model with ability ``theta`` is right on document j with probability
``sigmoid(a_j . theta - b_j)``. Runs score few models (experts, baselines, candidates) on many documents, so a
document's parameters are uncertain; they get a prior whose mean and width come from all documents, and predictions
average over what is left uncertain. Nothing is read from tables of other models.

Shapes: C models, D documents, F dimensions of the ability.

References: Birnbaum 1968 (the two-parameter model); Polo 2024, tinyBenchmarks, https://arxiv.org/abs/2402.14992, eq. 2
(several dimensions); Mencattini 2025, MERGE3, https://arxiv.org/abs/2502.10436 (for merges); MacKay 1992, The evidence
framework applied to classification networks, eq. 10 (averaging over uncertain parameters).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logit

from evomerge.evaluation.ridge_logistic import GaussianPrior, fit_logistic, probability
from evomerge.terms import Array

MAX_ROUNDS = 100
_TOLERANCE = 1e-4
# What the documents' prior is drawn to, and how many documents that pull is worth.
_DISCRIMINATION_WIDTH = 1.0
_DIFFICULTY_WIDTH = 2.0
_NUM_PSEUDO_DOCUMENTS = 10


@dataclass(frozen=True)
class ItemModel:
    """A fitted model of documents.

    Attributes:
        discriminations: ``(D, F)``, a. Negative where better models do worse.
        difficulties: ``(D,)``, b.
        covariances: ``(D, F + 1, F + 1)`` of each document's (a, -b); zeros where they are known exactly.
        abilities: ``(C, F)`` of the models it was fitted to: mean zero, mean square one over models and dimensions.
    """

    discriminations: Array
    difficulties: Array
    covariances: Array
    abilities: Array

    @classmethod
    def known(cls, discriminations: Array, difficulties: Array, abilities: Array) -> ItemModel:
        """Parameters taken as exact, for example of a simulation."""
        size = discriminations.shape[1] + 1
        covariances = np.zeros((len(difficulties), size, size))
        return cls(discriminations, difficulties, covariances, abilities)

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.difficulties)

    @property
    def num_dimensions(self) -> int:
        """F."""
        return int(self.discriminations.shape[1])

    def moderation(self, abilities: Array) -> Array:
        """Factors ``(C, D)`` in (0, 1] that draw logits to 0 as far as they are uncertain, at abilities ``(C, F)``."""
        with_one = _with_one(abilities)
        products = with_one[:, :, None] * with_one[:, None, :]
        variances = products.reshape(len(abilities), -1) @ self.covariances.reshape(self.num_documents, -1).T
        found: Array = 1.0 / np.sqrt(1.0 + np.pi / 8.0 * np.maximum(variances, 0.0))
        return found

    def probabilities(self, abilities: Array) -> Array:
        """Expected scores ``(C, D)`` of models with abilities ``(C, F)``."""
        return probability(self.moderation(abilities) * (abilities @ self.discriminations.T - self.difficulties))


def fit_items(scores: Array, num_dimensions: int = 1) -> ItemModel:
    """Fit documents and models to a table of scores, by maximum a posteriori.

    Documents and abilities are fitted in turns. Abilities have a standard normal prior and are standardised in each
    round, which fixes the model's scale; the documents' prior is Gaussian, its mean and widths are fitted to all
    documents (empirical Bayes). Deterministic.

    Args:
        scores: ``(C, D)`` in [0, 1], C >= 2; NaN = not scored. Each model and each document needs one score.
        num_dimensions: F, less than C. One is enough for one task; several only for documents of several tasks.

    Raises:
        ValueError: the table's shape, its values or ``num_dimensions`` are none of these.
    """
    scores = _checked(scores, num_dimensions)
    abilities = _first_abilities(scores, num_dimensions)
    first = GaussianPrior(
        np.append(np.ones(num_dimensions) / np.sqrt(num_dimensions), _overall_logit(scores)),
        np.array([_DISCRIMINATION_WIDTH] * num_dimensions + [_DIFFICULTY_WIDTH]) ** -2.0,
    )
    prior = first
    items = np.tile(prior.mean, (scores.shape[1], 1))
    standard = GaussianPrior(np.zeros(num_dimensions), np.ones(num_dimensions))
    logits = np.full(scores.shape, np.inf)
    for _ in range(MAX_ROUNDS):
        fitted = fit_logistic(_with_one(abilities), scores, prior, start=items, num_steps=3)
        items = fitted.coefficients
        before, logits = logits, _with_one(abilities) @ items.T
        if np.abs(logits - before).max() < _TOLERANCE:
            break
        prior = _new_prior(items, fitted.covariances, first)
        found = fit_logistic(
            items[:, :-1], scores.T, standard, offsets=items[:, -1], start=abilities, num_steps=3
        ).coefficients
        abilities = _standardised(found)
    return ItemModel(items[:, :-1], -items[:, -1], fitted.covariances, abilities)


def _checked(scores: Array, num_dimensions: int) -> Array:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or len(table) < 2 or table.shape[1] < 1:
        raise ValueError(f"scores must be (models, documents) with at least two models, got {table.shape}")
    if not 1 <= num_dimensions < len(table):
        raise ValueError(f"num_dimensions must be in 1..{len(table) - 1} for {len(table)} models, got {num_dimensions}")
    known = np.isfinite(table)
    if np.any(np.isinf(table)) or np.any((table[known] < 0.0) | (table[known] > 1.0)):
        raise ValueError("scores must lie in [0, 1], or be NaN where a model was not scored")
    if not known.any(axis=1).all() or not known.any(axis=0).all():
        raise ValueError("each model and each document needs at least one score")
    return table


def _with_one(abilities: Array) -> Array:
    return np.column_stack([abilities, np.ones(len(abilities))])


def _overall_logit(scores: Array) -> float:
    known = scores[np.isfinite(scores)]
    return float(logit((known.sum() + 0.5) / (len(known) + 1.0)))


def _first_abilities(scores: Array, num_dimensions: int) -> Array:
    """Leading singular vectors of what models differ in, turned so that better models have larger abilities."""
    by_document = np.nanmean(scores, axis=0)
    centred = np.where(np.isfinite(scores), scores - by_document, 0.0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(scores), num_dimensions))
    count = min(num_dimensions, left.shape[1])
    found[:, :count] = left[:, :count] * sizes[:count]
    better = centred.mean(axis=1)
    return _standardised(found * np.where(better @ found < 0.0, -1.0, 1.0))


def _standardised(abilities: Array) -> Array:
    """Mean zero, mean square one over models and dimensions; models that do not differ stay at zero."""
    centred = abilities - abilities.mean(axis=0)
    size = np.sqrt(np.mean(centred**2))
    found: Array = centred / size if size > 1e-6 else np.zeros_like(centred)
    return found


def _new_prior(items: Array, covariances: Array, first: GaussianPrior) -> GaussianPrior:
    """Mean and widths that explain the documents and some imagined ones of the first prior: one step of EM."""
    total = len(items) + _NUM_PSEUDO_DOCUMENTS
    means = (items.sum(axis=0) + _NUM_PSEUDO_DOCUMENTS * first.mean) / total
    squares = ((items - means) ** 2 + np.einsum("dff->df", covariances)).sum(axis=0)
    variances = (squares + _NUM_PSEUDO_DOCUMENTS * (1.0 / first.precision + (first.mean - means) ** 2)) / total
    variances[:-1] = variances[:-1].mean()  # no dimension is another one than the others
    return GaussianPrior(means, 1.0 / variances)
