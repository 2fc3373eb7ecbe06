"""Two small networks that turn bad points into good ones and back, trained so that both ways cancel. Plain numpy.

Shapes: N points, K coordinates in [-1, 1]. Float32, as published. The same seed gives the same bits where linear
algebra uses one thread (``SingleThread``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.terms import Array

Float32 = npt.NDArray[np.float32]

WIDTHS = (1, 2, 2, 2, 1)  # hidden layers, in units of the width
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
BLOCK = 16384  # parameters of one block


@dataclass(frozen=True)
class Training:
    """How the generators are trained.

    Attributes:
        cycle_weight: of the way there and back, alpha_c.
        target_weight: of the distance from the mean of the good points, alpha_o.
        learning_rate: of Adam.
        steps: on all points at once.
    """

    cycle_weight: float
    target_weight: float
    learning_rate: float
    steps: int


class Layers:
    """A multi-layer perceptron, ReLU inside and tanh at the end, on parameters that belong to somebody else.

    Args:
        sizes: of the layers, inputs first.
        parameters: ``(count(sizes),)``, of which views are taken.
        gradient: the same for the gradient, which ``backward`` adds to.
    """

    def __init__(self, sizes: Sequence[int], parameters: Float32, gradient: Float32) -> None:
        self._layers: list[tuple[Float32, Float32, Float32, Float32]] = []
        at = 0
        for inputs, outputs in pairwise(sizes):
            middle, end = at + inputs * outputs, at + (inputs + 1) * outputs
            weights = [flat[at:middle].reshape(inputs, outputs) for flat in (parameters, gradient)]
            biases = [flat[middle:end] for flat in (parameters, gradient)]
            self._layers.append((weights[0], biases[0], weights[1], biases[1]))
            at = end

    @staticmethod
    def count(sizes: Sequence[int]) -> int:
        """Parameters of such a network."""
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw weights and biases from U(-1 / sqrt(inputs), 1 / sqrt(inputs)), torch's default."""
        for weight, bias, _, _ in self._layers:
            bound = 1.0 / np.sqrt(len(weight))
            weight[:] = rng.uniform(-bound, bound, size=weight.shape)
            bias[:] = rng.uniform(-bound, bound, size=bias.shape)

    def forward(self, points: Float32) -> list[Float32]:
        """Activations of every layer ``(N, layer)``, the points first and the answer last."""
        values = [points]
        for at, (weight, bias, _, _) in enumerate(self._layers):
            sums = values[-1] @ weight + bias
            values.append(np.tanh(sums) if at == len(self._layers) - 1 else np.maximum(sums, 0))
        return values

    def backward(self, values: Sequence[Float32], gradient: Float32) -> Float32:
        """Add to the parameters' gradient; the gradient ``(N, K)`` of the points.

        Args:
            values: what ``forward`` gave.
            gradient: ``(N, K)`` of the answer.
        """
        back: Any = gradient * (1 - values[-1] ** 2)
        for at in range(len(self._layers) - 1, -1, -1):
            weight, _, weight_gradient, bias_gradient = self._layers[at]
            weight_gradient += values[at].T @ back
            bias_gradient += back.sum(axis=0)
            back = back @ weight.T
            if at:
                back *= values[at] > 0
        found: Float32 = back
        return found


class CycleGenerators:
    """Loser to winner, and winner to loser.

    Args:
        num_coordinates: K.
        width: of the first hidden layer; published 128.
        training: how they are trained.
        rng: source of the first weights, used only here.
    """

    def __init__(self, num_coordinates: int, width: int, training: Training, rng: np.random.Generator) -> None:
        sizes = (num_coordinates, *(width * times for times in WIDTHS), num_coordinates)
        each = Layers.count(sizes)
        self._training = training
        self._parameters, self._gradient = np.zeros(2 * each, np.float32), np.zeros(2 * each, np.float32)
        self._means, self._squares = np.zeros_like(self._parameters), np.zeros_like(self._parameters)
        self._num_steps = 0
        halves = (slice(0, each), slice(each, None))
        self._to_win, self._to_lose = (Layers(sizes, self._parameters[half], self._gradient[half]) for half in halves)
        self._to_win.initialise(rng)
        self._to_lose.initialise(rng)

    def improve(self, points: Array) -> Array:
        """Points ``(N, K)`` sent from loser to winner."""
        return self._to_win.forward(points.astype(np.float32))[-1].astype(np.float64)

    def train(self, winners: Array, losers: Array) -> float:
        """Train on all points; the loss before the last step.

        Args:
            winners: ``(N, K)``.
            losers: ``(N', K)``.
        """
        good, bad = winners.astype(np.float32), losers.astype(np.float32)
        loss = 0.0
        for _ in range(self._training.steps):
            loss = self.add_gradient(good, bad)
            self._adam()
        return loss

    def add_gradient(self, good: Float32, bad: Float32) -> float:
        """Add the loss's gradient to ``_gradient``; the loss.

        ``alpha_c (|F(G(l)) - l|^2 + |G(F(w)) - w|^2) + alpha_o |G(l) - mean w|^2``, each a mean over points and
        coordinates, with G from loser to winner and F back.
        """
        cycle, target = np.float32(self._training.cycle_weight), np.float32(self._training.target_weight)
        to_win = self._to_win.forward(bad)
        there_and_back = self._to_lose.forward(to_win[-1])
        to_lose = self._to_lose.forward(good)
        back_and_there = self._to_win.forward(to_lose[-1])
        bad_miss, good_miss = there_and_back[-1] - bad, back_and_there[-1] - good
        target_miss = to_win[-1] - good.mean(axis=0, keepdims=True)

        gradient = self._to_lose.backward(there_and_back, (2 * cycle / bad_miss.size) * bad_miss)
        self._to_win.backward(to_win, gradient + (2 * target / target_miss.size) * target_miss)
        gradient = self._to_win.backward(back_and_there, (2 * cycle / good_miss.size) * good_miss)
        self._to_lose.backward(to_lose, gradient)
        means = [float(np.mean(miss**2)) for miss in (bad_miss, good_miss, target_miss)]
        return float(cycle) * (means[0] + means[1]) + float(target) * means[2]

    def _adam(self) -> None:
        """One step, block by block: a block's numbers stay in the cache over all operations."""
        self._num_steps += 1
        first, second = (np.float32(beta) for beta in BETAS)
        rate = np.float32(self._training.learning_rate / (1 - BETAS[0] ** self._num_steps))
        root_scale = np.float32(1 / np.sqrt(1 - BETAS[1] ** self._num_steps))
        for begin in range(0, len(self._parameters), BLOCK):
            block = slice(begin, begin + BLOCK)
            gradient, mean, square = self._gradient[block], self._means[block], self._squares[block]
            mean *= first
            mean += np.float32(1 - BETAS[0]) * gradient
            square *= second
            square += np.float32(1 - BETAS[1]) * gradient**2
            self._parameters[block] -= rate * mean / (np.sqrt(square) * root_scale + np.float32(EPSILON))
            gradient[:] = 0
