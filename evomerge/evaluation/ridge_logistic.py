"""Many small logistic regressions at once, with shared features and a Gaussian prior on the coefficients.

Shapes: R rows, B regressions, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from evomerge.terms import Array

MAX_LOGIT = 30.0  # beyond it a probability is 0 or 1 to all digits that matter, and exponentials stay finite
_MAX_STEP = 4.0
_MAX_HALVINGS = 12
_JITTER = 1e-9
_CONVERGED = 1e-9


@dataclass(frozen=True)
class Regression:
    """Coefficients that maximise the posterior.

    Attributes:
        coefficients: ``(B, F)``.
        covariances: ``(B, F, F)`` of the coefficients, the inverse of the Hessian (Laplace).
    """

    coefficients: Array
    covariances: Array


@dataclass(frozen=True)
class GaussianPrior:
    """Independent Gaussians around a mean.

    Attributes:
        mean: ``(F,)``.
        precision: ``(F,)``, 1 / variance; zero = no prior.
    """

    mean: Array
    precision: Array


def probability(logits: Array) -> Array:
    """Logistic function of logits of any shape; those beyond +-30 count as +-30."""
    found: Array = expit(np.clip(logits, -MAX_LOGIT, MAX_LOGIT))
    return found


def fit_logistic(
    features: Array,
    targets: Array,
    prior: GaussianPrior,
    offsets: Array | None = None,
    scales: Array | None = None,
    start: Array | None = None,
    num_steps: int = 100,
) -> Regression:
    """Damped Newton steps on ``-sum y log p + (1 - y) log(1 - p)`` minus the log prior, which is convex.

    Args:
        features: ``(R, F)``.
        targets: ``(R, B)`` in [0, 1]; fractions count as that share of a success. NaN = not observed.
        prior: of the coefficients.
        offsets: ``(R,)`` added to the linear term.
        scales: ``(R, B)`` factors of the linear term with its offset, default 1.
        start: ``(B, F)`` first coefficients, default the prior's mean.
        num_steps: at most so many; a fit stops when no coefficient moves by 1e-9.

    Returns:
        The same numbers for the same arguments. Without a prior, data that one coefficient could explain for ever
        better (all right, all wrong) stop at the clip of the logits: finite, but meaningless.
    """
    base = np.zeros(len(features)) if offsets is None else offsets
    factor = np.ones_like(targets) if scales is None else scales
    posterior = _Posterior(features, targets, prior, base, factor)
    found = np.tile(prior.mean, (targets.shape[1], 1)) if start is None else start.copy()
    loss = posterior.loss(found)
    for _ in range(num_steps):
        gradients, hessians = posterior.derivatives(found)
        steps = -np.linalg.solve(hessians, gradients[:, :, None])[:, :, 0]
        steps *= np.minimum(1.0, _MAX_STEP / np.maximum(np.abs(steps).max(axis=1, keepdims=True), _MAX_STEP))
        for halving in range(_MAX_HALVINGS):
            trial = posterior.loss(found + steps)
            worse = trial > loss + 1e-12 * np.abs(loss)
            if not worse.any():
                break
            steps[worse] *= 0.5 if halving < _MAX_HALVINGS - 1 else 0.0
        found, loss = found + steps, np.minimum(loss, trial)
        if np.abs(steps).max(initial=0.0) < _CONVERGED:
            break
    return Regression(found, np.asarray(np.linalg.inv(posterior.derivatives(found)[1]), dtype=np.float64))


class _Posterior:
    """Negative log posterior of each regression; arguments as in `fit_logistic`."""

    def __init__(self, features: Array, targets: Array, prior: GaussianPrior, offsets: Array, scales: Array) -> None:
        self._features, self._prior, self._offsets, self._scales = features, prior, offsets, scales
        self._observed = np.isfinite(targets)
        self._values = np.where(self._observed, targets, 0.0)
        self._products = (features[:, :, None] * features[:, None, :]).reshape(len(features), features.shape[1] ** 2)

    def loss(self, coefficients: Array) -> Array:
        """``(B,)``."""
        clipped = np.clip(self._logits(coefficients), -MAX_LOGIT, MAX_LOGIT)
        terms = np.where(self._observed, np.logaddexp(0.0, clipped) - self._values * clipped, 0.0).sum(axis=0)
        return np.asarray(terms + 0.5 * ((coefficients - self._prior.mean) ** 2 @ self._prior.precision))

    def derivatives(self, coefficients: Array) -> tuple[Array, Array]:
        """Gradients ``(B, F)`` and Hessians ``(B, F, F)``."""
        size = coefficients.shape[1]
        p = probability(self._logits(coefficients))
        gradients = (self._scales * np.where(self._observed, p - self._values, 0.0)).T @ self._features
        gradients = gradients + (coefficients - self._prior.mean) * self._prior.precision
        curvature = np.where(self._observed, self._scales**2 * p * (1.0 - p), 0.0)
        hessians = (curvature.T @ self._products).reshape(len(coefficients), size, size)
        return gradients, hessians + np.diag(self._prior.precision + _JITTER)

    def _logits(self, coefficients: Array) -> Array:
        found: Array = self._scales * (self._features @ coefficients.T + self._offsets[:, None])
        return found
