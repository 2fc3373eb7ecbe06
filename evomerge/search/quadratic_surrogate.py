"""A metric as a quadratic of the genes behind a link: cheap to fit, with standard errors, from few evaluations.

``q(c) = 1/2 c' A c + b' c + e`` has ``(G + 1)(G + 2) / 2`` unknowns; the fitness is ``link(q(c))`` (MAP, arXiv
2406.07529: task vectors are small beside the base, so a second-order expansion of each metric holds).

The fit: the data is taken through the inverse link, weighted least squares there gives a start that is exact for exact
data, and Fisher scoring from it (the link's own likelihood: binomial for rates) removes the bias that noise has on the
transformed scale. The problem is convex for the sigmoid, so nothing depends on a lucky start. The published recipe, a
curve fit from all ones, saturates the sigmoid and often ends elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.search.links import LARGEST, Link, possible_links
from evomerge.search.population import num_unknowns
from evomerge.terms import Array

NEVER_EXACT = 1e-8  # smallest over largest singular value of a design that determines the quadratic
MAX_STEPS = 12
CLEARLY_BETTER = 0.9  # times the error of the more natural link


class TooFewPoints(ValueError):
    """The points do not determine the quadratic; the message says how many independent ones there are."""


def quadratic_features(points: Array) -> Array:
    """Columns of a quadratic, centred for conditioning: 1, u, u^2 / 2, products, with ``u = 2 c - 1``.

    Args:
        points: ``(C, G)`` in the unit box.

    Returns:
        ``(C, P)``.
    """
    centred = 2.0 * points - 1.0
    first, second = np.triu_indices(points.shape[1], k=1)
    ones = np.ones((len(points), 1))
    return np.hstack([ones, centred, 0.5 * centred**2, centred[:, first] * centred[:, second]])


@dataclass(frozen=True)
class QuadraticSurrogate:
    """One fitted metric.

    Attributes:
        num_genes: G.
        link: what stands around the quadratic.
        coefficients: ``(P,)`` of the centred columns.
        root: ``(P, P)``, ``root @ root.T`` is the covariance of the coefficients for a dispersion of 1.
        dispersion: what the covariance is multiplied with; None when there are no residuals to learn it from.
        leave_one_out: ``(C,)`` fitness minus what the fit without that point predicts for it; NaN for points without
            which the quadratic is not determined.
    """

    num_genes: int
    link: Link
    coefficients: Array
    root: Array
    dispersion: float | None
    leave_one_out: Array

    def predict(self, points: Array) -> Array:
        """Fitness ``(N,)`` at points ``(N, G)`` of the unit box."""
        return self.link.mean(_eta(quadratic_features(points), self.coefficients, self.link))

    def standard_errors(self, points: Array) -> Array:
        """Standard error ``(N,)`` of ``predict``, in units of the fitness; NaN where nothing tells the noise."""
        if self.dispersion is None:
            return np.full(len(points), math.nan)
        features = quadratic_features(points)
        slope = self.link.slope(_eta(features, self.coefficients, self.link))
        errors: Array = np.abs(slope) * np.sqrt(self.dispersion * np.sum((features @ self.root) ** 2, axis=1))
        return errors

    def draw(self, rng: np.random.Generator) -> QuadraticSurrogate:
        """The same metric with coefficients drawn from their normal approximation (itself without a dispersion)."""
        noise = math.sqrt(self.dispersion or 0.0) * (self.root @ rng.standard_normal(self.root.shape[1]))
        return QuadraticSurrogate(
            self.num_genes, self.link, self.coefficients + noise, self.root, self.dispersion, self.leave_one_out
        )

    @property
    def a(self) -> Array:
        """The symmetric matrix A ``(G, G)``, for points in the unit box."""
        return 4.0 * self._centred_a

    @property
    def b(self) -> Array:
        """The vector b ``(G,)``, for points in the unit box."""
        linear: Array = 2.0 * (self.coefficients[1 : self.num_genes + 1] - self._centred_a.sum(axis=1))
        return linear

    @property
    def e(self) -> float:
        """The constant e: the value before the link at the lower corner of the unit box."""
        linear = self.coefficients[1 : self.num_genes + 1]
        return float(self.coefficients[0] - linear.sum() + 0.5 * self._centred_a.sum())

    @property
    def error(self) -> float:
        """Root mean square of ``leave_one_out``, infinite when no point can be left out."""
        finite = self.leave_one_out[np.isfinite(self.leave_one_out)]
        return math.sqrt(float(np.mean(finite**2))) if len(finite) else math.inf

    @property
    def _centred_a(self) -> Array:
        g = self.num_genes
        matrix = np.diag(self.coefficients[g + 1 : 2 * g + 1])
        first, second = np.triu_indices(g, k=1)
        matrix[first, second] = matrix[second, first] = self.coefficients[2 * g + 1 :]
        return matrix


def fit_quadratic(
    points: Array, fitness: Sequence[float] | Array, *, link: str = "auto", num_documents: int = 0
) -> QuadraticSurrogate:
    """Fit one metric.

    Args:
        points: ``(C, G)`` in the unit box.
        fitness: ``(C,)`` maximised.
        link: ``auto``, ``sigmoid``, ``softplus`` or ``identity``; of several that can hold the data, ``auto`` takes the
            most natural one, or one with a clearly smaller leave-one-out error.
        num_documents: that each value is the mean of, 0 = unknown.

    Raises:
        TooFewPoints: the points do not determine the quadratic.
        ValueError: shapes that do not fit, or numbers that are not finite.
    """
    points, values = np.asarray(points, dtype=np.float64), np.asarray(fitness, dtype=np.float64)
    if points.ndim != 2 or values.shape != (len(points),):
        raise ValueError(f"expected points (C, G) and fitness (C,), got {points.shape} and {values.shape}")
    if not (np.all(np.isfinite(points)) and np.all(np.isfinite(values))):
        raise ValueError("points and fitness must be finite")
    features = quadratic_features(points)
    _refuse_deficient(features, points.shape[1])
    links = possible_links(values, link, num_documents)
    fits = [_fit(features, values, candidate, points.shape[1]) for candidate in links]
    best, margin = fits[0], 1e-9 * float(np.ptp(values))
    for other in fits[1:]:
        if other.error < CLEARLY_BETTER * best.error - margin:
            best = other
    return best


def determines_quadratic(points: Array) -> bool:
    """Whether ``fit_quadratic`` can fit these points ``(C, G)``."""
    if len(points) < num_unknowns(points.shape[1]):
        return False
    return _rank(quadratic_features(points)) == num_unknowns(points.shape[1])


def _rank(features: Array) -> int:
    if not len(features):
        return 0
    singular = np.linalg.svd(features, compute_uv=False)
    return int(np.sum(singular > NEVER_EXACT * singular[0]))


def _refuse_deficient(features: Array, num_genes: int) -> None:
    rank, needed = _rank(features), features.shape[1]
    if rank < needed:
        raise TooFewPoints(
            f"a quadratic in {num_genes} genes has {needed} unknowns and needs {needed} independent points; the "
            f"{len(features)} points given amount to {rank}. Evaluate more points, off the lines and planes of these, "
            "or search fewer genes."
        )


def _fit(features: Array, values: Array, link: Link, num_genes: int) -> QuadraticSurrogate:
    clipped = link.clip(values)
    eta = link.inverse(clipped)
    coefficients = _least_squares(features, eta, _weights(link, eta))
    coefficients = _score(features, clipped, link, coefficients)
    eta = _eta(features, coefficients, link)
    weights = _weights(link, eta)
    left, singular, right = np.linalg.svd(np.sqrt(weights)[:, None] * features, full_matrices=False)
    singular = np.maximum(singular, 1e-12 * singular[0])
    root: Array = right.T / singular
    free = len(values) - features.shape[1]
    misfit = float(np.sum(link.precision(link.mean(eta)) * (clipped - link.mean(eta)) ** 2))
    dispersion = misfit / free if free > 0 else None
    if link.knows_its_noise:
        dispersion = max(1.0, dispersion or 1.0)
    # One Newton step away from the fit without the point: exact for least squares.
    leverage = np.sum(left**2, axis=1)
    step = (clipped - link.mean(eta)) / np.maximum(link.slope(eta), 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        without = eta - step * leverage / (1.0 - leverage)
    errors = np.where(leverage < 1.0 - 1e-8, values - link.mean(np.nan_to_num(without, posinf=0, neginf=0)), math.nan)
    return QuadraticSurrogate(num_genes, link, coefficients, root, dispersion, errors)


def _weights(link: Link, eta: Array) -> Array:
    """Weight ``(C,)`` of each point before the link: precision of the metric times the squared slope."""
    weights: Array = link.precision(link.mean(eta)) * link.slope(eta) ** 2
    floored: Array = np.maximum(weights, 1e-12 * weights.max())
    return floored


def _eta(features: Array, coefficients: Array, link: Link) -> Array:
    eta: Array = features @ coefficients
    return np.clip(eta, -LARGEST, LARGEST) if link.name == "sigmoid" else eta


def _least_squares(features: Array, target: Array, weights: Array) -> Array:
    scale: Array = np.sqrt(weights)
    solution = np.linalg.lstsq(scale[:, None] * features, scale * target, rcond=1e-13)[0]
    return np.asarray(solution, dtype=np.float64)


def _score(features: Array, fitness: Array, link: Link, start: Array) -> Array:
    """Fisher scoring from a start; every step lowers the loss or is halved until it does."""
    if link.name == "identity":
        return start
    coefficients, loss = start, link.loss(fitness, link.mean(_eta(features, start, link)))
    for _ in range(MAX_STEPS):
        eta = _eta(features, coefficients, link)
        mean, slope = link.mean(eta), np.maximum(link.slope(eta), 1e-12)
        step = _least_squares(features, (fitness - mean) / slope, _weights(link, eta))
        for halving in range(6):
            trial = coefficients + 0.5**halving * step
            lower = link.loss(fitness, link.mean(_eta(features, trial, link)))
            if lower < loss:
                break
        else:
            return coefficients
        gained = loss - lower
        coefficients, loss = trial, lower
        if gained <= 1e-10 * (1.0 + loss):
            return coefficients
    return coefficients
