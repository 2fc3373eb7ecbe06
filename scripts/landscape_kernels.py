"""Gaussian processes that share a kernel: one regression for each document of a task, all with the same smoothness.

Points are in the unit cube of the genes. The kernel is Matern 5/2 with a length scale for each gene plus noise at the
recorded points; both are chosen by how likely the left-out outcomes are. Shapes: N points, G genes, D outputs.

Reference: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, sections 4.2.1 and 5.4.2 (left-out
predictions in closed form, equations 5.10 to 5.12).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg
import scipy.spatial.distance
from scipy.optimize import minimize

from evomerge.terms import Array

if TYPE_CHECKING:
    import torch

JITTER = 1e-6
LENGTHS = (0.05, 20.0)
NOISES = (1e-3, 3.0)
MAX_POINTS = 384  # that the kernel is fitted to; the regressions use all
MAX_STEPS = 40


@dataclass(frozen=True)
class Kernel:
    """How alike a task's outcomes are at two points.

    Attributes:
        lengths: length scale of each gene, in shares of its range.
        noise: variance of what does not depend on the genes smoothly, in units of the signal's.
    """

    lengths: tuple[float, ...]
    noise: float

    def __call__(self, points: Array, others: Array) -> Array:
        """Covariances ``(N, M)`` without noise."""
        squared = scipy.spatial.distance.cdist(points / self.lengths, others / self.lengths, "sqeuclidean")
        return matern(squared)


def matern(squared: Array) -> Array:
    """Matern 5/2 of squared distances."""
    distance = np.sqrt(5.0 * squared)
    return (1.0 + distance + distance * distance / 3.0) * np.exp(-distance)


@dataclass(frozen=True)
class Regressions:
    """D Gaussian processes on the same points.

    Attributes:
        kernel: shared by all.
        points: ``(N, G)``.
        targets: ``(N, D)``.
    """

    kernel: Kernel
    points: Array
    targets: Array

    @cached_property
    def means(self) -> Array:
        """``(D,)`` that predictions fall back to far from all points."""
        found: Array = self.targets.mean(axis=0)
        return found

    @cached_property
    def _inverse(self) -> Array:
        covariance = self.kernel(self.points, self.points)
        covariance[np.diag_indices(len(covariance))] += self.kernel.noise + JITTER
        factor = scipy.linalg.cho_factor(covariance, lower=True)
        found: Array = scipy.linalg.cho_solve(factor, np.eye(len(covariance)))
        return found

    @cached_property
    def weights(self) -> Array:
        """``(N, D)``: a prediction is ``means`` plus covariances with the points times these."""
        found: Array = self._inverse @ (self.targets - self.means)
        return found

    def predict(self, points: Array) -> Array:
        """Means ``(M, D)`` at other points."""
        found: Array = self.means + self.kernel(points, self.points) @ self.weights
        return found

    def left_out(self) -> Array:
        """What each point would be predicted as without itself, ``(N, D)``."""
        found: Array = self.targets - self.weights / np.diag(self._inverse)[:, None]
        return found


def fit_kernel(points: Array, targets: Array, *, binary: bool) -> Kernel:
    """The kernel under which left-out outcomes are most likely.

    Args:
        points: ``(N, G)``.
        targets: ``(N, D)``; -1 and 1 where ``binary``.
        binary: whether the likelihood is that of the sign (probit) or that of the value (Gaussian).
    """
    import torch  # gradients; whoever only uses fitted kernels starts without it

    count = min(len(points), MAX_POINTS)
    x = torch.from_numpy(points[:count].copy())
    y = torch.from_numpy(targets[:count] - (0.0 if binary else targets[:count].mean(axis=0)))
    offset = y.mean(dim=0) if binary else torch.zeros(y.shape[1], dtype=y.dtype)
    num_genes = points.shape[1]

    def loss(theta: Array) -> tuple[float, Array]:
        free = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        value = _surprise(free[:-1].exp(), free[-1].exp(), x, y, offset, binary)
        value.backward()
        assert free.grad is not None
        return value.item(), free.grad.numpy().copy()

    box = [tuple(np.log(LENGTHS))] * num_genes + [tuple(np.log(NOISES))]
    start = np.append(np.full(num_genes, np.log(0.5 * np.sqrt(num_genes))), np.log(0.05))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=box, options={"maxiter": MAX_STEPS})
    values = [float(f"{value:.4g}") for value in np.exp(found.x)]
    return Kernel(tuple(values[:-1]), values[-1])


def _surprise(
    lengths: torch.Tensor, noise: torch.Tensor, x: torch.Tensor, y: torch.Tensor, offset: torch.Tensor, binary: bool
) -> torch.Tensor:
    """Mean negative log likelihood of each outcome given all others; the signal's variance is the best one."""
    import torch

    scaled = x / lengths
    norms = (scaled * scaled).sum(dim=1)
    squared = (norms[:, None] + norms - 2.0 * scaled @ scaled.T).clamp_min(0.0)
    distance = (5.0 * squared + 1e-12).sqrt()
    covariance = (1.0 + distance + distance**2 / 3.0) * torch.exp(-distance)
    covariance = covariance + (noise + JITTER) * torch.eye(len(x), dtype=x.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    variance = 1.0 / torch.diagonal(inverse)[:, None]
    missed = (inverse @ (y - offset)) * variance
    signal = (missed**2 / variance).mean().clamp_min(1e-12)
    spread = (signal * variance).sqrt()
    if binary:
        return -torch.special.log_ndtr(y * (y - missed) / spread).mean()
    return (0.5 * (missed / spread) ** 2 + spread.log()).mean()
