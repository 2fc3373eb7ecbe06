"""The mean of models on the sphere: the point with the least squared angles to all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from evomerge.errors import MergeFailed
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.gram import gram_matrix
from evomerge.methods.inputs import SMALLEST_SUM, Inputs, Values, read_number, read_numbers

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KarcherState:
    """Models and their inner products ``(E, E)``."""

    inputs: Inputs
    gram: Vector


class Karcher(MergeMethod):
    """Karcher mean of the directions, times the mean norm. A base is ignored.

    Iterated in the span of the models: directions are E coefficients and all products come from the Gram matrix, so an
    iteration costs nothing. Coefficients weigh the models; equal ones are mergekit's.
    Reference: Grove and Karcher 1973, https://doi.org/10.1007/BF01425237
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> KarcherState:
        """Measure norms and angles."""
        inputs = Inputs.check(None, experts)
        return KarcherState(inputs, gram_matrix(inputs.experts))

    def apply(self, state: KarcherState, values: Values, out: Tensor) -> None:
        """Write the mean.

        Raises:
            MergeFailed: coefficients that sum to 0.
        """
        coefficients = read_numbers(values, "coefficient", len(state.inputs.experts))
        iterations, tolerance = int(read_number(values, "max_iter")), read_number(values, "tol")
        total = sum(coefficients)
        if abs(total) < SMALLEST_SUM:
            raise MergeFailed(f"karcher: the coefficients {list(coefficients)} sum to 0")
        weights = np.array(coefficients) / total
        norms = np.sqrt(state.gram.diagonal())
        direction = _mean_direction(state.gram, norms, weights, iterations, tolerance)
        scale = float(weights @ norms)
        weighted_sum(out, state.inputs.experts, [float(scale * value) for value in direction])

    def state_bytes(self, state: KarcherState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes


def _mean_direction(gram: Vector, norms: Vector, weights: Vector, iterations: int, tolerance: float) -> Vector:
    """Coefficients ``(E,)`` of the models whose sum is the unit vector of the mean."""
    alive = np.flatnonzero(norms > tolerance)
    found = np.zeros(len(norms))
    if not len(alive):
        return found
    units = gram[np.ix_(alive, alive)] / np.outer(norms[alive], norms[alive])
    alphas = weights[alive] / weights[alive].sum() if abs(weights[alive].sum()) >= SMALLEST_SUM else weights[alive]

    def length(vector: Vector) -> float:
        return math.sqrt(max(0.0, float(vector @ units @ vector)))

    mean = alphas.copy()
    if length(mean) < tolerance:
        mean = np.eye(len(alive))[0]
    mean /= length(mean)
    for _ in range(iterations):
        cosines = np.clip(units @ mean, -1.0, 1.0)
        angles = np.arccos(cosines)
        sines = np.sin(angles)
        far = (angles >= tolerance) & (sines > tolerance)
        pulls = np.where(far, alphas * angles / np.where(far, sines, 1.0), 0.0)
        tangent = pulls - float(pulls @ cosines) * mean
        step = length(tangent)
        if step < tolerance:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= length(mean)
    found[alive] = mean / norms[alive]
    return found
