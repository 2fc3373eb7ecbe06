"""From any real number to the range of a metric: what stands between a quadratic and the fitness it predicts.

A link is increasing: ``fitness = mean(eta)``. Lowered metrics are negative inside evomerge, so the bounded links have a
mirrored twin: ``-mean(-eta)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit, logit, xlogy

from evomerge.terms import Array

LinkName = Literal["identity", "sigmoid", "softplus"]

LARGEST = 30.0  # of eta's size: beyond it a sigmoid is 0 or 1 to the last bit but three
UNKNOWN_DOCUMENTS_CLIP = 1e-6  # how near to 0 and 1 a rate may come when nobody says how many documents it is a mean of
SMALLEST_AMOUNT = 1e-6  # of the largest: values below are taken as that, where softplus has no inverse


@dataclass(frozen=True)
class Link:
    """One link.

    Attributes:
        name: ``identity``; ``sigmoid`` for rates in [0, 1]; ``softplus`` for positive amounts.
        lowered: mirrored, for rates in [-1, 0] and negative amounts.
        num_documents: D documents a rate is the mean of, 0 = unknown. Only the sigmoid uses it.
    """

    name: LinkName
    lowered: bool = False
    num_documents: int = 0

    def mean(self, eta: Array) -> Array:
        """Fitness ``(C,)`` of ``eta`` ``(C,)``."""
        if self.name == "identity":
            return eta
        sign = -1.0 if self.lowered else 1.0
        eta = sign * eta
        value: Array = expit(eta) if self.name == "sigmoid" else np.logaddexp(0.0, eta)
        return sign * value

    def slope(self, eta: Array) -> Array:
        """Derivative of ``mean`` ``(C,)``."""
        if self.name == "identity":
            return np.ones_like(eta)
        rate: Array = expit(-eta if self.lowered else eta)
        return rate * (1.0 - rate) if self.name == "sigmoid" else rate

    def inverse(self, fitness: Array) -> Array:
        """The ``eta`` ``(C,)`` of clipped fitness ``(C,)``."""
        if self.name == "identity":
            return fitness
        sign = -1.0 if self.lowered else 1.0
        amount = sign * fitness
        eta: Array = logit(amount) if self.name == "sigmoid" else amount + np.log(-np.expm1(-amount))
        return sign * eta

    def clip(self, fitness: Array) -> Array:
        """Fitness ``(C,)`` moved off the ends of the range, rates by half a document, so that ``inverse`` is finite."""
        if self.name == "identity":
            return fitness
        sign = -1.0 if self.lowered else 1.0
        amount = sign * fitness
        if self.name == "sigmoid":
            edge = 0.5 / self.num_documents if self.num_documents else UNKNOWN_DOCUMENTS_CLIP
            return sign * np.clip(amount, min(edge, 0.25), 1.0 - min(edge, 0.25))
        return sign * np.maximum(amount, SMALLEST_AMOUNT * max(float(amount.max(initial=0.0)), 1e-300))

    def precision(self, fitness: Array) -> Array:
        """One over the variance of an observation with this mean ``(C,)``, up to a common factor where D is unknown.

        Binomial for rates: ``D / (p (1 - p))``; the same everywhere for the others.
        """
        if self.name != "sigmoid":
            return np.ones_like(fitness)
        rate = np.abs(fitness)
        return max(self.num_documents, 1) / np.maximum(rate * (1.0 - rate), 1e-12)

    def loss(self, fitness: Array, mean: Array) -> float:
        """What the fit lowers: the binomial deviance for rates, the sum of squares for the others."""
        if self.name != "sigmoid":
            return float(np.sum((fitness - mean) ** 2))
        rate, expected = np.abs(fitness), np.clip(np.abs(mean), 1e-15, 1.0 - 1e-15)
        deviance = xlogy(rate, rate / expected) + xlogy(1.0 - rate, (1.0 - rate) / (1.0 - expected))
        return 2.0 * max(self.num_documents, 1) * float(np.sum(deviance))

    @property
    def knows_its_noise(self) -> bool:
        """Whether ``precision`` is absolute, so that standard errors need no residuals."""
        return self.name == "sigmoid" and self.num_documents > 0


def possible_links(fitness: Array, choice: str, num_documents: int) -> tuple[Link, ...]:
    """The links whose range holds the data, most natural first.

    Args:
        fitness: ``(C,)`` maximised, so metrics that are to be lowered are negative.
        choice: a link's name, or ``auto``: the sigmoid for values in [0, 1], and for those in [-1, 0] when they are
            means over documents; else identity, and softplus where all values have one sign.
        num_documents: 0 = unknown.

    Returns:
        At least one. A named link that cannot hold the data gives way to identity.
    """
    low, high = float(fitness.min()), float(fitness.max())
    rates = [Link("sigmoid", False, num_documents)] if low >= 0 and high <= 1 else []
    if not rates and low >= -1 and high <= 0 and (num_documents or choice == "sigmoid"):
        rates = [Link("sigmoid", True, num_documents)]
    amounts = [Link("softplus", high < 0)] if low > 0 or high < 0 else []
    if choice == "auto":
        return tuple(rates) or (Link("identity"), *amounts)
    named = {"sigmoid": rates, "softplus": amounts}.get(choice, [])
    return tuple(named) or (Link("identity"),)
